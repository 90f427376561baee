package check_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde"
	"vdefs/vde/check"
	"vdefs/vde/meta"
)

// plugFS calls pull before every operation that changes what is on disk.
type plugFS struct {
	vfs.FS
	pull func(what string)
}

type plugFile struct {
	vfs.File
	fs   *plugFS
	name string
}

func (f *plugFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &plugFile{file, f, name}, nil
}

func (f *plugFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f.pull("create " + name)
	file, err := f.FS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f *plugFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	return f.wrap(name, file, err)
}

func (f *plugFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	return f.wrap(name, file, err)
}

func (f *plugFS) Rename(from, to string) error {
	f.pull("rename " + to)
	return f.FS.Rename(from, to)
}

func (f *plugFS) Remove(name string) error {
	f.pull("remove " + name)
	return f.FS.Remove(name)
}

func (f *plugFS) Unwrap() vfs.FS { return f.FS }

func (f *plugFile) Write(p []byte) (int, error) {
	f.fs.pull("write " + f.name)
	return f.File.Write(p)
}

func (f *plugFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.pull(fmt.Sprintf("write %s at %d", f.name, off))
	return f.File.WriteAt(p, off)
}

func (f *plugFile) Sync() error     { f.fs.pull("sync " + f.name); return f.File.Sync() }
func (f *plugFile) SyncData() error { f.fs.pull("sync " + f.name); return f.File.SyncData() }
func (f *plugFile) SyncTo(n int64) (bool, error) {
	f.fs.pull("sync " + f.name)
	return f.File.SyncTo(n)
}

const restoredSlot = 2

// fillGroup makes three files in the group, named in the root, with contents and shared blocks that depend on seed.
func fillGroup(t *testing.T, e *vde.Engine, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	index := uint64(0)
	apply := func(change func(tx *vde.Tx) error) {
		t.Helper()
		index++
		tx, err := e.Begin(restoredSlot, index, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := change(tx); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rest(); err != nil {
			t.Fatal(err)
		}
	}
	var files []meta.Ino
	for i := range 3 {
		apply(func(tx *vde.Tx) error {
			root, err := tx.Inode(meta.RootIno)
			if err != nil {
				return err
			}
			in := tx.NewInode()
			in.Mode, in.Nlink = unix.S_IFREG|0o600, 1
			files = append(files, in.Ino)
			tx.AddDirent(root, fmt.Sprint("file", i), in.Ino, in.Mode)
			return tx.SetFact(fmt.Sprint("fact", seed, i), []byte("value"))
		})
	}
	for range 25 {
		ino, twin := files[rng.IntN(3)], files[rng.IntN(3)]
		off, data := rng.Uint64N(60_000), pattern(byte(rng.Uint64()), 1+rng.IntN(20_000))
		apply(func(tx *vde.Tx) error {
			in, err := tx.Inode(ino)
			if err != nil {
				return err
			}
			tx.SetInode(in)
			switch rng.IntN(5) {
			case 0:
				return tx.Preallocate(in, off, off+10_000)
			case 1:
				dst, err := tx.Inode(twin)
				if err != nil || ino == twin || in.Size < 3*4096 {
					return err
				}
				tx.SetInode(dst)
				dst.Size = max(dst.Size, 3*4096)
				return tx.Share(in, 0, dst, 0, 3)
			}
			return tx.WriteData(in, off, data)
		})
	}
	e.LogDurable(restoredSlot, index)
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
}

func openEngine(t *testing.T, f vfs.FS) *vde.Engine {
	t.Helper()
	e, err := vde.Open(storeDir, vde.OpenOptions{FS: f, Logger: quiet(), CheckpointEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func digest(t *testing.T, e *vde.Engine) string {
	t.Helper()
	d, err := e.Digest(context.Background(), restoredSlot)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Whenever the plug is pulled while a group is restored, the old group is there or the new one, and the store is sound.
func TestRestoreInterrupted(t *testing.T) {
	source := vfs.NewMem()
	if _, err := vde.Format(storeDir, vde.FormatOptions{Size: 3 << 20, FS: source}); err != nil {
		t.Fatal(err)
	}
	from := openEngine(t, source)
	if err := from.CreateGroup(restoredSlot); err != nil {
		t.Fatal(err)
	}
	fillGroup(t, from, 1)
	snap, err := from.Snapshot(restoredSlot)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := io.ReadAll(snap)
	if err != nil {
		t.Fatal(err)
	}
	after := digest(t, from)
	if err := snap.Close(); err != nil {
		t.Fatal(err)
	}
	if err := from.Close(); err != nil {
		t.Fatal(err)
	}

	mem := vfs.NewCrashableMem()
	if _, err := vde.Format(storeDir, vde.FormatOptions{Size: 2 << 20, FS: mem}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	armed, points, news := false, 0, 0
	rng := rand.New(rand.NewPCG(3, 3))
	const applied = 700
	before := ""
	look := func(what string, percent int) {
		clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
		points++
		e := openEngine(t, clone)
		g, _ := e.Group(restoredSlot)
		switch d := digest(t, e); {
		case d == after && g.Applied == applied && g.Term == 9:
			news++
		case d == before && g.Applied < applied && g.Term == 1:
		default:
			t.Errorf("before %s, %d %% kept: neither the old group nor the new: applied %d, term %d", what, percent, g.Applied, g.Term)
		}
		if err := e.Close(); err != nil {
			t.Errorf("before %s: %v", what, err)
		}
		if r := runCheck(t, &sample{MemFS: clone}, check.Options{Data: true}); len(r.Findings) > 0 {
			t.Errorf("before %s, %d %% kept:%s", what, percent, describe(r))
		}
	}
	to := openEngine(t, &plugFS{mem, func(what string) {
		mu.Lock()
		defer mu.Unlock()
		if armed && !t.Failed() {
			look(what, []int{0, 50, 100}[points%3])
		}
	}})
	if err := to.CreateGroup(restoredSlot); err != nil {
		t.Fatal(err)
	}
	fillGroup(t, to, 2)
	before = digest(t, to)
	if before == after {
		t.Fatal("both groups are the same")
	}
	arm := func(on bool) {
		mu.Lock()
		armed = on
		mu.Unlock()
	}
	arm(true)
	if err := to.Restore(restoredSlot, applied, 9, bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	arm(false)
	during := news
	look("the end", 0)
	if points < 20 || news != during+1 {
		t.Errorf("%d points, the new group at %d of them, and at the end %v", points, during, news > during)
	}
	t.Logf("%d points, the new group at %d of them", points, news)
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if r := runCheck(t, &sample{MemFS: mem}, check.Options{Data: true}); len(r.Findings) > 0 {
		t.Errorf("at the end:%s", describe(r))
	}
}
