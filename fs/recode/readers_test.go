package recode_test

import (
	"bytes"
	"fmt"
	"image"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vdefs/fs"
)

// Nobody sees a part of a change: who has seen that a file is done sees its new size and contents.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	for name, options := range caching {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := picture(64, 48, 4)
			data := fat(t, m)
			dir, _ := mounted(t, "async", options)
			var lookers sync.WaitGroup
			for i := range 6 {
				path := filepath.Join(dir, fmt.Sprintf("%d.png", i))
				write(t, path, data)
				lookers.Go(func() {
					for n := 0; n < 20000; n++ {
						r, ok := record(path)
						if !ok {
							stat(t, path) // so that the kernel holds it
							time.Sleep(time.Duration(n%3) * time.Millisecond)
							continue
						}
						if st := stat(t, path); st.Size != r.Size {
							t.Errorf("%d bytes although it is done, want %d", st.Size, r.Size)
						}
						if got := read(t, path); int64(len(got)) != r.Size {
							t.Errorf("read %d bytes although it is done, want %d", len(got), r.Size)
						}
						return
					}
					t.Errorf("%s is not done", path)
				})
			}
			lookers.Wait()
		})
	}
}

// A reader who has the file open goes on reading what it opened; the swap comes when it has closed it.
func TestOpenReader(t *testing.T) {
	t.Parallel()
	m := picture(100, 100, 3)
	data := fat(t, m)
	dir, v := mounted(t, "async", fs.MountOptions{})
	path := filepath.Join(dir, "a.png")
	for _, opened := range []string{"before the close", "after it"} {
		writer, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
		var reader *os.File
		open := func() {
			if reader, err = os.Open(path); err != nil {
				t.Fatal(err)
			}
		}
		if opened == "before the close" {
			open()
		}
		if _, err := writer.Write(data); err != nil {
			t.Fatal(err)
		}
		writer.Close()
		before := stat(t, path)
		if reader == nil {
			open()
		}
		defer reader.Close()
		if info, err := reader.Stat(); err != nil || info.Size() != int64(len(data)) {
			t.Skipf("the machine is so busy that the file was done before it could be opened: %v", err)
		}
		for range 30 {
			if v.PNGStats().Skipped["busy"] > 0 {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, data) {
			t.Errorf("opened %s, the reader got %d bytes, %v; want the %d that it opened", opened, len(got), err, len(data))
		}
		if size := stat(t, path).Size; size != before.Size {
			t.Errorf("opened %s: the file was swapped while it was open", opened)
		}
		reader.Close()
		eventually(t, "the file is not done", func() bool { return stat(t, path).Size < before.Size })
		smaller(t, path, before, m)
	}
}

// Whoever looks at files while they are swapped sees one whole picture or the other, with its size.
func TestReadersDuringSwaps(t *testing.T) {
	t.Parallel()
	for name, options := range caching {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, v := mounted(t, "async", options)
			const files = 3
			pictures := make([]image.Image, files)
			datas := make([][]byte, files)
			path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.png", i)) }
			var sizes [files]sync.Map
			for i := range files {
				pictures[i] = picture(60+10*i, 60, i)
				datas[i] = fat(t, pictures[i])
				write(t, path(i), datas[i])
			}
			for i := range files {
				sizes[i].Store(int64(len(datas[i])), true)
				sizes[i].Store(done(t, path(i)).Size, true)
			}
			var stop atomic.Bool
			var looks atomic.Int64
			var readers sync.WaitGroup
			for range 4 {
				readers.Go(func() {
					for n := 0; !stop.Load(); n++ {
						i := n % files
						var st syscall.Stat_t
						if err := syscall.Stat(path(i), &st); err != nil {
							t.Errorf("stat: %v", err)
							return
						}
						if _, ok := sizes[i].Load(st.Size); !ok {
							t.Errorf("stat says %d bytes, which the file never had", st.Size)
							return
						}
						f, err := os.Open(path(i))
						if err != nil {
							t.Error(err)
							return
						}
						info, err := f.Stat()
						if err != nil {
							t.Error(err)
							return
						}
						data, err := io.ReadAll(f)
						f.Close()
						if err != nil {
							t.Error(err)
							return
						}
						if int64(len(data)) != info.Size() {
							t.Errorf("read %d bytes of a file of %d", len(data), info.Size())
							return
						}
						if len(data) != len(datas[i]) {
							if err := samePicture(data, pictures[i]); err != nil {
								t.Error(err)
								return
							}
						} else if !bytes.Equal(data, datas[i]) {
							t.Error("the size of what was written, with other bytes")
							return
						}
						looks.Add(1)
						if n%3 == 0 {
							time.Sleep(time.Millisecond) // a moment with the file closed
						}
					}
				})
			}
			before := v.PNGStats().Done
			swaps := uint64(0)
			// A swap waits for a moment when nobody has the file open, which on a busy machine may be long in coming.
			enough := func(since time.Duration) bool {
				return swaps >= 2*files || swaps > 0 && since > 15*time.Second || since > 2*time.Minute
			}
			for begin := time.Now(); !enough(time.Since(begin)); swaps = v.PNGStats().Done - before {
				for i := range files {
					temporary := path(i) + ".tmp"
					write(t, temporary, datas[i])
					if err := os.Rename(temporary, path(i)); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(350 * time.Millisecond)
			}
			stop.Store(true)
			readers.Wait()
			t.Logf("%d looks during %d swaps", looks.Load(), swaps)
			if swaps == 0 {
				t.Error("nothing was swapped while readers were at it")
			}
			for i := range files {
				done(t, path(i))
				if err := samePicture(read(t, path(i)), pictures[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A file that is written again and again ends as the last writer left it.
func TestChangedMeanwhile(t *testing.T) {
	t.Parallel()
	dir, v := mounted(t, "async", fs.MountOptions{})
	path := filepath.Join(dir, "a.png")
	var last image.Image
	for i := range 12 {
		last = picture(100, 80, i)
		data := fat(t, last)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		half := len(data) / 2
		if _, err := f.Write(data[:half]); err != nil {
			t.Fatal(err)
		}
		f.Close()
		time.Sleep(time.Duration(i%8) * 50 * time.Millisecond)
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data[half:]); err != nil {
			t.Fatal(err)
		}
		f.Close()
		time.Sleep(time.Duration(i%5) * 70 * time.Millisecond)
		if err := samePicture(read(t, path), last); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	idle(t, v)
	if err := samePicture(read(t, path), last); err != nil {
		t.Error(err)
	}
	if r := done(t, path); r.Size != stat(t, path).Size {
		t.Errorf("record %+v, size %d", r, stat(t, path).Size)
	}
}
