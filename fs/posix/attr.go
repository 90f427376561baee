package posix

import (
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde"
	"vdefs/vde/meta"
)

func (a *applier) setAttr(c *command.SetAttr) error {
	in, err := a.inode(c.Ino)
	if err != nil {
		return err
	}
	if c.Set&command.SetSize != 0 {
		if in, err = a.regular(c.Ino); err != nil {
			return err
		}
		if c.Size > vde.MaxFileSize {
			return syscall.EFBIG
		}
		if err := a.Truncate(in, c.Size); err != nil {
			return err
		}
		in.Version++
		in.Mtime = a.now
	}
	if c.Set&(command.SetUID|command.SetGID|command.SetSize) != 0 && !isDir(in) {
		if err := a.dropCapability(in); err != nil {
			return err
		}
	}
	SetAttrs(in, c, a.now)
	if c.Set&command.SetMode != 0 {
		if err := a.chmodACL(in); err != nil {
			return err
		}
	}
	a.SetInode(in)
	a.res.Inode = *in
	return nil
}

// SetAttrs makes of an inode without ACLs what a SetAttr does, but for the size.
func SetAttrs(in *meta.Inode, c *command.SetAttr, now meta.Time) {
	if c.Set&command.SetUID != 0 {
		in.UID = c.UID
	}
	if c.Set&command.SetGID != 0 {
		in.GID = c.GID
	}
	if c.Set&command.KillPriv != 0 {
		killPriv(in)
	}
	if c.Set&command.SetMode != 0 {
		in.Mode = in.Mode&unix.S_IFMT | c.Mode&0o7777
	}
	if c.Set&command.SetAtime != 0 {
		in.Atime = c.Atime
	}
	if c.Set&command.SetMtime != 0 {
		in.Mtime = c.Mtime
	}
	in.Ctime = now
	if c.Set&command.SetCtime != 0 {
		in.Ctime = c.Ctime
	}
}

func (a *applier) atimes(c *command.Atimes) error {
	for _, t := range c.Times {
		in, err := a.Inode(t.Ino)
		if err != nil {
			continue // gone meanwhile
		}
		if in.Atime.Before(t.Time) {
			in.Atime = t.Time
			a.SetInode(in)
		}
	}
	return nil
}
