package fs

import (
	"slices"
	"sync"
	"syscall"

	"vdefs/fs/advisory"
)

// lockTable keeps the advisory locks of files, for mounts with MountOptions.ServerLocks.
//
// A POSIX lock belongs to a process (to its table of files, to be exact), an OFD lock to an open file; they are told
// apart by their owner alone and conflict with each other. Those of flock(2) are of a class of their own. What the kernel
// does at close: FLUSH with the owner for POSIX locks, RELEASE for those of an open file (which it does not name for OFD
// locks; so each lock remembers the handle it was taken through).
type lockTable struct {
	mu sync.Mutex
	// by node id, those that have a lock or a waiter; guarded by mu
	files map[uint64]*fileLocks
}

// fileLocks are the locks of one inode.
type fileLocks struct {
	advisory.Set
	waiters []*waiter
}

// waiter is a request that waits for a lock.
type waiter struct {
	class advisory.Class
	want  advisory.Lock
	again chan struct{} // closed when it may try again
}

func newLockTable() *lockTable { return &lockTable{files: make(map[uint64]*fileLocks)} }

// test returns a lock that stands in the way of want, if there is one.
func (t *lockTable) test(node uint64, class advisory.Class, want advisory.Lock) (advisory.Lock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[node]; f != nil {
		if l := f.Conflict(class, &want); l != nil {
			return *l, true
		}
	}
	return advisory.Lock{}, false
}

// take takes a lock, or fails with EAGAIN.
func (t *lockTable) take(node uint64, class advisory.Class, want advisory.Lock) syscall.Errno {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fileLocked(node)
	defer t.dropLocked(node, f)
	if !f.tryLocked(class, want) {
		return syscall.EAGAIN
	}
	return 0
}

// wait takes a lock as soon as it is free. It fails with EINTR when cancel is closed and with EDEADLK where POSIX locks
// would wait for each other.
func (t *lockTable) wait(cancel <-chan struct{}, node uint64, class advisory.Class, want advisory.Lock) syscall.Errno {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		f := t.fileLocked(node)
		if f.tryLocked(class, want) {
			t.dropLocked(node, f)
			return 0
		}
		if class == advisory.POSIX && t.deadlockLocked(f, &want) {
			t.dropLocked(node, f)
			return syscall.EDEADLK
		}
		w := &waiter{class, want, make(chan struct{})}
		f.waiters = append(f.waiters, w)
		t.mu.Unlock()
		var cancelled bool
		select {
		case <-w.again:
		case <-cancel:
			cancelled = true
		}
		t.mu.Lock()
		if i := slices.Index(f.waiters, w); i >= 0 {
			f.waiters = slices.Delete(f.waiters, i, i+1)
		}
		t.dropLocked(node, f)
		if cancelled {
			return syscall.EINTR
		}
	}
}

// release gives back what an owner has locked in a range.
func (t *lockTable) release(node uint64, class advisory.Class, what advisory.Lock) {
	t.remove(node, func(f *fileLocks) { f.Release(class, what) })
}

// releaseOwner gives back all POSIX locks of an owner: it closed the file. It tells whether there may have been some.
func (t *lockTable) releaseOwner(node, owner uint64) bool {
	return t.remove(node, func(f *fileLocks) { f.ReleaseOwner(advisory.Owner{ID: owner}) })
}

// releaseHandle gives back all locks that were taken through an open file that is no more, likewise.
func (t *lockTable) releaseHandle(node, handle uint64) bool {
	return t.remove(node, func(f *fileLocks) { f.ReleaseHandle(0, handle) })
}

// undo takes back what take or wait has just given, in favour of what the owner held before.
func (t *lockTable) undo(node uint64, class advisory.Class, taken advisory.Lock, before []advisory.Lock) {
	t.remove(node, func(f *fileLocks) {
		f.Release(class, taken)
		for _, l := range before {
			f.Take(class, l)
		}
	})
}

// owned returns what an owner holds.
func (t *lockTable) owned(node uint64, class advisory.Class, owner advisory.Owner) (locks []advisory.Lock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[node]; f != nil {
		for _, l := range f.Held(class) {
			if l.Owner == owner {
				locks = append(locks, l)
			}
		}
	}
	return locks
}

// remove does something that frees locks, and has all who wait look again. It tells whether the inode had any.
func (t *lockTable) remove(node uint64, do func(*fileLocks)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[node]
	if f == nil {
		return false
	}
	had := !f.Empty()
	do(f)
	f.wake()
	t.dropLocked(node, f)
	return had
}

func (t *lockTable) fileLocked(node uint64) *fileLocks {
	f := t.files[node]
	if f == nil {
		f = new(fileLocks)
		t.files[node] = f
	}
	return f
}

// dropLocked forgets an inode without locks and waiters.
func (t *lockTable) dropLocked(node uint64, f *fileLocks) {
	if len(f.waiters) == 0 && f.Empty() && t.files[node] == f {
		delete(t.files, node)
	}
}

// deadlockLocked tells whether the owner of want, if it waited for it, would in the end wait for itself. Who waits for
// whom is read off the locks and waiters as they are now.
func (t *lockTable) deadlockLocked(f *fileLocks, want *advisory.Lock) bool {
	seen := make(map[advisory.Owner]bool)
	var reaches func(f *fileLocks, wanted *advisory.Lock) bool
	reaches = func(f *fileLocks, wanted *advisory.Lock) bool {
		held := f.Held(advisory.POSIX)
		for i := range held {
			holder := &held[i]
			if !holder.Conflicts(wanted) {
				continue
			}
			if holder.Owner == want.Owner {
				return true
			}
			if seen[holder.Owner] {
				continue
			}
			seen[holder.Owner] = true
			for _, other := range t.files {
				for _, w := range other.waiters {
					if w.class == advisory.POSIX && w.want.Owner == holder.Owner && reaches(other, &w.want) {
						return true
					}
				}
			}
		}
		return false
	}
	return reaches(f, want)
}

// tryLocked takes a lock if it is free.
func (f *fileLocks) tryLocked(class advisory.Class, want advisory.Lock) bool {
	ok, freed := f.Take(class, want)
	if freed {
		f.wake()
	}
	return ok
}

// wake has everybody who waits for this inode try again.
func (f *fileLocks) wake() {
	for _, w := range f.waiters {
		close(w.again)
	}
	f.waiters = nil
}
