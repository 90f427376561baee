package image

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

const (
	pushMin = 128 << 10 // bytes, from which a write is pushed out at once
	pushMax = 8 << 20   // bytes that are being pushed out
)

// pushOut pushes large writes out to the disk as they come, and has the kernel forget them: the mount above holds the same
// bytes in its cache; memory that is used again is much faster than memory that is new, above all in a virtual machine that has
// to ask its host for it; and a sync finds little left to do. What makes a write durable is Sync.
type pushOut struct {
	on    bool // constant once the image is in use
	mu    sync.Mutex
	queue []span // being written by the kernel, oldest first; guarded by mu
	bytes int64  // of queue; guarded by mu
}

// span is a range of bytes of the image.
type span struct{ off, n int64 }

// wrote is told of a write to bytes [off, off+n) of the image; it waits for the disk while too much is being pushed out. An error is
// that of a write to the disk: the kernel tells it once for this file, to whoever asks first, and a later sync would say that
// all is well.
func (b *pushOut) wrote(file vfs.File, off, n int64) error {
	fd := file.Fd()
	if !b.on || n < pushMin || fd == vfs.InvalidFd {
		return nil
	}
	err := syncRange(fd, span{off, n}, unix.SYNC_FILE_RANGE_WRITE)
	b.mu.Lock()
	b.queue, b.bytes = append(b.queue, span{off, n}), b.bytes+n
	var done []span
	for b.bytes > pushMax {
		done = append(done, b.queue[0])
		b.bytes -= b.queue[0].n
		b.queue = b.queue[1:]
	}
	b.mu.Unlock()
	for _, s := range done {
		err = errors.Join(err, syncRange(fd, s, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER))
		_ = unix.Fadvise(int(fd), s.off, s.n, unix.FADV_DONTNEED) // only a hint
	}
	return err
}

// syncRange is sync_file_range(2). Where there is no such thing nothing is pushed out, and nothing lost.
func syncRange(fd uintptr, s span, flags int) error {
	err := unix.SyncFileRange(int(fd), s.off, s.n, flags)
	if err == nil || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESPIPE) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return fmt.Errorf("write of %d bytes at %d of the image to the disk: %w", s.n, s.off, err)
}
