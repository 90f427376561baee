package replica

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/vde"
	"vdefs/vde/meta"
)

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

func formatMem(t testing.TB, size uint64) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewCrashableMem()
	if _, err := vde.Format("store", vde.FormatOptions{Size: size, FS: mem}); err != nil {
		t.Fatal(err)
	}
	return mem
}

func open(t testing.TB, f vfs.FS) *Volume {
	t.Helper()
	v, err := Open("store", Options{FS: f, Logger: quiet(), SegmentSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mkfile(t testing.TB, v *Volume, name string) meta.Ino {
	t.Helper()
	in, err := v.Make(context.Background(), fs.NewNode{Parent: meta.RootIno, Name: name, Mode: unix.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	return in.Ino
}

func readAll(t testing.TB, v *Volume, ino meta.Ino) []byte {
	t.Helper()
	in, err := v.Inode(context.Background(), ino)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, in.Size)
	n, err := v.Read(context.Background(), ino, 0, b)
	if err != nil || n != len(b) {
		t.Fatalf("read %d of %d bytes: %v", n, len(b), err)
	}
	return b
}

func TestWriteCrashReopen(t *testing.T) {
	ctx := context.Background()
	mem := formatMem(t, 8<<20)
	v := open(t, mem)
	ino := mkfile(t, v, "a")
	data := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for i := range 3 {
		data[0] = byte(i)
		if _, err := v.Write(ctx, ino, 0, data, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Write(ctx, ino, 5000, []byte("partial"), 0); err != nil {
		t.Fatal(err)
	}
	copy(data[5000:], "partial")
	if !bytes.Equal(readAll(t, v, ino), data) {
		t.Fatal("contents differ before the crash")
	}
	if err := v.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	for _, percent := range []int{0, 50, 100} {
		crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(1, uint64(percent)))})
		w := open(t, crashed)
		in, err := w.Lookup(ctx, meta.RootIno, "a")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readAll(t, w, in.Ino), data) {
			t.Fatalf("contents differ after a crash with %d %% of unsynced data kept", percent)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	w := open(t, mem)
	defer w.Close()
	if !bytes.Equal(readAll(t, w, ino), data) {
		t.Fatal("contents differ after a clean close")
	}
}

func TestNamesAndErrors(t *testing.T) {
	ctx := context.Background()
	v := open(t, formatMem(t, 8<<20))
	defer v.Close()
	dir, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "d", Mode: unix.S_IFDIR | 0o755})
	if err != nil {
		t.Fatal(err)
	}
	a := mkfile(t, v, "a")
	for _, c := range []struct {
		what string
		err  error
		want syscall.Errno
	}{
		{"mkdir over a name", func() error {
			_, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "d", Mode: unix.S_IFDIR})
			return err
		}(), syscall.EEXIST},
		{"unlink of a directory", func() error { _, err := v.Unlink(ctx, meta.RootIno, "d"); return err }(), syscall.EISDIR},
		{"rmdir of a file", func() error { _, err := v.Rmdir(ctx, meta.RootIno, "a"); return err }(), syscall.ENOTDIR},
		{"lookup of nothing", func() error { _, err := v.Lookup(ctx, meta.RootIno, "x"); return err }(), syscall.ENOENT},
		{"lookup in a file", func() error { _, err := v.Lookup(ctx, a, "x"); return err }(), syscall.ENOTDIR},
		{"rename below itself", v.Rename(ctx, meta.RootIno, "d", dir.Ino, "e", 0), syscall.EINVAL},
		{"rename of nothing", v.Rename(ctx, meta.RootIno, "x", dir.Ino, "e", 0), syscall.ENOENT},
		{"link of a directory", func() error { _, err := v.Link(ctx, dir.Ino, meta.RootIno, "l"); return err }(), syscall.EPERM},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if err := v.Rename(ctx, meta.RootIno, "a", dir.Ino, "b", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Rmdir(ctx, meta.RootIno, "d"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("rmdir of a full directory: %v", err)
	}
	if err := v.Reference(a); err != nil {
		t.Fatal(err)
	}
	if in, err := v.Unlink(ctx, dir.Ino, "b"); err != nil || in.Nlink != 0 {
		t.Fatalf("unlink: %+v, %v", in, err)
	}
	if _, err := v.Write(ctx, a, 0, []byte("still open"), 0); err != nil {
		t.Fatal(err)
	}
	v.Unreference(a)
	if err := v.reaper.drain(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.Reference(a); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("reference of a freed inode: %v", err)
	}
}

func TestFullStore(t *testing.T) {
	ctx := context.Background()
	v := open(t, formatMem(t, 4<<20))
	defer v.Close()
	ino := mkfile(t, v, "big")
	chunk := bytes.Repeat([]byte{7}, 64<<10)
	off := uint64(0)
	for {
		_, err := v.Write(ctx, ino, off, chunk, 0)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		off += uint64(len(chunk))
	}
	if off < 3<<20 {
		t.Fatalf("full after %d bytes of 4 MiB", off)
	}
	if got := readAll(t, v, ino); uint64(len(got)) != off || !bytes.Equal(got[off-uint64(len(chunk)):], chunk) {
		t.Fatalf("%d bytes are left of %d", len(got), off)
	}
	// What needs no room goes on: whole blocks in place, small or large.
	full := bytes.Repeat([]byte{8}, 256<<10)
	for _, b := range [][]byte{full[:4096], full} {
		for {
			if _, err := v.Write(ctx, ino, off, full[:4096], 0); errors.Is(err, syscall.ENOSPC) {
				break // not a block is left
			} else if err != nil {
				t.Fatal(err)
			}
			off += 4096
		}
		if _, err := v.Write(ctx, ino, 8192, b, 0); err != nil {
			t.Fatalf("overwriting %d bytes on a full store: %v", len(b), err)
		}
		if got := readAll(t, v, ino); !bytes.Equal(got[8192:8192+len(b)], b) {
			t.Fatal("overwritten bytes differ")
		}
	}
	if _, err := v.Unlink(ctx, meta.RootIno, "big"); err != nil {
		t.Fatal(err)
	}
	ino = mkfile(t, v, "again")
	if _, err := v.Write(ctx, ino, 0, chunk, 0); err != nil {
		t.Fatalf("write after freeing: %v", err)
	}
}
