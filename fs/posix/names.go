package posix

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

func (a *applier) make(c *command.Make) error {
	typ := c.Mode & unix.S_IFMT
	switch typ {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return syscall.EINVAL
	}
	if typ == unix.S_IFLNK {
		if c.Target == "" {
			return syscall.ENOENT
		}
		if len(c.Target) > MaxTargetLen {
			return syscall.ENAMETOOLONG
		}
	}
	parent, err := a.dir(c.Parent)
	if err != nil {
		return err
	}
	if !c.Orphan {
		if err := a.vacant(parent, c.Name); err != nil {
			return err
		}
	}
	if typ == unix.S_IFDIR && parent.Nlink >= maxLinks {
		return syscall.EMLINK
	}
	in := a.NewInode()
	in.Mode, in.UID, in.GID = typ|c.Mode&0o7777, c.UID, c.GID
	in.Nlink = 1
	if parent.Mode&unix.S_ISGID != 0 {
		in.GID = parent.GID
		if typ == unix.S_IFDIR {
			in.Mode |= unix.S_ISGID
		}
	}
	switch typ {
	case unix.S_IFDIR:
		in.Nlink, in.Parent = 2, parent.Ino
	case unix.S_IFLNK:
		in.Target, in.Size, in.Mode = c.Target, uint64(len(c.Target)), unix.S_IFLNK|0o777
	case unix.S_IFCHR, unix.S_IFBLK:
		in.Rdev = c.Rdev
	}
	in.Atime, in.Mtime, in.Ctime, in.Btime = a.now, a.now, a.now, a.now
	if err := a.inheritACL(parent, in, c.Umask); err != nil {
		return err
	}
	if c.SecurityName != "" {
		a.SetXattr(in.Ino, c.SecurityName, c.SecurityValue)
		in.Flags |= meta.FlagXattr
	}
	if c.Orphan {
		in.Nlink = 0
		in.Flags |= meta.FlagLinkable
		a.SetOrphan(in.Ino)
		if err := a.keep(in.Ino, a.tag.Session); err != nil {
			return err
		}
	} else {
		a.AddDirent(parent, c.Name, in.Ino, in.Mode)
		if typ == unix.S_IFDIR {
			parent.Nlink++
		}
		a.changed(parent)
	}
	a.res.Inode = *in
	return nil
}

// vacant tells whether a name may be added to a directory.
func (a *applier) vacant(dir *meta.Inode, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	switch _, err := a.entry(dir.Ino, name); {
	case err == nil:
		return syscall.EEXIST
	case !errors.Is(err, syscall.ENOENT):
		return err
	}
	return nil
}

func (a *applier) link(c *command.Link) error {
	parent, err := a.dir(c.Parent)
	if err != nil {
		return err
	}
	in, err := a.inode(c.Ino)
	if err != nil {
		return err
	}
	if err := a.vacant(parent, c.Name); err != nil {
		return err
	}
	if isDir(in) {
		return syscall.EPERM
	}
	if err := a.linked(in); err != nil {
		return err
	}
	a.AddDirent(parent, c.Name, in.Ino, in.Mode)
	a.changed(parent)
	return nil
}

// linked counts one more name of an inode, which is the result of the command.
func (a *applier) linked(in *meta.Inode) error {
	switch {
	case in.Nlink == 0 && in.Flags&meta.FlagLinkable == 0:
		return syscall.ENOENT
	case in.Nlink >= maxLinks:
		return syscall.EMLINK
	}
	if in.Nlink == 0 {
		a.ClearOrphan(in.Ino)
		a.DeleteFact(numbered(factHold, uint64(in.Ino)))
		in.Flags &^= meta.FlagLinkable
	}
	in.Nlink++
	in.Ctime = a.now
	a.SetInode(in)
	a.res.Inode = *in
	return nil
}

func (a *applier) remove(c *command.Remove) error {
	parent, err := a.dir(c.Parent)
	if err != nil {
		return err
	}
	if err := CheckName(c.Name); err != nil {
		return err
	}
	e, err := a.entry(parent.Ino, c.Name)
	if err != nil {
		return err
	}
	if a.apart(e.Ino) {
		if c.Dir {
			return syscall.ENOTDIR // only files lie in other groups than their directory
		}
		a.RemoveDirent(parent, e)
		a.changed(parent)
		a.drop(e.Ino)
		a.res.Inode = meta.Inode{Ino: e.Ino}
		return nil
	}
	in, err := a.named(parent.Ino, e)
	if err != nil {
		return err
	}
	switch {
	case c.Dir && !isDir(in):
		return syscall.ENOTDIR
	case !c.Dir && isDir(in):
		return syscall.EISDIR
	case c.Dir && in.Size != 0:
		return syscall.ENOTEMPTY
	}
	a.RemoveDirent(parent, e)
	if c.Dir {
		parent.Nlink--
	}
	a.changed(parent)
	return a.unnamed(in)
}

// unnamed takes a name away from an inode, whose entry is gone or replaced; without names it is an orphan, until
// somebody who knows that nobody has it open reaps it.
func (a *applier) unnamed(in *meta.Inode) error {
	if isDir(in) {
		in.Nlink = 0
	} else {
		in.Nlink--
	}
	in.Ctime = a.now
	if in.Nlink == 0 {
		a.SetOrphan(in.Ino)
		a.res.Orphans = append(a.res.Orphans, in.Ino)
		if err := a.keep(in.Ino, 0); err != nil {
			return err
		}
	}
	a.SetInode(in)
	a.res.Inode = *in
	return nil
}

func (a *applier) reap(c *command.Reap) error {
	for _, ino := range c.Inos {
		in, err := a.inode(ino)
		if errors.Is(err, syscall.ESTALE) {
			continue // reaped before
		}
		if err != nil {
			return err
		}
		if in.Nlink > 0 {
			continue // it got a name meanwhile
		}
		if err := a.FreeInode(in); err != nil {
			return err
		}
	}
	return nil
}
