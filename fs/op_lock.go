package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// These are asked only with MountOptions.ServerLocks.

// requested is the lock that a request speaks of.
func requested(in *fuse.LkIn) (lockClass, lock) {
	class := posixLock
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		class = flockLock
	}
	return class, lock{
		start: in.Lk.Start, end: in.Lk.End, owner: in.Owner, handle: in.Fh, pid: in.Lk.Pid, exclusive: in.Lk.Typ == syscall.F_WRLCK,
	}
}

func (f *filesystem) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	f.count(opGetlk)
	if f.locks == nil {
		return fuse.ENOSYS
	}
	class, want := requested(in)
	held, ok := f.locks.test(in.NodeId, class, want)
	if !ok {
		out.Lk = fuse.FileLock{Typ: syscall.F_UNLCK}
		return fuse.OK
	}
	out.Lk = fuse.FileLock{Start: held.start, End: held.end, Typ: syscall.F_RDLCK, Pid: held.pid}
	if held.exclusive {
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
	switch {
	case in.Lk.Typ == syscall.F_UNLCK:
		f.locks.release(in.NodeId, class, want)
		return fuse.OK
	case wait:
		return fuse.Status(f.locks.wait(cancel, in.NodeId, class, want))
	default:
		return fuse.Status(f.locks.take(in.NodeId, class, want))
	}
}
