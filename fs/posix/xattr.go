package posix

import (
	"errors"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// Limits of the kernel for extended attributes, in bytes.
const (
	MaxXattrName  = 255
	MaxXattrValue = 65536
)

// reserved is the prefix of attributes that are computed, not stored by users.
const reserved = "user.vde."

func (a *applier) setXattr(c *command.SetXattr) error {
	in, err := a.inode(c.Ino)
	if err != nil {
		return err
	}
	switch {
	case c.Name == "" || len(c.Name) > MaxXattrName:
		return syscall.ERANGE
	case len(c.Value) > MaxXattrValue:
		return syscall.E2BIG
	case strings.HasPrefix(c.Name, reserved) && !UserSettable(c.Name) || c.Name == "user.vde":
		return syscall.EPERM
	}
	_, err = a.Xattr(in.Ino, c.Name)
	exists := err == nil
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	switch {
	case c.Flags&unix.XATTR_CREATE != 0 && exists:
		return syscall.EEXIST
	case c.Flags&unix.XATTR_REPLACE != 0 && !exists:
		return syscall.ENODATA
	}
	switch c.Name {
	case aclAccess:
		return a.setAccessACL(in, c.Value, c.ClearSGID)
	case aclDefault:
		if err := a.checkDefaultACL(in, c.Value); err != nil {
			return err
		}
	}
	a.storeXattr(in, c.Name, c.Value)
	return nil
}

// UserSettable tells which of the user.vde. attributes a user may set: the switch for PNG re-encoding.
func UserSettable(name string) bool { return name == "user.vde.png" }

func (a *applier) storeXattr(in *meta.Inode, name string, value []byte) {
	a.SetXattr(in.Ino, name, value)
	in.Flags |= meta.FlagXattr
	if name == aclDefault {
		in.Flags |= meta.FlagDefaultACL
	}
	in.Ctime = a.now
	a.SetInode(in)
	a.res.Inode = *in
}

func (a *applier) removeXattr(c *command.RemoveXattr) error {
	in, err := a.inode(c.Ino)
	if err != nil {
		return err
	}
	if _, err := a.Xattr(in.Ino, c.Name); errors.Is(err, meta.ErrNotFound) {
		return syscall.ENODATA
	} else if err != nil {
		return err
	}
	a.RemoveXattr(in.Ino, c.Name)
	if c.Name == aclDefault {
		in.Flags &^= meta.FlagDefaultACL
	}
	in.Ctime = a.now
	a.SetInode(in)
	a.res.Inode = *in
	return nil
}
