package fs

import (
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"vdefs/fs/advisory"
)

// lockModel is the dumb twin of the locks of one inode and class: for each byte, who holds it how.
type lockModel [16]map[uint64]heldByte

type heldByte struct {
	exclusive bool
	handle    uint64
}

func (m *lockModel) free(want advisory.Lock) bool {
	for b := want.Start; b <= want.End; b++ {
		for owner, held := range m[b] {
			if owner != want.Owner.ID && (held.exclusive || want.Exclusive) {
				return false
			}
		}
	}
	return true
}

func (m *lockModel) set(want advisory.Lock) {
	for b := want.Start; b <= want.End; b++ {
		m[b][want.Owner.ID] = heldByte{want.Exclusive, want.Handle}
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
		draw := func(t *rapid.T) (uint64, advisory.Lock) {
			start := rapid.Uint64Range(0, 15).Draw(t, "start")
			return rapid.Uint64Range(1, 2).Draw(t, "node"), advisory.Lock{
				Start: start, End: rapid.Uint64Range(start, 15).Draw(t, "end"), Owner: advisory.Owner{ID: rapid.Uint64Range(1, 3).Draw(t, "owner")},
				Handle: rapid.Uint64Range(1, 4).Draw(t, "handle"), Exclusive: rapid.Bool().Draw(t, "exclusive"),
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				node, want := draw(t)
				errno := table.take(node, advisory.POSIX, want)
				if free := models[node].free(want); free != (errno == 0) {
					t.Fatalf("take %+v: %v, but free is %v", want, errno, free)
				}
				if errno == 0 {
					models[node].set(want)
				}
			},
			"test": func(t *rapid.T) {
				node, want := draw(t)
				found, ok := table.test(node, advisory.POSIX, want)
				if free := models[node].free(want); free == ok {
					t.Fatalf("test %+v: found %v, but free is %v", want, ok, free)
				}
				if ok && !found.Conflicts(&want) {
					t.Fatalf("%+v is not in the way of %+v", found, want)
				}
			},
			"release": func(t *rapid.T) {
				node, what := draw(t)
				table.release(node, advisory.POSIX, what)
				models[node].drop(func(b, owner uint64, _ heldByte) bool {
					return owner == what.Owner.ID && b >= what.Start && b <= what.End
				})
			},
			"releaseOwner": func(t *rapid.T) {
				node, what := draw(t)
				table.releaseOwner(node, what.Owner.ID)
				models[node].drop(func(_, owner uint64, _ heldByte) bool { return owner == what.Owner.ID })
			},
			"releaseHandle": func(t *rapid.T) {
				node, what := draw(t)
				table.releaseHandle(node, what.Handle)
				models[node].drop(func(_, _ uint64, h heldByte) bool { return h.handle == what.Handle })
			},
			"": func(t *rapid.T) {
				for node, model := range models {
					held := 0
					if f := table.files[node]; f != nil {
						for i, l := range f.Held(advisory.POSIX) {
							for b := l.Start; b <= l.End; b++ {
								if model[b][l.Owner.ID] != (heldByte{l.Exclusive, l.Handle}) {
									t.Fatalf("byte %d of %+v is not in the model", b, l)
								}
								held++
							}
							for _, m := range f.Held(advisory.POSIX)[i+1:] {
								if l.Owner == m.Owner && l.Start <= m.End && m.Start <= l.End {
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
	whole := func(owner uint64) advisory.Lock {
		return advisory.Lock{End: 1<<63 - 1, Owner: advisory.Owner{ID: owner}, Handle: owner, Exclusive: true}
	}
	waits := func(cancel <-chan struct{}, node, owner uint64) chan syscall.Errno {
		done := make(chan syscall.Errno, 1)
		go func() { done <- table.wait(cancel, node, advisory.POSIX, whole(owner)) }()
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
	expect("take a", table.take(a, advisory.POSIX, whole(1)), 0)
	expect("take b", table.take(b, advisory.POSIX, whole(2)), 0)
	expect("take c", table.take(c, advisory.POSIX, whole(3)), 0)
	first := waits(never, b, 1)
	second := waits(never, c, 2)
	expect("deadlock", table.wait(never, a, advisory.POSIX, whole(3)), syscall.EDEADLK)
	// flock does not look for deadlocks, and is of another class.
	expect("flock", table.wait(never, a, advisory.Flock, whole(3)), 0)
	table.releaseOwner(c, 3)
	expect("second", <-second, 0)
	table.releaseHandle(b, 2)
	expect("first", <-first, 0)
	cancel := make(chan struct{})
	third := waits(cancel, b, 4)
	close(cancel)
	expect("interrupted", <-third, syscall.EINTR)
	// A flock changes its kind: given back, then taken if it can be.
	expect("shared", table.take(9, advisory.Flock, advisory.Lock{Owner: advisory.Owner{ID: 1}}), 0)
	expect("shared too", table.take(9, advisory.Flock, advisory.Lock{Owner: advisory.Owner{ID: 2}}), 0)
	expect("exclusive", table.take(9, advisory.Flock, advisory.Lock{Owner: advisory.Owner{ID: 1}, Exclusive: true}), syscall.EAGAIN)
	expect("the other, exclusive", table.take(9, advisory.Flock, advisory.Lock{Owner: advisory.Owner{ID: 2}, Exclusive: true}), 0)
}
