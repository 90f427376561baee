package fs

import (
	"context"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

// What changes behind the kernel's back is pushed to it. None of these may be called while the caller holds something
// that a request waits for: the kernel may have to wait for a page or a directory that is locked for a request under way.
// For the same reason they are not called from within a request (but see Lseek, and requests for a lock, which hold nothing in the kernel).

// SharedVolume is a Volume that other mounts change too.
type SharedVolume interface {
	// AttachKernel tells whom to tell of such changes, before the first request; nil after the last.
	AttachKernel(Kernel)
	// Settle returns when what was changed behind (WriteBehind, SetAttr.Behind, SetACLBehind) of an inode before the call has
	// taken effect, with the error of the first change that has not and of which no call has told yet.
	Settle(ctx context.Context, ino meta.Ino) error
	// SetACLBehind sets an access ACL as SetXattr does, if the mode says all of it, perhaps after the call has returned, until Settle.
	// false: nothing was done, and it is to be done with SetXattr.
	SetACLBehind(ino meta.Ino, value []byte, clearSGID bool) bool
	// Peek is Lookup without asking the others: it tells what this machine knows, which may be of a moment ago.
	Peek(parent meta.Ino, name string) (meta.Inode, error)
	// PeekInode is Inode in the same way; it does not wait for what was changed behind either.
	PeekInode(ino meta.Ino) (meta.Inode, error)
	// MayHaveSetID tells whether an inode has a set-id bit, as PeekInode knows it, or is about to have one by a change behind. It
	// is true where that cannot be told.
	MayHaveSetID(ino meta.Ino) bool
}

// Kernel is told to forget what another mount has changed; see above for when it may be called.
type Kernel interface {
	InvalidateInode(ino meta.Ino) error
	InvalidateAttr(ino meta.Ino) error
	InvalidateEntry(parent meta.Ino, name string) error
}

var _ Kernel = (*Server)(nil)

// InvalidateInode makes the kernel forget data, attributes and, for a directory, the listing of an inode; dirty pages are
// written first. With the writeback cache size and times of a regular file stay the kernel's.
func (s *Server) InvalidateInode(ino meta.Ino) error {
	return s.notifyInode("inode", ino, 0)
}

// InvalidateAttr makes the kernel forget attributes only.
func (s *Server) InvalidateAttr(ino meta.Ino) error {
	return s.notifyInode("attributes", ino, -1)
}

// notifyInode spares the kernel what it does not hold: where other mounts work on files of their own, that is most of it.
func (s *Server) notifyInode(what string, ino meta.Ino, off int64) error {
	node := s.fs.node(ino)
	if !s.fs.nodes.known(node) {
		return nil
	}
	return ignoreUnknown(what, ino, s.fuse.InodeNotify(node, off, 0))
}

// InvalidateEntry makes the kernel forget what a name in a directory names, or that there is no such name.
func (s *Server) InvalidateEntry(parent meta.Ino, name string) error {
	node := s.fs.node(parent)
	if !s.fs.nodes.known(node) {
		return nil
	}
	return ignoreUnknown("entry", parent, s.fuse.EntryNotify(node, name))
}

// ignoreUnknown is nil also where the kernel did not hold what it is told to forget.
func ignoreUnknown(what string, ino meta.Ino, status fuse.Status) error {
	if status.Ok() || status == fuse.ENOENT {
		return nil
	}
	return fmt.Errorf("invalidate %s of inode %d: %w", what, ino, syscall.Errno(status))
}
