package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Lookup finds a name. "." and ".." come from file handles (open_by_handle_at, NFS): "." also asks for an inode by its
// number alone, whatever it is.
func (f *filesystem) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.count(opLookup)
	parent := f.ino(header.NodeId)
	if name == "." {
		if f.stale(header.NodeId) {
			return fuse.Status(syscall.ESTALE)
		}
		inode, err := f.volume.Inode(f.ctx, parent)
		if err != nil {
			return f.status(opLookup, parent, err)
		}
		if inode.Nlink == 0 {
			return fuse.Status(syscall.ESTALE) // a handle does not bring back what was removed
		}
		f.fillEntry(&inode, out)
		return fuse.OK
	}
	inode, err := f.volume.Lookup(f.ctx, parent, name)
	if err != nil {
		err = f.lookupGone(header, parent, name, err)
		if f.options.Timeouts.Negative > 0 && ToErrno(err) == syscall.ENOENT {
			f.fillNegative(out) // node id 0: no such name, and that may be kept
			return fuse.OK
		}
		return f.status(opLookup, parent, err)
	}
	if f.stale(f.node(inode.Ino)) { // a change was waited for
		inode, err = f.volume.Lookup(f.ctx, parent, name)
		if err != nil {
			return f.status(opLookup, parent, err)
		}
	}
	f.fillEntry(&inode, out)
	return fuse.OK
}

// Forget takes lookups back.
func (f *filesystem) Forget(node, lookups uint64) {
	f.count(opForget)
	ino := f.ino(node)
	if f.nodes.forget(node, lookups) {
		f.volume.Unreference(ino)
	}
	f.renewals.forgotten(ino, f.nodes)
}
