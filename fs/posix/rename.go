package posix

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

func (a *applier) rename(c *command.Rename) error {
	if c.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 ||
		c.Flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return syscall.EINVAL
	}
	for _, n := range [...]string{c.OldName, c.NewName} {
		if err := CheckName(n); err != nil {
			return err
		}
	}
	from, err := a.dir(c.OldParent)
	if err != nil {
		return err
	}
	to, err := a.dir(c.NewParent) // the same *Inode when the parents are one
	if err != nil {
		return err
	}
	oldEntry, err := a.entry(from.Ino, c.OldName)
	if err != nil {
		return err
	}
	in, err := a.named(from.Ino, oldEntry)
	if err != nil {
		return err
	}
	newEntry, err := a.entry(to.Ino, c.NewName)
	exists := err == nil
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	var target *meta.Inode
	if exists {
		if target, err = a.named(to.Ino, newEntry); err != nil {
			return err
		}
	}
	switch {
	case c.Flags&unix.RENAME_NOREPLACE != 0 && exists:
		return syscall.EEXIST
	case c.Flags&unix.RENAME_EXCHANGE != 0 && !exists:
		return syscall.ENOENT
	}
	if from.Ino != to.Ino {
		if isDir(in) {
			if err := a.notInside(to, in.Ino); err != nil {
				return err
			}
		}
		if c.Flags&unix.RENAME_EXCHANGE != 0 && isDir(target) {
			if err := a.notInside(from, target.Ino); err != nil {
				return err
			}
		}
	}
	if exists && target.Ino == in.Ino {
		a.res.Inode = *in // two names of one file: nothing to do (POSIX)
		return nil
	}
	if c.Flags&unix.RENAME_EXCHANGE != 0 {
		return a.exchange(from, to, oldEntry, newEntry, in, target)
	}
	if exists {
		switch {
		case isDir(in) && !isDir(target):
			return syscall.ENOTDIR
		case !isDir(in) && isDir(target):
			return syscall.EISDIR
		case isDir(target) && target.Size != 0:
			return syscall.ENOTEMPTY
		}
	}
	if isDir(in) && from.Ino != to.Ino && !exists && to.Nlink >= maxLinks {
		return syscall.EMLINK
	}
	a.RemoveDirent(from, oldEntry)
	if exists {
		a.ReplaceDirent(to, newEntry, in.Ino, in.Mode)
		if isDir(target) {
			to.Nlink--
		}
	} else {
		a.AddDirent(to, c.NewName, in.Ino, in.Mode)
	}
	if isDir(in) {
		from.Nlink--
		to.Nlink++
		in.Parent = to.Ino
	}
	in.Ctime = a.now
	a.SetInode(in)
	a.changed(from)
	a.changed(to)
	if exists {
		if err := a.unnamed(target); err != nil {
			return err
		}
		a.res.Replaced = a.res.Inode
	}
	a.res.Inode = *in
	return nil
}

// exchange gives two names each other's inode, atomically.
func (a *applier) exchange(from, to *meta.Inode, oldEntry, newEntry meta.Dirent, in, target *meta.Inode) error {
	a.ReplaceDirent(from, oldEntry, target.Ino, target.Mode)
	a.ReplaceDirent(to, newEntry, in.Ino, in.Mode)
	if isDir(in) {
		from.Nlink--
		to.Nlink++
		in.Parent = to.Ino
	}
	if isDir(target) {
		to.Nlink--
		from.Nlink++
		target.Parent = from.Ino
	}
	in.Ctime, target.Ctime = a.now, a.now
	a.SetInode(in)
	a.SetInode(target)
	a.changed(from)
	a.changed(to)
	a.res.Inode, a.res.Replaced = *in, *target
	return nil
}

// notInside refuses to move a directory below itself: it walks from dir up to the root.
func (a *applier) notInside(dir *meta.Inode, moved meta.Ino) error {
	for at := dir; ; {
		if at.Ino == moved {
			return syscall.EINVAL
		}
		if at.Ino == meta.RootIno {
			return nil
		}
		up, err := a.inode(at.Parent)
		if err != nil {
			return err
		}
		if up.Ino == at.Ino {
			return nil
		}
		at = up
	}
}
