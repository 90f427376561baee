package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

// A handle is a number that the kernel gives back. Requests carry the inode and the flags of the open file beside it, so
// nothing hangs on the number but the locks that were taken through it. What is counted per inode (open files, writers) is
// in the node table, and each open file holds a Reference on its inode.

// The lowest bits of a handle's number say how it was opened; the rest counts.
const (
	handleNoAtime = 1 << iota // with O_NOATIME: COPY_FILE_RANGE tells no flags
	// handleDirect: past the kernel's cache, which then leaves O_SYNC to the server. Flags of a request do not say it: programs
	// change O_DIRECT of an open file.
	handleDirect
	handleCached // opened without O_DIRECT, and not past the cache

	handleBits = iota
)

// opened answers an open: the caller has referenced the inode.
func (f *filesystem) opened(node uint64, flags uint32, dropCaps bool, out *fuse.OpenOut) {
	cached := flags&syscall.O_DIRECT == 0 && !f.pastCache(flags)
	f.nodes.open(node, writes(flags), cached, dropCaps)
	out.Fh = f.handles.Add(1) << handleBits
	if flags&syscall.O_NOATIME != 0 {
		out.Fh |= handleNoAtime
	}
	if cached {
		out.Fh |= handleCached
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	if !f.writeback && f.locks == nil && f.closing == nil {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH // nothing is reported at close that was not reported by a write
	}
	if f.pastCache(flags) {
		out.OpenFlags = out.OpenFlags&^fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
		out.Fh |= handleDirect
	}
}

// writes tells whether an open file with these flags may write.
func writes(flags uint32) bool { return flags&syscall.O_ACCMODE != syscall.O_RDONLY }

// Release ends an open file: all its descriptors and mappings are gone.
func (f *filesystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	f.count(opRelease)
	if f.locks != nil {
		f.unlockHandle(in.NodeId, in.Fh)
	}
	f.nodes.release(in.NodeId, writes(in.Flags), in.Fh&handleCached != 0)
	if f.nodes.get(in.NodeId).opens == 0 {
		f.failures.drop(in.NodeId)
	}
	f.volume.Unreference(f.ino(in.NodeId))
}

// touch notes that a file was read through a file with these flags. What is read out of the kernel's cache is not noticed:
// the kernel tells of no such read. (To take an open for one would be worse: most programs that look at files open them.)
func (f *filesystem) touch(ino meta.Ino, flags uint32) {
	if flags&syscall.O_NOATIME == 0 && !f.untouched.Load() {
		f.volume.TouchAtime(ino)
	}
}
