package fs

import (
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// lockModel is the dumb twin of the locks of one inode and class: for each byte, who holds it how.
type lockModel [16]map[uint64]heldByte

type heldByte struct {
	exclusive bool
	handle    uint64
}

func (m *lockModel) free(want lock) bool {
	for b := want.start; b <= want.end; b++ {
		for owner, held := range m[b] {
			if owner != want.owner && (held.exclusive || want.exclusive) {
				return false
			}
		}
	}
	return true
}

func (m *lockModel) set(want lock) {
	for b := want.start; b <= want.end; b++ {
		m[b][want.owner] = heldByte{want.exclusive, want.handle}
	}
}

func (m *lockModel) drop(gone func(b, owner uint64, h heldByte) bool) {
	for b := range m {
		for owner, h := range m[b] {
			if gone(uint64(b), owner, h) {
				delete(m[b], owner)
			}
		}
	}
}

func TestLockTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newLockTable()
		models := map[uint64]*lockModel{}
		for node := uint64(1); node <= 2; node++ {
			m := new(lockModel)
			for b := range m {
				m[b] = map[uint64]heldByte{}
			}
			models[node] = m
		}
		draw := func(t *rapid.T) (uint64, lock) {
			start := rapid.Uint64Range(0, 15).Draw(t, "start")
			return rapid.Uint64Range(1, 2).Draw(t, "node"), lock{
				start: start, end: rapid.Uint64Range(start, 15).Draw(t, "end"), owner: rapid.Uint64Range(1, 3).Draw(t, "owner"),
				handle: rapid.Uint64Range(1, 4).Draw(t, "handle"), exclusive: rapid.Bool().Draw(t, "exclusive"),
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				node, want := draw(t)
				errno := table.take(node, posixLock, want)
				if free := models[node].free(want); free != (errno == 0) {
					t.Fatalf("take %+v: %v, but free is %v", want, errno, free)
				}
				if errno == 0 {
					models[node].set(want)
				}
			},
			"test": func(t *rapid.T) {
				node, want := draw(t)
				found, ok := table.test(node, posixLock, want)
				if free := models[node].free(want); free == ok {
					t.Fatalf("test %+v: found %v, but free is %v", want, ok, free)
				}
				if ok && !found.conflicts(&want) {
					t.Fatalf("%+v is not in the way of %+v", found, want)
				}
			},
			"release": func(t *rapid.T) {
				node, what := draw(t)
				table.release(node, posixLock, what)
				models[node].drop(func(b, owner uint64, _ heldByte) bool { return owner == what.owner && b >= what.start && b <= what.end })
			},
			"releaseOwner": func(t *rapid.T) {
				node, what := draw(t)
				table.releaseOwner(node, what.owner)
				models[node].drop(func(_, owner uint64, _ heldByte) bool { return owner == what.owner })
			},
			"releaseHandle": func(t *rapid.T) {
				node, what := draw(t)
				table.releaseHandle(node, what.handle)
				models[node].drop(func(_, _ uint64, h heldByte) bool { return h.handle == what.handle })
			},
			"": func(t *rapid.T) {
				for node, model := range models {
					held := 0
					if f := table.files[node]; f != nil {
						for i, l := range f.held[posixLock] {
							for b := l.start; b <= l.end; b++ {
								if model[b][l.owner] != (heldByte{l.exclusive, l.handle}) {
									t.Fatalf("byte %d of %+v is not in the model", b, l)
								}
								held++
							}
							for _, m := range f.held[posixLock][i+1:] {
								if l.owner == m.owner && l.overlaps(&m) {
									t.Fatalf("%+v and %+v overlap", l, m)
								}
							}
						}
						if held == 0 {
							t.Fatal("an inode without locks is kept")
						}
					}
					expected := 0
					for b := range model {
						expected += len(model[b])
					}
					if held != expected {
						t.Fatalf("%d bytes locked, expected %d", held, expected)
					}
				}
			},
		})
	})
}

func TestLockWait(t *testing.T) {
	table := newLockTable()
	never := make(chan struct{})
	whole := func(owner uint64) lock { return lock{end: 1<<63 - 1, owner: owner, handle: owner, exclusive: true} }
	waits := func(cancel <-chan struct{}, node, owner uint64) chan syscall.Errno {
		done := make(chan syscall.Errno, 1)
		go func() { done <- table.wait(cancel, node, posixLock, whole(owner)) }()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			table.mu.Lock()
			f := table.files[node]
			waiting := f != nil && len(f.waiters) > 0
			table.mu.Unlock()
			if waiting {
				return done
			}
			if time.Now().After(deadline) {
				t.Fatal("does not wait")
			}
		}
	}
	expect := func(what string, got, want syscall.Errno) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	// 1 holds a and waits for b, 2 holds b and waits for c, 3 holds c: if it waited for a, all would wait for ever.
	const a, b, c = 1, 2, 3
	expect("take a", table.take(a, posixLock, whole(1)), 0)
	expect("take b", table.take(b, posixLock, whole(2)), 0)
	expect("take c", table.take(c, posixLock, whole(3)), 0)
	first := waits(never, b, 1)
	second := waits(never, c, 2)
	expect("deadlock", table.wait(never, a, posixLock, whole(3)), syscall.EDEADLK)
	// flock does not look for deadlocks, and is of another class.
	expect("flock", table.wait(never, a, flockLock, whole(3)), 0)
	table.releaseOwner(c, 3)
	expect("second", <-second, 0)
	table.releaseHandle(b, 2)
	expect("first", <-first, 0)
	cancel := make(chan struct{})
	third := waits(cancel, b, 4)
	close(cancel)
	expect("interrupted", <-third, syscall.EINTR)
	// A flock changes its kind: given back, then taken if it can be.
	expect("shared", table.take(9, flockLock, lock{owner: 1}), 0)
	expect("shared too", table.take(9, flockLock, lock{owner: 2}), 0)
	expect("exclusive", table.take(9, flockLock, lock{owner: 1, exclusive: true}), syscall.EAGAIN)
	expect("the other, exclusive", table.take(9, flockLock, lock{owner: 2, exclusive: true}), 0)
}
