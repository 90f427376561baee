package recode_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vdefs/fs"
)

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
