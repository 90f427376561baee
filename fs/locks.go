package fs

import (
	"slices"
	"sync"
	"syscall"
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

type lockClass uint8

const (
	posixLock lockClass = iota
	flockLock
	lockClasses
)

// fileLocks are the locks of one inode.
//
// Invariants: of held, no two of one owner and class overlap, and no two of different owners that overlap are of one class
// with one of them exclusive.
type fileLocks struct {
	held    [lockClasses][]lock
	waiters []*waiter
}

// lock is a lock on a range of bytes.
type lock struct {
	start, end uint64 // both inclusive
	owner      uint64
	handle     uint64
	pid        uint32
	exclusive  bool
}

func (l *lock) overlaps(m *lock) bool { return l.start <= m.end && m.start <= l.end }

func (l *lock) conflicts(m *lock) bool {
	return l.owner != m.owner && l.overlaps(m) && (l.exclusive || m.exclusive)
}

// waiter is a request that waits for a lock.
type waiter struct {
	class lockClass
	want  lock
	again chan struct{} // closed when it may try again
}

func newLockTable() *lockTable { return &lockTable{files: make(map[uint64]*fileLocks)} }

// test returns a lock that stands in the way of want, if there is one.
func (t *lockTable) test(node uint64, class lockClass, want lock) (lock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[node]
	if f == nil {
		return lock{}, false
	}
	if i := f.conflict(class, &want); i >= 0 {
		return f.held[class][i], true
	}
	return lock{}, false
}

// take takes a lock, or fails with EAGAIN.
func (t *lockTable) take(node uint64, class lockClass, want lock) syscall.Errno {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fileLocked(node)
	defer t.dropLocked(node, f)
	return f.tryLocked(class, want)
}

// wait takes a lock as soon as it is free. It fails with EINTR when cancel is closed and with EDEADLK where POSIX locks
// would wait for each other.
func (t *lockTable) wait(cancel <-chan struct{}, node uint64, class lockClass, want lock) syscall.Errno {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		f := t.fileLocked(node)
		if f.tryLocked(class, want) == 0 {
			t.dropLocked(node, f)
			return 0
		}
		if class == posixLock && t.deadlockLocked(f, &want) {
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
func (t *lockTable) release(node uint64, class lockClass, what lock) {
	t.remove(node, func(f *fileLocks) { f.cut(class, &what) })
}

// releaseOwner gives back all POSIX locks of an owner: it closed the file.
func (t *lockTable) releaseOwner(node, owner uint64) {
	t.remove(node, func(f *fileLocks) {
		f.held[posixLock] = slices.DeleteFunc(f.held[posixLock], func(l lock) bool { return l.owner == owner })
	})
}

// releaseHandle gives back all locks that were taken through an open file that is no more.
func (t *lockTable) releaseHandle(node, handle uint64) {
	t.remove(node, func(f *fileLocks) {
		for class := range f.held {
			f.held[class] = slices.DeleteFunc(f.held[class], func(l lock) bool { return l.handle == handle })
		}
	})
}

// remove does something that frees locks, and has all who wait look again.
func (t *lockTable) remove(node uint64, do func(*fileLocks)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[node]
	if f == nil {
		return
	}
	do(f)
	f.wake()
	t.dropLocked(node, f)
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
	if len(f.waiters) == 0 && len(f.held[posixLock]) == 0 && len(f.held[flockLock]) == 0 && t.files[node] == f {
		delete(t.files, node)
	}
}

// deadlockLocked tells whether the owner of want, if it waited for it, would in the end wait for itself. Who waits for
// whom is read off the locks and waiters as they are now.
func (t *lockTable) deadlockLocked(f *fileLocks, want *lock) bool {
	seen := make(map[uint64]bool)
	var reaches func(f *fileLocks, wanted *lock) bool
	reaches = func(f *fileLocks, wanted *lock) bool {
		for i := range f.held[posixLock] {
			holder := &f.held[posixLock][i]
			if !holder.conflicts(wanted) {
				continue
			}
			if holder.owner == want.owner {
				return true
			}
			if seen[holder.owner] {
				continue
			}
			seen[holder.owner] = true
			for _, other := range t.files {
				for _, w := range other.waiters {
					if w.class == posixLock && w.want.owner == holder.owner && reaches(other, &w.want) {
						return true
					}
				}
			}
		}
		return false
	}
	return reaches(f, want)
}

// conflict is the index of a held lock in the way of want, -1 if there is none.
func (f *fileLocks) conflict(class lockClass, want *lock) int {
	return slices.IndexFunc(f.held[class], func(l lock) bool { return l.conflicts(want) })
}

// tryLocked takes a lock or fails with EAGAIN. A flock that changes its kind is given back first, as flock(2) says.
func (f *fileLocks) tryLocked(class lockClass, want lock) syscall.Errno {
	if class == flockLock && slices.ContainsFunc(f.held[class], func(l lock) bool {
		return l.owner == want.owner && l.exclusive != want.exclusive
	}) {
		f.cut(class, &want)
		f.wake()
	}
	if f.conflict(class, &want) >= 0 {
		return syscall.EAGAIN
	}
	weaker := f.cut(class, &want)
	f.held[class] = append(f.held[class], want)
	f.join(class, want.owner)
	if weaker {
		f.wake()
	}
	return 0
}

// cut takes a range away from what an owner has locked, and tells whether there was something exclusive in it.
func (f *fileLocks) cut(class lockClass, what *lock) (exclusive bool) {
	var rest []lock
	for _, l := range f.held[class] {
		if l.owner != what.owner || !l.overlaps(what) {
			rest = append(rest, l)
			continue
		}
		exclusive = exclusive || l.exclusive
		if l.start < what.start {
			left := l
			left.end = what.start - 1
			rest = append(rest, left)
		}
		if l.end > what.end {
			right := l
			right.start = what.end + 1
			rest = append(rest, right)
		}
	}
	f.held[class] = rest
	return exclusive
}

// join makes one of neighbouring locks of an owner that are alike.
func (f *fileLocks) join(class lockClass, owner uint64) {
	locks := f.held[class]
	slices.SortFunc(locks, func(a, b lock) int {
		switch {
		case a.owner != b.owner && a.owner < b.owner, a.owner == b.owner && a.start < b.start:
			return -1
		}
		return 1
	})
	joined := locks[:0]
	for _, l := range locks {
		if n := len(joined); n > 0 && l.owner == owner {
			last := &joined[n-1]
			if last.owner == owner && last.exclusive == l.exclusive && last.handle == l.handle && last.pid == l.pid && last.end+1 == l.start {
				last.end = l.end
				continue
			}
		}
		joined = append(joined, l)
	}
	f.held[class] = joined
}

// wake has everybody who waits for this inode try again.
func (f *fileLocks) wake() {
	for _, w := range f.waiters {
		close(w.again)
	}
	f.waiters = nil
}
