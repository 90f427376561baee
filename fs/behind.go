package fs

import (
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

// failures remember, per node id, writes that failed after they were answered (WriteBehind). As on a disk filesystem, each file
// that was open then is told once, at its next fsync(2) or close(2).
type failures struct {
	size  atomic.Int64 // len(files)
	mu    sync.Mutex
	files map[uint64]*failure // guarded by mu; dropped when no file is open any more
}

type failure struct {
	err    error
	newest uint64          // the last handle that was given then
	told   map[uint64]bool // handles
}

// note remembers an error, in place of an older one.
func (t *failures) note(node uint64, err error, newest uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil {
		t.files = make(map[uint64]*failure)
	}
	t.files[node] = &failure{err: err, newest: newest, told: make(map[uint64]bool)}
	t.size.Store(int64(len(t.files)))
}

// tell returns what a handle has not been told.
func (t *failures) tell(node, handle uint64) error {
	if t.size.Load() == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[node]
	if f == nil || handle > f.newest || f.told[handle] {
		return nil
	}
	f.told[handle] = true
	return f.err
}

// drop forgets a node of which no file is open.
func (t *failures) drop(node uint64) {
	if t.size.Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.files, node)
	t.size.Store(int64(len(t.files)))
}

// mayWriteBehind tells whether a write may be done after it was answered: others share the volume, are promised to see it after
// a close, and the kernel holds the page.
func (f *filesystem) mayWriteBehind(in *fuse.WriteIn) bool {
	return f.others != nil && !f.options.NoCache &&
		in.WriteFlags&fuse.WRITE_CACHE == 0 &&
		in.Flags&(syscall.O_DIRECT|syscall.O_SYNC|syscall.O_DSYNC|syscall.O_APPEND) == 0
}

// maySetBehind tells whether a change of attributes may be done after it was answered: of a file that was made here and not
// closed yet nobody else is promised anything.
func (f *filesystem) maySetBehind(in *fuse.SetAttrIn) bool {
	const these = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_ATIME | fuse.FATTR_MTIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME_NOW |
		fuse.FATTR_FH | fuse.FATTR_LOCKOWNER | fuse.FATTR_KILL_SUIDGID
	return f.others != nil && !f.options.NoCache && in.Valid&^these == 0 && f.nodes.get(in.NodeId).fresh
}

// setACLBehind is maySetBehind and the change itself, for an access ACL that the mode says all of: cp -a sets the mode so. false: it is
// to be done at once.
func (f *filesystem) setACLBehind(node uint64, ino meta.Ino, value []byte, killSGID bool) bool {
	if f.others == nil || f.options.NoCache || !f.nodes.get(node).fresh || !f.others.SetACLBehind(ino, value, killSGID) {
		return false
	}
	f.closedMeanwhile(node)
	return true
}

// surelyWithout tells whether a file that was made here and not closed yet has no extended attributes: the kernel asks for capabilities
// and ACLs by itself, before it changes a file.
func (f *filesystem) surelyWithout(node uint64, ino meta.Ino, name string) bool {
	if f.others == nil || f.options.NoCache || name != capabilityXattr && !isACL(name) || !f.nodes.get(node).fresh {
		return false
	}
	inode, err := f.others.PeekInode(ino)
	return err == nil && inode.Flags&meta.FlagXattr == 0
}

// copyBehindMax is the largest copy in bytes that is made by reading and writing behind.
const copyBehindMax = 64 << 10

// copyBehind copies a little into a file that was made here and not closed yet, as if the program had read and written it: blocks
// are not shared then, which would have to be done at once. false: it is to be done so.
func (f *filesystem) copyBehind(in *fuse.CopyFileRangeIn, src, dst meta.Ino) (uint32, bool) {
	if f.others == nil || f.options.NoCache || src == dst || in.FhOut&handleDirect != 0 || !f.nodes.get(in.NodeIdOut).fresh {
		return 0, false
	}
	from, err := f.volume.Inode(f.ctx, src)
	if err != nil || from.Size <= in.OffIn || min(from.Size-in.OffIn, in.Len) > copyBehindMax {
		return 0, false
	}
	data := make([]byte, min(from.Size-in.OffIn, in.Len))
	n, err := f.volume.Read(f.ctx, src, in.OffIn, data)
	if err != nil || n == 0 {
		return 0, false
	}
	if _, err := f.volume.Write(f.ctx, dst, in.OffOut, data[:n], WriteBehind); err != nil {
		return 0, false
	}
	f.closedMeanwhile(in.NodeIdOut)
	return uint32(n), true
}

// closedMeanwhile settles a file that was closed while something was noted: nobody need ask for it again.
func (f *filesystem) closedMeanwhile(node uint64) {
	if !f.nodes.get(node).fresh {
		f.settle(node)
	}
}

// settle waits for writes that are behind.
func (f *filesystem) settle(node uint64) {
	if f.others == nil {
		return
	}
	if err := f.others.Settle(f.ctx, f.ino(node)); err != nil {
		f.failures.note(node, err, f.handles.Load()<<handleBits|(1<<handleBits-1))
	}
}

// settleHandle is settle; it returns what failed and the handle has not been told yet.
func (f *filesystem) settleHandle(node, handle uint64) error {
	f.settle(node)
	return f.failures.tell(node, handle)
}
