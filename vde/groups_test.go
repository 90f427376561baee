package vde

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/vde/meta"
)

// write is a transaction that writes into a file.
func write(t testing.TB, l *testLog, ino meta.Ino, off uint64, data []byte) {
	t.Helper()
	if err := change(l, ino, func(tx *Tx, in *meta.Inode) error { return tx.WriteData(in, off, data) }); err != nil {
		t.Fatal(err)
	}
}

// read returns what is in a file.
func read(t testing.TB, e *Engine, ino meta.Ino) []byte {
	t.Helper()
	in, err := e.meta.Inode(ino)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, in.Size)
	if _, err := e.Read(context.Background(), ino, 0, buf); err != nil {
		t.Fatal(err)
	}
	return buf
}

// ofGroup counts the keys of a group, and the reference counts of the store.
func ofGroup(t testing.TB, e *Engine, slot uint16) (keys, refs int) {
	t.Helper()
	err := e.meta.Walk(func(k, _ []byte) (bool, error) {
		key, err := meta.DecodeKey(k)
		switch {
		case err != nil:
			return false, err
		case key.Kind == 'r':
			refs++
		case key.Kind == 's':
		case key.Kind == 'g' || key.Kind == 'f':
			if key.Number == uint64(slot) {
				keys++
			}
		case key.Ino.Group() == slot:
			keys++
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys, refs
}

// Groups are made with gaps, last, and go with all they have.
func TestGroups(t *testing.T) {
	mem := vfs.NewCrashableMem()
	e, l := openTest(t, mem, 4<<20)
	for _, slot := range []uint16{7, 3, 65535} {
		if err := e.CreateGroup(slot); err != nil {
			t.Fatal(err)
		}
		if err := e.CreateGroup(slot); !errors.Is(err, ErrGroupExists) {
			t.Errorf("made twice: %v", err)
		}
	}
	// Nothing else makes the groups durable.
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	if e2, _ := reopenTest(t, clone); !slices.Equal(e2.Groups(), []uint16{0, 3, 7, 65535}) {
		t.Errorf("after a crash there are groups %v", e2.Groups())
	} else if err := e2.Close(); err != nil {
		t.Fatal(err)
	}
	_, before := e.Usage()
	l3, l7 := logOf(t, e, 3), logOf(t, e, 7)
	data := bytes.Repeat([]byte("group"), 10_000)
	root, of7 := newFile(t, l), newFile(t, l7)
	write(t, l, root, 0, data)
	write(t, l7, of7, 0, data[:20_000])
	_, between := e.Usage()
	a, b := newFile(t, l3), newFile(t, l3)
	if a != meta.MakeIno(3, 1) || b.Group() != 3 {
		t.Errorf("inodes of group 3: %x, %x", a, b)
	}
	write(t, l3, a, 0, data)
	if err := l3.apply(func(tx *Tx) error {
		src, err := tx.Inode(a)
		if err != nil {
			return err
		}
		dst, err := tx.Inode(b)
		if err != nil {
			return err
		}
		tx.SetXattr(a, "user.x", []byte("y"))
		tx.SetOrphan(b)
		tx.AddDirent(dst, "name", a, src.Mode)
		if err := tx.SetFact("fact", nil); err != nil {
			return err
		}
		other, err := tx.Inode(of7)
		if err != nil {
			return err
		}
		if err := tx.Share(src, 0, other, 0, 1); err == nil {
			t.Error("blocks are shared with another group")
		}
		return tx.Share(src, 0, dst, 0, 5)
	}); err != nil {
		t.Fatal(err)
	}
	write(t, l3, a, 0, data[:8192]) // in place or not: some of it waits in memory
	write(t, l3, a, 9*blockSize, data[:4096])

	if err := e.RemoveGroup(0); err == nil {
		t.Error("group 0 can be removed")
	}
	if err := e.RemoveGroup(9); !errors.Is(err, ErrNoGroup) {
		t.Errorf("a group that is not there: %v", err)
	}
	if err := e.RemoveGroup(3); err != nil {
		t.Fatal(err)
	}
	if keys, refs := ofGroup(t, e, 3); keys > 0 || refs > 0 {
		t.Errorf("%d keys and %d reference counts are left", keys, refs)
	}
	if _, free := e.Usage(); free != between || e.alloc.FreeBlocks() != between {
		t.Errorf("%d blocks free (%d now), expected %d; %d before all", free, e.alloc.FreeBlocks(), between, before)
	}
	if n := e.overlay.size(); n > 0 {
		t.Errorf("%d blocks of the group wait to be written", n)
	}
	if _, err := e.Begin(3, 100, 1); err == nil {
		t.Error("a transaction of the removed group")
	}
	// The next group of that slot has a log of its own: nothing of it is known to be durable.
	if err := e.CreateGroup(3); err != nil {
		t.Fatal(err)
	}
	if e.overlay.isDurable(3, 1) {
		t.Error("entry 1 of the new group is taken for durable")
	}
	l3 = logOf(t, e, 3)
	if again := newFile(t, l3); again != a {
		t.Errorf("first inode %x, expected %x", again, a)
	}
	if !bytes.Equal(read(t, e, root), data) || !bytes.Equal(read(t, e, of7), data[:20_000]) {
		t.Error("files of other groups differ")
	}
	if err := checkMapping(e); err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e, _ = reopenTest(t, mem)
	defer e.Close()
	if g, ok := e.Group(3); !ok || g.Inodes != 1 || g.Applied != l3.n || !slices.Equal(e.Groups(), []uint16{0, 3, 7, 65535}) {
		t.Errorf("after reopening: group 3 is %+v, groups %v", g, e.Groups())
	}
	if err := checkMapping(e); err != nil {
		t.Error(err)
	}
}

// TestGroupsSideBySide has groups that write, share, free and take checkpoints at once; run with -race.
func TestGroupsSideBySide(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 16<<20)
	defer e.Close()
	logs := []*testLog{l}
	for slot := uint16(1); slot < 3; slot++ {
		if err := e.CreateGroup(slot); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, logOf(t, e, slot))
	}
	var wg sync.WaitGroup
	for i, l := range logs {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			ops := makeOps(rng, 120)
			for j, op := range ops {
				if err := l.apply(op.apply); err != nil {
					t.Errorf("group %d, %v: %v", l.slot, op, err)
					return
				}
				if j%40 == i {
					if err := e.Checkpoint(); err != nil {
						t.Error(err)
					}
				}
			}
			// The group is what it would be alone.
			alone, l0 := openTest(t, vfs.NewMem(), 16<<20)
			defer alone.Close()
			if l.slot != 0 {
				if err := alone.CreateGroup(l.slot); err != nil {
					t.Error(err)
					return
				}
				l0 = logOf(t, alone, l.slot)
			}
			for _, op := range ops {
				if err := l0.apply(op.apply); err != nil {
					t.Error(err)
					return
				}
			}
			if got, want := digestOf(t, e, l.slot), digestOf(t, alone, l.slot); l.slot != 0 && got != want {
				t.Errorf("group %d differs from one that was alone", l.slot)
			}
		})
	}
	wg.Wait()
	if err := checkMapping(e); err != nil {
		t.Fatal(err)
	}
}

func digestOf(t testing.TB, e *Engine, slot uint16) string {
	t.Helper()
	d, err := e.Digest(context.Background(), slot)
	if err != nil {
		t.Error(err)
	}
	return d
}
