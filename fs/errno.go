package fs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

// ToErrno is the one way from an error to what a system call returns: the syscall.Errno in its chain, EINTR for a
// cancelled context, ETIMEDOUT for one past its deadline, EIO for everything else, 0 for nil.
func ToErrno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(syscall.Errno); ok {
		return wireErrno(errno)
	}
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return wireErrno(errno)
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	}
	return syscall.EIO
}

// wireErrno keeps errnos off the wire that mean something else there: ENOSYS would switch an operation off for the
// whole life of the mount, and an error of 0 would be a success with an empty answer.
func wireErrno(errno syscall.Errno) syscall.Errno {
	switch errno {
	case syscall.ENOSYS:
		return syscall.EOPNOTSUPP
	case 0:
		return syscall.EIO
	}
	return errno
}

// status turns an error of the volume into an answer. EIO is logged, as the caller learns no more than that.
func (f *filesystem) status(op op, ino meta.Ino, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno := ToErrno(err)
	f.stats.errors.Add(1)
	if errno == syscall.EIO {
		f.log.WithError(err).WithField("op", op.String()).WithField("ino", uint64(ino)).Error("operation failed")
	}
	return fuse.Status(errno)
}
