package meta

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

func openForVersions(t *testing.T, barrier func() error) *Store {
	t.Helper()
	if barrier == nil {
		barrier = func() error { return nil }
	}
	s, err := Open("meta", Options{FS: vfs.NewMem(), Create: true, Barrier: barrier, Logger: pebble.DefaultLogger})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// commit commits one batch.
func commit(t *testing.T, s *Store, change func(*Batch)) {
	t.Helper()
	b := s.NewBatch()
	change(b)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

// tables is how many tables in memory there were so far.
func tables(s *Store) int64 {
	m := s.db.Metrics()
	return m.MemTable.Count + m.Flush.Count
}

// TestVersionsAreFlushed changes one key again and again, as a lock file that is made and removed, a file that grows by small writes, an attribute or a
// shared block do. The table in memory must be flushed long before it is full: readers would step over every version.
func TestVersionsAreFlushed(t *testing.T) {
	const ino = Ino(7)
	dirent := Dirent{Name: "lock", Ino: 9, Type: 8 << typeShift}
	for name, change := range map[string]func(b *Batch, i int){
		"name": func(b *Batch, i int) {
			dirent.Cookie = uint64(i)
			b.SetDirent(ino, dirent)
			b.DeleteDirent(ino, dirent)
		},
		"extent":    func(b *Batch, i int) { b.SetExtent(ino, Extent{Phys: 1, Count: uint64(i + 1)}) },
		"attribute": func(b *Batch, i int) { b.SetXattr(ino, "user.a", fmt.Append(nil, i)) },
		"reference": func(b *Batch, i int) { b.SetRef(Ref{Phys: 1, Count: 1, Refs: uint64(i + 2)}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openForVersions(t, nil)
			changes := 0
			for before := tables(s); tables(s) == before; changes++ {
				// Not more: the first table of Pebble is small, and would be full soon.
				if changes == versionLimit {
					t.Fatalf("%d versions of one key, and no flush", changes)
				}
				commit(t, s, func(b *Batch) { change(b, changes) })
			}
			if changes < versionLimit-10 { // the entries by cookie may share the counter of the name
				t.Fatalf("a flush after %d versions", changes)
			}
			for range 10 * versionLimit {
				commit(t, s, func(b *Batch) { change(b, changes) })
				changes++
			}
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			switch name {
			case "name":
				if e, err := s.Dirent(ino, "lock"); !errors.Is(err, ErrNotFound) {
					t.Errorf("after %d changes: %+v, %v", changes, e, err)
				}
			case "extent":
				if e, found, err := s.LastExtent(ino, math.MaxUint64); err != nil || !found || e.Count != uint64(changes) {
					t.Errorf("after %d changes: %+v, %v, %v", changes, e, found, err)
				}
			case "attribute":
				if v, err := s.Xattr(ino, "user.a"); err != nil || string(v) != fmt.Sprint(changes-1) {
					t.Errorf("after %d changes: %q, %v", changes, v, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKeysWithoutVersions changes as many keys once each, and two that only Get reads each time: no flush is asked for.
func TestKeysWithoutVersions(t *testing.T) {
	s := openForVersions(t, nil)
	for i := range 20 * versionLimit {
		commit(t, s, func(b *Batch) {
			b.SetInode(&Inode{Ino: 7, Size: uint64(i)})
			b.SetGroup(0, Group{Applied: uint64(i)})
			b.SetDirent(7, Dirent{Name: fmt.Sprint(i), Ino: 9, Type: 8 << typeShift, Cookie: uint64(i)})
			b.SetExtent(7, Extent{FileBlock: uint64(i), Count: 1})
		})
	}
	s.versions.mu.Lock()
	n, asked := slices.Max(s.versions.counts[:]), s.versions.asked
	s.versions.mu.Unlock()
	if n > versionLimit/10 || asked {
		t.Errorf("%d of %d versions counted, flush asked for: %v", n, versionLimit, asked)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestVersionsOfAStoppedStore goes on committing after the store has stopped: tables are not begun for flushes that will never end.
func TestVersionsOfAStoppedStore(t *testing.T) {
	broken := errors.New("broken")
	var stopped atomic.Bool
	s := openForVersions(t, func() error {
		if stopped.Load() {
			return broken
		}
		return nil
	})
	stopped.Store(true)
	if err := s.Flush(); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	for i := range 4 * versionLimit {
		commit(t, s, func(b *Batch) { b.SetXattr(7, "user.a", fmt.Append(nil, i)) })
	}
	s.versions.mu.Lock()
	asked := s.versions.asked
	s.versions.mu.Unlock()
	if asked {
		t.Error("a flush was asked for")
	}
	if err := s.Close(); err != nil {
		t.Error(err) // the store said why when it stopped
	}
}

// TestVersionsPace asks for no flush while one is under way, nor soon after a slow one.
func TestVersionsPace(t *testing.T) {
	v, now := newVersions(), time.Unix(1000, 0)
	many := slices.Repeat([]uint16{3}, versionLimit)
	if v.add(many[1:], now) {
		t.Error("asks below the limit")
	}
	if v.add([]uint16{4}, now) {
		t.Error("asks for another key")
	}
	if !v.add(many[:1], now) {
		t.Error("does not ask at the limit")
	}
	if v.add(many, now) {
		t.Error("asks again before the first has ended")
	}
	v.ended(now, time.Second)
	if v.add(many[:1], now.Add(versionPause*time.Second-1)) {
		t.Error("asks again at once")
	}
	if !v.add(many[:1], now.Add(versionPause*time.Second)) {
		t.Error("does not ask after the pause")
	}
}
