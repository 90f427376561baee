package recode_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sirupsen/logrus"

	"vdefs/fs"
	"vdefs/fs/replica"
	"vdefs/vde"
)

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
			if r.OriginalSize != int64(len(data)) || r.Size != stat(t, path).Size || r.SHA256 != fmt.Sprintf("%x", sha256.Sum256(data)) {
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
		if err := v.StartPNG("async", 0); err != nil {
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
