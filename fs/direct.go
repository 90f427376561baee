package fs

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A file that is opened with O_DIRECT and O_DSYNC (or O_SYNC) is written past the kernel's cache in every mode, as the kernel
// then lets writes to one file through side by side, each with its sync. Otherwise it sends one WRITE and one FSYNC after the
// other, whoever writes, and eight writers are slower than one.
//
// With its writeback cache the kernel has times of regular files to itself, whatever it is answered, and these writes do not
// move them. So when a GETATTR comes after such writes, the server sets the file's mtime through its own mount, as utimensat(2)
// does, to what the volume has: the kernel takes that over, and the SETATTR that it sends is answered and not done.

// ownTimes are the changes of times that the server makes through its own mount.
type ownTimes struct {
	ready        atomic.Bool // there may be some; what follows is constant from then on
	mountpoint   string
	major, minor uint32        // device of the mount
	limit        chan struct{} // bounds the threads

	threads sync.Map // of thread id (uint32): the node id (uint64) whose times it sets
}

const (
	dropPagesWait   = time.Second
	ownTimesWait    = 50 * time.Millisecond
	ownTimesThreads = 8
)

// begin is called when the mount answers. Without the rights to open files by their handle the server cannot change times.
func (o *ownTimes) begin(mountpoint string) {
	if os.Geteuid() != 0 {
		return
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, mountpoint, 0, unix.STATX_TYPE, &st); err != nil {
		return
	}
	o.mountpoint, o.major, o.minor, o.limit = mountpoint, st.Dev_major, st.Dev_minor, make(chan struct{}, ownTimesThreads)
	o.ready.Store(true)
}

// own tells whether a request is the server's own change of a node's times.
func (o *ownTimes) own(in *fuse.SetAttrIn) bool {
	node, ok := o.threads.Load(in.Pid)
	return ok && node == in.NodeId
}

// pastCache tells whether a file that is opened with these flags is read and written past the kernel's cache.
func (f *filesystem) pastCache(flags uint32) bool {
	switch {
	case f.options.NoCache:
		return true
	case f.options.Shared && flags&syscall.O_APPEND != 0 && writes(flags):
		return true // where it goes is known when it is applied: not before, so there is no page for it
	case flags&syscall.O_DIRECT == 0:
		return false
	default:
		return !f.writeback || flags&(syscall.O_SYNC|syscall.O_DSYNC) != 0 && f.ownTimes.ready.Load()
	}
}

// refreshTimes has the kernel take over the mtime of a file that was written past its cache. It may be that this very request
// holds what that waits for (lseek(2) asks for the size with the inode locked), so it does not wait for long: false if it is not
// done, and then the kernel must ask again.
func (f *filesystem) refreshTimes(node uint64) bool {
	if !f.nodes.takeStaleTimes(node) {
		return true
	}
	done := make(chan bool, 1)
	go func() {
		err := f.setOwnTimes(node)
		if err != nil {
			f.nodes.staleTimes(node) // tried again, also if nobody waits for this any more
			f.log.WithError(err).WithField("ino", uint64(f.ino(node))).Debug("the kernel could not be told of a new mtime")
		}
		done <- err == nil
	}()
	timer := time.NewTimer(ownTimesWait)
	defer timer.Stop()
	select {
	case ok := <-done:
		return ok
	case <-timer.C:
		return false // it is on its way
	}
}

// setOwnTimes sets the mtime that the volume has, through the mount.
func (f *filesystem) setOwnTimes(node uint64) error {
	o := &f.ownTimes
	o.limit <- struct{}{}
	defer func() { <-o.limit }()
	inode, err := f.volume.Inode(f.ctx, f.ino(node))
	if err != nil {
		return err
	}
	root, err := unix.Open(o.mountpoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	var st unix.Statx_t
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return err
	}
	if st.Dev_major != o.major || st.Dev_minor != o.minor {
		return fmt.Errorf("something else is mounted on %s", o.mountpoint)
	}
	fd, err := unix.OpenByHandleAt(root, fileHandle(node), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The request names the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := uint32(unix.Gettid())
	o.threads.Store(tid, node)
	defer o.threads.Delete(tid)
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: inode.Mtime.Sec, Nsec: int64(inode.Mtime.Nsec)}}
	return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
}

// fileidIno64Gen is the kind of a FUSE file handle without its directory (include/linux/exportfs.h): the upper and the lower half
// of the node id, and the generation, which is always 0 here.
const fileidIno64Gen = 0x81

func fileHandle(node uint64) unix.FileHandle {
	b := make([]byte, 0, 12)
	b = binary.NativeEndian.AppendUint32(b, uint32(node>>32))
	b = binary.NativeEndian.AppendUint32(b, uint32(node))
	b = binary.NativeEndian.AppendUint32(b, 0)
	return unix.NewFileHandle(fileidIno64Gen, b)
}

// dropPages has the kernel forget what it has cached of a range that was written past its cache. It does so itself before such a
// write, and after one that the caller waits for; but not after one that was submitted (io_submit(2)), nor after one through a file that
// is always past the cache. Who reads through the cache meanwhile has what was there before put back into it, to stay.
//
// It is done before the write is answered: whoever reads after that reads what was written. A reader whose page is waited for is
// answered by another thread. If the kernel could only write a part directly, it sends the rest with its pages locked, which
// would wait for this very answer: so the wait is short.
func (f *filesystem) dropPages(node uint64, off, length int64) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.server.InodeNotify(node, off, length) // ENOENT: the kernel does not know it
	}()
	timer := time.NewTimer(dropPagesWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}
