package recode_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/recode"
	"vdefs/fs/replica"
	"vdefs/vde"
)

// mounted mounts a new store for the length of a test.
func mounted(t *testing.T, mode string, options fs.MountOptions) (string, *replica.Volume) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("mounting takes /dev/fuse: ", err)
	}
	logger := logrus.New()
	logger.SetOutput(t.Output())
	store := filepath.Join(t.TempDir(), "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	v, err := replica.Open(store, replica.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.StartPNG(mode); err != nil {
		t.Fatal(err)
	}
	options.AllowOther, options.DefaultPermissions, options.Logger = true, true, logger
	dir := t.TempDir()
	server, err := fs.Mount(v, dir, options)
	if err != nil {
		t.Fatal(errors.Join(err, v.Close()))
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir, v
}

// caching are the ways that the kernel may cache, which differ in whose the size of a file is.
var caching = map[string]fs.MountOptions{
	"writeback": {}, "writethrough": {NoWriteback: true}, "nocache": {NoCache: true},
}

// picture draws something that compresses well, different for every seed.
func picture(width, height, seed int) image.Image {
	m := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			m.SetNRGBA(x, y, color.NRGBA{uint8(x + seed), uint8(y * 3), uint8(x ^ y), 255})
		}
	}
	return m
}

// fat encodes a picture without compression.
func fat(t testing.TB, m image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samePicture decodes with Go's decoder, which shares no code with ours.
func samePicture(data []byte, want image.Image) error {
	got, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return err
	}
	if got.Bounds() != want.Bounds() {
		return fmt.Errorf("bounds %v, want %v", got.Bounds(), want.Bounds())
	}
	for y := range want.Bounds().Dy() {
		for x := range want.Bounds().Dx() {
			if g, w := color.NRGBAModel.Convert(got.At(x, y)), color.NRGBAModel.Convert(want.At(x, y)); g != w {
				return fmt.Errorf("pixel %d,%d is %v, want %v", x, y, g, w)
			}
		}
	}
	return nil
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func stat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(path, err)
	}
	return &st
}

func record(path string) (r recode.Record, ok bool) {
	buf := make([]byte, 4096)
	n, err := unix.Getxattr(path, recode.Xattr, buf)
	return r, err == nil && json.Unmarshal(buf[:n], &r) == nil
}

func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 seconds: %s", what)
		}
	}
}

func done(t testing.TB, path string) recode.Record {
	t.Helper()
	eventually(t, filepath.Base(path)+" is not done", func() bool { _, ok := record(path); return ok })
	r, _ := record(path)
	return r
}

// idle waits until nothing is left to do and the last change has been told to the kernel.
func idle(t testing.TB, v *replica.Volume) {
	t.Helper()
	last := v.PNGStats()
	same := 0
	eventually(t, "the queue is not empty", func() bool {
		s := v.PNGStats()
		if s.Queued == 0 && s.Done == last.Done && fmt.Sprint(s.Skipped) == fmt.Sprint(last.Skipped) {
			same++
		} else {
			same = 0
		}
		last = s
		return same > 60
	})
}

// smaller checks everything about a file that was made smaller.
func smaller(t testing.TB, path string, before *syscall.Stat_t, m image.Image) {
	t.Helper()
	after := stat(t, path)
	if after.Size >= before.Size {
		t.Errorf("%s has %d bytes, as it was written", path, after.Size)
	}
	data := read(t, path)
	if int64(len(data)) != after.Size {
		t.Errorf("%s: read %d bytes, stat says %d", path, len(data), after.Size)
	}
	if err := samePicture(data, m); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	if after.Mtim != before.Mtim || after.Ino != before.Ino || after.Mode != before.Mode || after.Nlink != before.Nlink {
		t.Errorf("%s was %+v, is %+v", path, before, after)
	}
	if after.Blocks >= before.Blocks {
		t.Errorf("%s has %d blocks, %d before", path, after.Blocks, before.Blocks)
	}
}

