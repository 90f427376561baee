package fs

import (
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const accessACL = "system.posix_acl_access"

func isACL(name string) bool {
	return name == accessACL || name == "system.posix_acl_default"
}

// checkXattrName refuses what no disk filesystem takes: names outside of the known namespaces, and a namespace alone. The
// kernel has other filesystems' handlers do that, and passes a FUSE server every name.
func checkXattrName(name string) fuse.Status {
	if isACL(name) {
		return fuse.OK
	}
	for _, namespace := range []string{"user.", "trusted.", "security."} {
		if rest, ok := strings.CutPrefix(name, namespace); ok {
			if rest == "" {
				return fuse.EINVAL
			}
			return fuse.OK
		}
	}
	return fuse.Status(syscall.EOPNOTSUPP)
}

// labelXattr holds the label of SELinux. ls -l asks for that of every file, every time, unless it is told that the filesystem has
// no labels: without SELinux in the kernel this is the answer for a file that has none. One that was restored from a backup is given all
// the same.
const labelXattr = "security.selinux"

// labelled tells whether the kernel has SELinux.
var labelled = sync.OnceValue(func() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
})

// GetXAttr returns the size of a value, and the value if dest has room for it (an empty dest asks for the size).
func (f *filesystem) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	f.count(opGetxattr)
	if status := checkXattrName(name); !status.Ok() {
		return 0, status
	}
	if f.stale(in.NodeId) {
		return 0, fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.NodeId)
	if f.surelyWithout(in.NodeId, ino, name) {
		return 0, fuse.ENODATA
	}
	value, err := f.volume.Xattr(f.ctx, ino, name)
	if err != nil {
		if name == labelXattr && !labelled() && ToErrno(err) == syscall.ENODATA {
			return 0, fuse.Status(syscall.EOPNOTSUPP)
		}
		return 0, f.status(opGetxattr, ino, err)
	}
	if len(dest) > 0 && len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	copy(dest, value)
	return uint32(len(value)), fuse.OK
}

// ListXAttr returns the names, each ended by a NUL.
func (f *filesystem) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	f.count(opListxattr)
	if f.stale(in.NodeId) {
		return 0, fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.NodeId)
	names, err := f.volume.Xattrs(f.ctx, ino)
	if err != nil {
		return 0, f.status(opListxattr, ino, err)
	}
	size := 0
	for _, name := range names {
		size += len(name) + 1
	}
	if len(dest) == 0 {
		return uint32(size), fuse.OK
	}
	if size > len(dest) {
		return uint32(size), fuse.ERANGE
	}
	for _, name := range names {
		n := copy(dest, name)
		dest[n] = 0
		dest = dest[n+1:]
	}
	return uint32(size), fuse.OK
}

func (f *filesystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	f.count(opSetxattr)
	if status := checkXattrName(name); !status.Ok() {
		return status
	}
	if f.stale(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.NodeId)
	killSGID := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	if name == accessACL && f.setACLBehind(in.NodeId, ino, value, killSGID) {
		return fuse.OK
	}
	err := f.volume.SetXattr(f.ctx, ino, name, value, in.Flags, killSGID)
	f.changedMeanwhile(in.NodeId, ino) // an ACL is the mode too
	if err == nil && name == capabilityXattr {
		f.nodes.wrote(in.NodeId) // new ones stay
	}
	return f.status(opSetxattr, ino, err)
}

func (f *filesystem) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	f.count(opRemovexattr)
	if status := checkXattrName(name); !status.Ok() {
		return status
	}
	if f.stale(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.NodeId)
	err := f.volume.RemoveXattr(f.ctx, ino, name)
	if isACL(name) && ToErrno(err) == syscall.ENODATA {
		return fuse.OK // as it is with an ACL: the mode says it all
	}
	return f.status(opRemovexattr, ino, err)
}
