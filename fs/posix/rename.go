package posix

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

func (a *applier) rename(c *command.Rename) error {
	known := uint32(unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE)
	if c.Stay {
		known |= unix.RENAME_WHITEOUT
	}
	if c.Flags&^known != 0 || c.Flags&unix.RENAME_EXCHANGE != 0 && c.Flags != unix.RENAME_EXCHANGE {
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
	in, err := a.namedHere(from.Ino, oldEntry)
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
		if target, err = a.namedHere(to.Ino, newEntry); err != nil {
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
		a.res.Inode = a.told(in) // two names of one file: nothing to do (POSIX)
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
	whiteout := c.Flags&unix.RENAME_WHITEOUT != 0
	if c.Stay && from.Ino == to.Ino && !exists && !whiteout {
		a.RenameDirent(from, oldEntry, c.NewName) // a listing that is under way finds it once, under either name
	} else {
		if !whiteout {
			a.RemoveDirent(from, oldEntry)
		} else if err := a.whiteout(from, oldEntry, c); err != nil {
			return err
		}
		if exists {
			a.ReplaceDirent(to, newEntry, in.Ino, in.Mode)
		} else {
			a.AddDirent(to, c.NewName, in.Ino, in.Mode)
		}
	}
	if exists && isDir(target) {
		to.Nlink--
	}
	if isDir(in) {
		from.Nlink--
		to.Nlink++
		in.Parent = to.Ino
	}
	in.Ctime = a.now
	a.store(in)
	a.changed(from)
	a.changed(to)
	if exists && a.apart(target.Ino) {
		a.drop(target.Ino)
		a.res.Replaced = meta.Inode{Ino: target.Ino}
	} else if exists {
		if err := a.unnamed(target); err != nil {
			return err
		}
		a.res.Replaced = a.res.Inode
	}
	a.res.Inode = a.told(in)
	return nil
}

// whiteout makes what overlayfs takes for a removed name: a device 0:0 without permissions, in the place of an entry.
func (a *applier) whiteout(dir *meta.Inode, e meta.Dirent, c *command.Rename) error {
	in := a.NewInode()
	in.Mode, in.Nlink, in.UID, in.GID = unix.S_IFCHR, 1, c.UID, c.GID
	if dir.Mode&unix.S_ISGID != 0 {
		in.GID = dir.GID
	}
	in.Atime, in.Mtime, in.Ctime, in.Btime = a.now, a.now, a.now, a.now
	if err := a.inheritACL(dir, in, 0); err != nil {
		return err
	}
	a.ReplaceDirent(dir, e, in.Ino, in.Mode)
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
	a.store(in)
	a.store(target)
	a.changed(from)
	a.changed(to)
	a.res.Inode, a.res.Replaced = a.told(in), a.told(target)
	return nil
}

// namedHere is named; of a file of another group the inode has number and type only, and is not of the transaction.
func (a *applier) namedHere(dir meta.Ino, e meta.Dirent) (*meta.Inode, error) {
	if a.apart(e.Ino) {
		return &meta.Inode{Ino: e.Ino, Mode: e.Type}, nil
	}
	return a.named(dir, e)
}

// store stores an inode of namedHere, if it is of this group.
func (a *applier) store(in *meta.Inode) {
	if !a.apart(in.Ino) {
		a.SetInode(in)
	}
}

// told is an inode of namedHere as a result.
func (a *applier) told(in *meta.Inode) meta.Inode {
	if a.apart(in.Ino) {
		return meta.Inode{Ino: in.Ino}
	}
	return *in
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