func TestMadeSmaller(t *testing.T) {
	t.Parallel()
	m := picture(160, 120, 1)
	data := fat(t, m)
	for name, options := range caching {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, v := mounted(t, "async", options)
			path := filepath.Join(dir, "picture.PNG")
			write(t, path, data)
			before := stat(t, path) // the kernel holds the size now
			if before.Size != int64(len(data)) {
				t.Fatalf("%d bytes right after the close, want %d", before.Size, len(data))
			}
			r := done(t, path)
			smaller(t, path, before, m)
			if r.OriginalSize != int64(len(data)) || r.Size != stat(t, path).Size || len(r.SHA256) != 64 {
				t.Errorf("record %+v", r)
			}
			if s := v.PNGStats(); s.Done != 1 || s.BytesBefore != uint64(len(data)) || s.BytesAfter != uint64(r.Size) {
				t.Errorf("stats %+v", s)
			}

			// The file goes on living as any other.
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString("tail"); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if got := read(t, path); int64(len(got)) != r.Size+4 || !bytes.HasSuffix(got, []byte("tail")) {
				t.Errorf("after appending 4 bytes to %d there are %d", r.Size, len(got))
			}
			if err := os.Truncate(path, 10); err != nil {
				t.Fatal(err)
			}
			if st := stat(t, path); st.Size != 10 {
				t.Errorf("truncated to 10, has %d bytes", st.Size)
			}
			write(t, path, data)
			eventually(t, "the file was not done again", func() bool { return stat(t, path).Size == r.Size })
			smaller(t, path, &syscall.Stat_t{
				Size: before.Size, Mtim: stat(t, path).Mtim, Ino: before.Ino, Mode: before.Mode, Nlink: 1, Blocks: before.Blocks,
			}, m)
		})
	}
}

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

