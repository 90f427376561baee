package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/vde"
	"vdefs/vde/check"
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

// TestPlaces: an entry keeps its place when it is renamed in its directory or replaced. With the operation that logs of earlier programs
// have it goes to the end.
func TestPlaces(t *testing.T) {
	ctx := context.Background()
	mem := formatMem(t, 8<<20)
	v := open(t, mem)
	dir, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "d", Mode: unix.S_IFDIR | 0o755})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c", "e"} {
		if _, err := v.Make(ctx, fs.NewNode{Parent: dir.Ino, Name: name, Mode: unix.S_IFREG | 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	list := func() (names string) {
		err := v.ReadDir(ctx, dir.Ino, 0, false, func(e meta.Dirent, _ *meta.Inode) bool {
			names += fmt.Sprint(e.Name, e.Cookie, " ")
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	rename := func(from meta.Ino, old string, to meta.Ino, name string, flags uint32) func() error {
		return func() error { return v.Rename(ctx, from, old, to, name, flags) }
	}
	for _, step := range []struct {
		what string
		do   func() error
		want string
	}{
		{"made", func() error { return nil }, "a3 b4 c5 e6 "},
		{"renamed", rename(dir.Ino, "a", dir.Ino, "x", 0), "x3 b4 c5 e6 "},
		{"and back", rename(dir.Ino, "x", dir.Ino, "a", unix.RENAME_NOREPLACE), "a3 b4 c5 e6 "},
		{"over another", rename(dir.Ino, "a", dir.Ino, "c", 0), "b4 c5 e6 "},
		{"exchanged", rename(dir.Ino, "b", dir.Ino, "e", unix.RENAME_EXCHANGE), "b4 c5 e6 "},
		{"moved out", rename(dir.Ino, "b", meta.RootIno, "b", 0), "c5 e6 "},
		{"moved in", rename(meta.RootIno, "b", dir.Ino, "b", 0), "c5 e6 b7 "},
		{"renamed by an earlier program", func() error {
			_, err := v.change(ctx, &command.Rename{OldParent: dir.Ino, OldName: "c", NewParent: dir.Ino, NewName: "y"})
			return err
		}, "e6 b7 y8 "},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		if got := list(); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}
	want := list()
	if err := v.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	crashed := mem.CrashClone(vfs.CrashCloneCfg{})
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	v = open(t, crashed)
	if got := list(); got != want {
		t.Errorf("after a crash: %s, want %s", got, want)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := check.Run("store", check.Options{FS: crashed})
	if err != nil || len(report.Findings) > 0 {
		t.Errorf("check: %v, %+v", err, report)
	}
}

// TestReadOnly: a volume that became read-only refuses changes, has on disk what was answered before, access times too, and takes changes
// again when it is told to.
func TestReadOnly(t *testing.T) {
	ctx := context.Background()
	mem := formatMem(t, 8<<20)
	v := open(t, mem)
	ino := mkfile(t, v, "a")
	before, err := v.Inode(ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	v.SetAtime(Strictatime)
	time.Sleep(20 * time.Millisecond) // the clock of files is coarse
	v.TouchAtime(ino)
	if err := v.SetReadOnly(ctx, true); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Write(ctx, ino, 0, []byte("data"), 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := v.Rename(ctx, meta.RootIno, "a", meta.RootIno, "b", 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("rename: %v", err)
	}
	v.TouchAtime(ino)
	crashed := open(t, mem.CrashClone(vfs.CrashCloneCfg{}))
	if in, err := crashed.Lookup(ctx, meta.RootIno, "a"); err != nil || !before.Atime.Before(in.Atime) {
		t.Errorf("after a crash: %v, access time %v, made with %v", err, in.Atime, before.Atime)
	}
	if err := crashed.Close(); err != nil {
		t.Error(err)
	}
	if err := v.SetReadOnly(ctx, false); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Write(ctx, ino, 0, []byte("data"), 0); err != nil {
		t.Errorf("write: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
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

// TestRefusedReference has the log hold the record of a large write that was refused, as the file had grown meanwhile.
// What the record names must not be given out while a crash may replay it.
func TestRefusedReference(t *testing.T) {
	ctx := context.Background()
	mem := formatMem(t, 4<<20)
	v := open(t, mem)
	ino := mkfile(t, v, "a")
	refused := bytes.Repeat([]byte{1}, 16*4096)
	if _, err := v.Write(ctx, ino, 0, bytes.Repeat([]byte{2}, 9000), 0); err != nil {
		t.Fatal(err)
	}
	_, err := v.proposeRef(ctx, ino, 0, 100, refused, 0) // ends in the middle of a block that the file goes on behind
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("a write whose last block would cut the file off: %v, want EAGAIN", err)
	}
	v.refMin = 4096
	// All but a few blocks: refused ones are among them if they are free already.
	_, free := v.eng.Usage()
	data := bytes.Repeat([]byte{3}, int(free-4)*4096)
	other := mkfile(t, v, "b")
	if _, err := v.Write(ctx, other, 0, data, 0); err != nil {
		t.Fatal(err)
	}
	if err := v.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	w, err := Open("store", Options{FS: mem.CrashClone(vfs.CrashCloneCfg{}), Logger: quiet(), SegmentSize: 1 << 20})
	if err != nil {
		t.Fatalf("open after a crash: %v", err)
	}
	if !bytes.Equal(readAll(t, w, other), data) || len(readAll(t, w, ino)) != 9000 {
		t.Error("contents differ after the crash")
	}
	for _, v := range []*Volume{w, v} {
		if err := v.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		if total, free := v.eng.Usage(); total-free != uint64(3+len(data)/4096) {
			t.Errorf("%d blocks are used, want %d: the refused ones are not free again", total-free, 3+len(data)/4096)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestShareOfTheEnd: a last block that is shared whole must be the end of both files when that is applied.
func TestShareOfTheEnd(t *testing.T) {
	ctx := context.Background()
	v := open(t, formatMem(t, 4<<20))
	defer v.Close()
	for _, c := range []struct {
		name              string
		src, dst, dstSize int
		want              error
	}{
		{"both end there", 5000, 0, 5000, nil},
		{"destination ends before", 5000, 4500, 5000, nil},
		{"destination goes on", 5000, 6000, 5000, syscall.EAGAIN},
		{"source goes on", 6000, 0, 5000, syscall.EAGAIN},
		{"source ends before", 4500, 0, 5000, syscall.EAGAIN},
		{"whole blocks", 8192, 10000, 8192, nil},
	} {
		src, dst := mkfile(t, v, "src "+c.name), mkfile(t, v, "dst "+c.name)
		for ino, n := range map[meta.Ino]int{src: c.src, dst: c.dst} {
			if _, err := v.Write(ctx, ino, 0, bytes.Repeat([]byte{9}, n), 0); err != nil {
				t.Fatal(err)
			}
		}
		_, err := v.change(ctx, &command.Share{Src: src, Dst: dst, Count: 2, DstSize: uint64(c.dstSize)})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
