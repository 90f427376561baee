package posix

import (
	"encoding/binary"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// POSIX ACLs as IEEE Std 1003.1e draft 17 describes them and the kernel keeps them in extended attributes
// (include/uapi/linux/posix_acl_xattr.h): version 2 (4 bytes), then entries of tag (2), permissions (2) and id (4),
// little-endian. The kernel enforces them; here is what happens to them when files are created and modes change.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion = 2

	tagUserObj  = 0x01
	tagUser     = 0x02
	tagGroupObj = 0x04
	tagGroup    = 0x08
	tagMask     = 0x10
	tagOther    = 0x20
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

type acl []aclEntry

// decodeACL reads and checks an ACL; EINVAL for anything that is none. An empty one is nil.
func decodeACL(b []byte) (acl, error) {
	le := binary.LittleEndian
	if len(b) < 4 || le.Uint32(b) != aclVersion || (len(b)-4)%8 != 0 {
		return nil, syscall.EINVAL
	}
	var l acl
	count := map[uint16]int{}
	last := uint16(0)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		e := aclEntry{le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:])}
		switch e.tag {
		case tagUserObj, tagUser, tagGroupObj, tagGroup, tagMask, tagOther:
		default:
			return nil, syscall.EINVAL
		}
		if e.perm > 7 || e.tag < last {
			return nil, syscall.EINVAL
		}
		last = e.tag
		count[e.tag]++
		l = append(l, e)
	}
	if len(l) == 0 {
		return nil, nil
	}
	if count[tagUserObj] != 1 || count[tagGroupObj] != 1 || count[tagOther] != 1 || count[tagMask] > 1 ||
		count[tagUser]+count[tagGroup] > 0 && count[tagMask] == 0 {
		return nil, syscall.EINVAL
	}
	return l, nil
}

func (l acl) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, aclVersion)
	for _, e := range l {
		b = le.AppendUint16(b, e.tag)
		b = le.AppendUint16(b, e.perm)
		b = le.AppendUint32(b, e.id)
	}
	return b
}

// mode is the permission bits that an ACL stands for; minimal tells that they say all of it.
func (l acl) mode() (mode uint32, minimal bool) {
	minimal = true
	group, mask, hasMask := uint32(0), uint32(0), false
	for _, e := range l {
		switch p := uint32(e.perm); e.tag {
		case tagUserObj:
			mode |= p << 6
		case tagGroupObj:
			group = p
		case tagOther:
			mode |= p
		case tagMask:
			mask, hasMask, minimal = p, true, false
		default:
			minimal = false
		}
	}
	if hasMask {
		group = mask
	}
	return mode | group<<3, minimal
}

// setMode puts permission bits into an ACL: the group's into the mask where there is one.
func (l acl) setMode(mode uint32) {
	group := -1
	for i, e := range l {
		switch e.tag {
		case tagUserObj:
			l[i].perm = uint16(mode >> 6 & 7)
		case tagOther:
			l[i].perm = uint16(mode & 7)
		case tagGroupObj:
			if group < 0 {
				group = i
			}
		case tagMask:
			group = i
		}
	}
	if group >= 0 {
		l[group].perm = uint16(mode >> 3 & 7)
	}
}

// maskMode takes from an ACL what a creation mode does not grant (posix_acl_create_masq of the kernel), and returns
// the permission bits that are left.
func (l acl) maskMode(mode uint32) uint32 {
	group := -1
	out := uint32(0)
	for i, e := range l {
		switch e.tag {
		case tagUserObj:
			l[i].perm &= uint16(mode >> 6 & 7)
			out |= uint32(l[i].perm) << 6
		case tagOther:
			l[i].perm &= uint16(mode & 7)
			out |= uint32(l[i].perm)
		case tagGroupObj:
			if group < 0 {
				group = i
			}
		case tagMask:
			group = i
		}
	}
	if group >= 0 {
		l[group].perm &= uint16(mode >> 3 & 7)
		out |= uint32(l[group].perm) << 3
	}
	return out
}

// inheritACL gives a new inode what a default ACL of its parent says, or takes the umask from its mode.
func (a *applier) inheritACL(parent, in *meta.Inode, umask uint32) error {
	if in.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	var b []byte
	if parent.Flags&meta.FlagDefaultACL != 0 {
		var err error
		if b, err = a.Xattr(parent.Ino, aclDefault); err != nil && !errors.Is(err, meta.ErrNotFound) {
			return err
		}
	}
	a.inheritFrom(b, in, umask)
	return nil
}

// inheritFrom is inheritACL with the parent's default ACL, empty for none.
func (a *applier) inheritFrom(acl []byte, in *meta.Inode, umask uint32) {
	if len(acl) == 0 {
		in.Mode &^= umask & 0o777
		return
	}
	l, err := decodeACL(acl)
	if err != nil || l == nil {
		in.Mode &^= umask & 0o777
		return // stored by nobody who checks: no ACL
	}
	if isDir(in) {
		a.SetXattr(in.Ino, aclDefault, acl)
		in.Flags |= meta.FlagXattr | meta.FlagDefaultACL
	}
	in.Mode = in.Mode&^0o777 | l.maskMode(in.Mode)
	if _, minimal := l.mode(); !minimal {
		a.SetXattr(in.Ino, aclAccess, l.encode())
		in.Flags |= meta.FlagXattr
	}
}

// DefaultACL is the attribute of a directory that MakeApart takes along.
const DefaultACL = aclDefault

// chmodACL makes the access ACL follow a new mode.
func (a *applier) chmodACL(in *meta.Inode) error {
	if in.Flags&meta.FlagXattr == 0 {
		return nil
	}
	b, err := a.Xattr(in.Ino, aclAccess)
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if l, err := decodeACL(b); err == nil && l != nil {
		l.setMode(in.Mode)
		a.SetXattr(in.Ino, aclAccess, l.encode())
	}
	return nil
}

// ModeOfACL returns the permission bits that an access ACL stands for, if they say all of it.
func ModeOfACL(value []byte) (mode uint32, ok bool) {
	l, err := decodeACL(value)
	if err != nil || l == nil {
		return 0, false
	}
	return l.mode()
}

// setAccessACL stores an access ACL and the mode that follows from it; one that the mode says all of is not stored.
func (a *applier) setAccessACL(in *meta.Inode, value []byte, clearSGID bool) error {
	if in.Mode&unix.S_IFMT == unix.S_IFLNK {
		return syscall.EOPNOTSUPP
	}
	l, err := decodeACL(value)
	if err != nil {
		return err
	}
	if clearSGID {
		in.Mode &^= unix.S_ISGID
	}
	if l != nil {
		mode, minimal := l.mode()
		in.Mode = in.Mode&^0o777 | mode
		if !minimal {
			a.storeXattr(in, aclAccess, value)
			return nil
		}
	}
	a.RemoveXattr(in.Ino, aclAccess)
	in.Ctime = a.now
	a.SetInode(in)
	a.res.Inode = *in
	return nil
}

func (a *applier) checkDefaultACL(in *meta.Inode, value []byte) error {
	if !isDir(in) {
		return syscall.EACCES
	}
	_, err := decodeACL(value)
	return err
}

// IsACL tells whether a name is that of a POSIX ACL.
func IsACL(name string) bool { return name == aclAccess || name == aclDefault }