// All names of a file show the change, also those that nobody told the kernel to forget.
func TestAllNames(t *testing.T) {
	t.Parallel()
	m := picture(200, 200, 2)
	data := fat(t, m)
	dir, _ := mounted(t, "async", fs.MountOptions{})
	path := filepath.Join(dir, "a.png")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	names := []string{path}
	for _, name := range []string{"b.png", "c", "d.tmp"} {
		names = append(names, filepath.Join(dir, name))
		if err := os.Link(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	before := stat(t, path)
	for _, name := range names {
		if st := stat(t, name); st.Size != before.Size {
			t.Fatal(name, st.Size)
		}
	}
	done(t, path)
	for _, name := range names {
		eventually(t, name+" keeps its old size", func() bool { return stat(t, name).Size < before.Size })
		smaller(t, name, before, m)
	}
	for _, name := range names[1:] {
		if err := os.Chmod(name, 0o600); err != nil {
			t.Error(err)
		}
		if st := stat(t, path); st.Mode&0o777 != 0o600 {
			t.Errorf("mode %o after chmod of %s", st.Mode, name)
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Error(err)
		}
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

// Copies of a file that is done are not changed and cost no encoding; what is no PNG stays and gets no attribute.
func TestLeftAlone(t *testing.T) {
	t.Parallel()
	m := picture(200, 100, 5)
	data := fat(t, m)
	dir, v := mounted(t, "async", fs.MountOptions{})
	path := filepath.Join(dir, "a.png")
	write(t, path, data)
	done(t, path)
	made := read(t, path)
	var copies []string
	for i, option := range []string{"-a", "--reflink=never", "--sparse=never"} {
		copies = append(copies, filepath.Join(dir, fmt.Sprintf("copy%d.png", i)))
		if out, err := exec.Command("cp", option, path, copies[i]).CombinedOutput(); err != nil {
			t.Fatalf("cp %s: %v: %s", option, err, out)
		}
	}
	others := map[string][]byte{
		"text.png": []byte("no picture"), "empty.png": {}, "cut.png": data[:len(data)/2], "tail.png": append(bytes.Clone(data), 0),
		"picture.jpg": data, "png": data,
	}
	for name, b := range others {
		write(t, filepath.Join(dir, name), b)
	}
	idle(t, v)
	for _, c := range copies {
		if !bytes.Equal(read(t, c), made) {
			t.Errorf("%s was changed", c)
		}
	}
	for name, b := range others {
		if !bytes.Equal(read(t, filepath.Join(dir, name)), b) {
			t.Errorf("%s was changed", name)
		}
		if _, ok := record(filepath.Join(dir, name)); ok {
			t.Errorf("%s got an attribute", name)
		}
	}
	s := v.PNGStats()
	if s.Done != 1 || s.Skipped["already-done"] != 3 || s.Skipped["not-png"] != 1 || s.Skipped["truncated"] != 1 || s.Skipped["trailing-data"] != 1 {
		t.Errorf("stats %+v", s)
	}
	// The attribute of a file that is written anew and stays as it is goes.
	write(t, path, others["text.png"])
	eventually(t, "the attribute stays", func() bool { _, ok := record(path); return !ok })
}

func TestRename(t *testing.T) {
	t.Parallel()
	m := picture(200, 100, 6)
	dir, v := mounted(t, "async", fs.MountOptions{})
	write(t, filepath.Join(dir, "x.tmp"), fat(t, m))
	idle(t, v)
	before := stat(t, filepath.Join(dir, "x.tmp"))
	if err := os.Rename(filepath.Join(dir, "x.tmp"), filepath.Join(dir, "x.png")); err != nil {
		t.Fatal(err)
	}
	done(t, filepath.Join(dir, "x.png"))
	smaller(t, filepath.Join(dir, "x.png"), before, m)

	// A file made without a name.
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o644)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return // the FUSE library knows none yet
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(fat(t, m)); err != nil {
		t.Fatal(err)
	}
	y := filepath.Join(dir, "y.png")
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, y, unix.AT_SYMLINK_FOLLOW); err != nil {
		t.Fatal(err)
	}
	f.Close()
	done(t, y)
}

// The nearest directory that says something decides; a work tree says no.
func TestModesOfDirectories(t *testing.T) {
	t.Parallel()
	m := picture(100, 100, 7)
	data := fat(t, m)
	dir, v := mounted(t, "off", fs.MountOptions{})
	for path, mode := range map[string]string{
		"off": "", "on": "async", "on/below": "", "on/not": "off", "on/not/again": "async\n", "on/odd": "what?", "on/work": "", "on/work/.git": "",
		"on/work/assets": "", "on/work/yes": "async", "tree": "async", "tree/.git": "",
	} {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(full, 0o755); err != nil {
			t.Fatal(err)
		}
		if mode != "" {
			if err := unix.Setxattr(full, recode.Xattr, []byte(mode), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]bool{
		".": false, "off": false, "on": true, "on/below": true, "on/not": false, "on/not/again": true, "on/odd": true, "on/work": false,
		"on/work/assets": false, "on/work/yes": true, "tree": true,
	}
	for path := range want {
		write(t, filepath.Join(dir, path, "a.png"), data)
	}
	idle(t, v)
	for path, small := range want {
		if size := stat(t, filepath.Join(dir, path, "a.png")).Size; (size < int64(len(data))) != small {
			t.Errorf("%s/a.png has %d bytes of %d, should be small: %v", path, size, len(data), small)
		}
	}
}

// In mode sync the file is small when close has returned.
func TestSync(t *testing.T) {
	t.Parallel()
	for name, options := range caching {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := picture(100, 75, 8)
			data := fat(t, m)
			dir, _ := mounted(t, "sync", options)
			for i := range 8 {
				path := filepath.Join(dir, fmt.Sprintf("%d.png", i))
				f, err := os.Create(path)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.Write(data); err != nil {
					t.Fatal(err)
				}
				var before syscall.Stat_t
				if err := syscall.Fstat(int(f.Fd()), &before); err != nil {
					t.Fatal(err)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
				var got []byte
				var size int64
				switch i % 4 { // the first to look
				case 0:
					size = stat(t, path).Size
				case 1:
					got = read(t, path)
				case 2:
					if _, ok := record(path); !ok {
						t.Error("no record right after close")
					}
				case 3:
					if err := os.Truncate(path, before.Size); err != nil {
						t.Fatal(err)
					}
					if size := stat(t, path).Size; size != before.Size {
						t.Errorf("truncated to %d, has %d bytes", before.Size, size)
					}
					continue
				}
				if size >= before.Size || int64(len(got)) >= before.Size {
					t.Errorf("round %d: right after close the file is as it was written: stat %d, read %d", i, size, len(got))
				}
				if err := samePicture(read(t, path), m); err != nil {
					t.Error(err)
				}
				if mtime := stat(t, path).Mtim; i%4 == 0 && mtime != before.Mtim {
					// The kernel's own time may be one that it had not written yet when asked.
					if d := time.Unix(mtime.Unix()).Sub(time.Unix(before.Mtim.Unix())); d < 0 || d > 50*time.Millisecond {
						t.Errorf("mtime was %v, is %v", before.Mtim, mtime)
					}
				}
			}
		})
	}
}

// In mode sync a close that is not the last swaps nothing: what comes through the duplicate is not lost.
func TestSyncDuplicate(t *testing.T) {
	t.Parallel()
	dir, _ := mounted(t, "sync", fs.MountOptions{})
	m := picture(200, 150, 9)
	data := fat(t, m)
	path := filepath.Join(dir, "a.png")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	f.Close()
	start := time.Now()
	if size := stat(t, path).Size; size != int64(len(data)) {
		t.Errorf("swapped while a duplicate was open: %d bytes", size)
	}
	if wait := time.Since(start); wait > 2*time.Second {
		t.Errorf("stat took %v", wait)
	}
	if _, err := syscall.Write(other, []byte("tail")); err != nil {
		t.Fatal(err)
	}
	syscall.Close(other)
	if got := read(t, path); !bytes.Equal(got, append(bytes.Clone(data), "tail"...)) {
		t.Errorf("%d bytes, want %d and 4", len(got), len(data))
	}
	// Without a change through the duplicate its close makes the file small.
	f, err = os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if other, err = syscall.Dup(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	f.Close()
	syscall.Close(other)
	if size := stat(t, path).Size; size >= int64(len(data)) {
		t.Errorf("%d bytes right after the last close", size)
	}
	if err := samePicture(read(t, path), m); err != nil {
		t.Error(err)
	}
}

// What was swapped survives a mount, and nothing is left of the node ids of before.
func TestRemount(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	store := filepath.Join(t.TempDir(), "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := picture(200, 150, 10)
	data := fat(t, m)
	logger := logrus.New()
	logger.SetOutput(t.Output())
	var size int64
	for round := range 2 {
		v, err := replica.Open(store, replica.Options{Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		if err := v.StartPNG("async"); err != nil {
			t.Fatal(err)
		}
		server, err := fs.Mount(v, dir, fs.MountOptions{Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "a.png")
		if round == 0 {
			write(t, path, data)
			size = done(t, path).Size
		}
		if got := read(t, path); int64(len(got)) != size {
			t.Errorf("round %d: %d bytes, want %d", round, len(got), size)
		}
		// The kernel lets go of all it holds.
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err == nil {
			eventually(t, "the kernel still knows inodes", func() bool { return server.Stats().KnownInodes < 3 })
		}
		if err := samePicture(read(t, path), m); err != nil {
			t.Error(err)
		}
		if err := server.Unmount(); err != nil {
			t.Fatal(err)
		}
		if err := v.Sync(context.Background()); err != nil {
			t.Error(err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}
