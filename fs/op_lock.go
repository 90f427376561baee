package fs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/fs/advisory"
	"vdefs/vde/meta"
)

// These are asked only with MountOptions.ServerLocks.

// SharedLocker is a Volume whose advisory locks hold against other mounts of it too. A mount asks it after its own table,
// where it finds conflicts among its own processes and deadlocks between them: it is asked only for locks that no other
// owner of this mount has.
type SharedLocker interface {
	// TakeLock takes a lock. EAGAIN if another mount's is in the way; with wait it comes back when that is gone, or
	// with EINTR when cancel is closed.
	TakeLock(ctx context.Context, cancel <-chan struct{}, ino meta.Ino, class advisory.Class, want advisory.Lock, wait bool) error
	// TestLock returns a lock of another mount that is in the way.
	TestLock(ctx context.Context, ino meta.Ino, class advisory.Class, want advisory.Lock) (held advisory.Lock, found bool, err error)
	// LocksGone says that an owner of this mount has no lock of the file any more.
	LocksGone(ino meta.Ino, class advisory.Class, owner advisory.Owner)
	// ForgetLock says that a TakeLock failed which may have been done all the same, and that its owner had nothing in the range before: what it
	// may have taken is given back as Unlock does. It returns at once.
	ForgetLock(ino meta.Ino, class advisory.Class, what advisory.Lock)
	// Unlock gives a range back, UnlockOwner all POSIX locks of an owner, UnlockHandle all taken through a handle. An error says
	// that this could not be done yet: it is done later, and before the next TakeLock of the file.
	Unlock(ctx context.Context, ino meta.Ino, class advisory.Class, what advisory.Lock) error
	UnlockOwner(ctx context.Context, ino meta.Ino, owner uint64) error
	UnlockHandle(ctx context.Context, ino meta.Ino, handle uint64) error
}

// requested is the lock that a request speaks of.
func requested(in *fuse.LkIn) (advisory.Class, advisory.Lock) {
	class := advisory.POSIX
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		class = advisory.Flock
	}
	return class, advisory.Lock{
		Start: in.Lk.Start, End: in.Lk.End, Owner: advisory.Owner{ID: in.Owner}, Handle: in.Fh, PID: in.Lk.Pid, Exclusive: in.Lk.Typ == syscall.F_WRLCK,
	}
}

func (f *filesystem) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	f.count(opGetlk)
	if f.locks == nil {
		return fuse.ENOSYS
	}
	class, want := requested(in)
	held, ok := f.locks.test(in.NodeId, class, want)
	if !ok && f.shared != nil {
		ino := f.ino(in.NodeId)
		var err error
		if held, ok, err = f.shared.TestLock(f.ctx, ino, class, want); err != nil {
			return f.status(opGetlk, ino, err)
		}
	}
	if !ok {
		out.Lk = fuse.FileLock{Typ: syscall.F_UNLCK}
		return fuse.OK
	}
	out.Lk = fuse.FileLock{Start: held.Start, End: held.End, Typ: syscall.F_RDLCK, Pid: held.PID}
	if held.Exclusive {
		out.Lk.Typ = syscall.F_WRLCK
	}
	return fuse.OK
}

func (f *filesystem) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.setLock(cancel, in, false)
}

// SetLkw waits. It is the one operation that a signal interrupts: the kernel starts it anew where the program asked so.
func (f *filesystem) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return f.setLock(cancel, in, true)
}

func (f *filesystem) setLock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	f.count(opSetlk)
	if f.locks == nil {
		return fuse.ENOSYS
	}
	class, want := requested(in)
	ino := f.ino(in.NodeId)
	if in.Lk.Typ == syscall.F_UNLCK {
		f.settle(in.NodeId) // who has the lock next is to see what was written under it
		// The other mounts first: a local waiter that goes on then finds it free there.
		var err error
		if f.shared != nil {
			err = f.shared.Unlock(f.ctx, ino, class, want)
		}
		f.locks.release(in.NodeId, class, want)
		if f.shared != nil && len(f.locks.owned(in.NodeId, class, want.Owner)) == 0 {
			f.shared.LocksGone(ino, class, want.Owner)
		}
		return f.status(opSetlk, ino, err)
	}
	before := f.locks.owned(in.NodeId, class, want.Owner)
	var errno syscall.Errno
	if wait {
		errno = f.locks.wait(cancel, in.NodeId, class, want)
	} else {
		errno = f.locks.take(in.NodeId, class, want)
	}
	if errno != 0 || f.shared == nil {
		return fuse.Status(errno)
	}
	if err := f.shared.TakeLock(f.ctx, cancel, ino, class, want, wait); err != nil {
		if class == advisory.Flock {
			before = nil // flock(2): one that changes its kind is given back first
		}
		f.locks.undo(in.NodeId, class, want, before)
		if len(before) == 0 && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR) {
			f.shared.ForgetLock(ino, class, want)
		}
		return f.status(opSetlk, ino, err)
	}
	return fuse.OK
}

// unlockOwner and unlockHandle give locks back at a close.
func (f *filesystem) unlockOwner(node, owner uint64) {
	if f.locks.releaseOwner(node, owner) && f.shared != nil {
		f.unlocked(node, f.shared.UnlockOwner(f.ctx, f.ino(node), owner))
	}
}

func (f *filesystem) unlockHandle(node, handle uint64) {
	if f.locks.releaseHandle(node, handle) && f.shared != nil {
		f.unlocked(node, f.shared.UnlockHandle(f.ctx, f.ino(node), handle))
	}
}

func (f *filesystem) unlocked(node uint64, err error) {
	if err != nil {
		f.log.WithError(err).WithField("ino", uint64(f.ino(node))).Warn("locks of a closed file are still held: they are given back when the cluster answers")
	}
}
