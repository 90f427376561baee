// Package posix is the rules of POSIX as functions of (state, command): no clock, no randomness, no goroutine, no Raft,
// no FUSE. What Apply does follows from the transaction's state and the command alone, so every replica does the same.
//
// An error that is a syscall.Errno is the command's result: nothing was changed, the transaction is to be discarded.
// Any other error means that the store could not be read.
package posix

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// MaxNameLen is the longest name of an entry, MaxTargetLen the longest target of a symlink, in bytes.
const (
	MaxNameLen   = 255
	MaxTargetLen = 4095
)

// maxLinks bounds the names of one inode and the subdirectories of one directory.
const maxLinks = 1<<31 - 1

// Result is what a command answers.
type Result struct {
	// Inode is the inode that the command is about, as it is afterwards. Of one that lies in another group it has the
	// number only; if that has lost a name, an Unname is due there.
	Inode meta.Inode
	// Bytes is for a Write the offset where the data went, for a Join the node's id, for a Lock 1 if somebody who waits
	// may get his now.
	Bytes   uint64
	Orphans []meta.Ino // inodes that have lost their last name
	// Refused: a Lock was not taken, as another one is in the way.
	Refused bool
	// Replaced is what a Rename took a name from (Ino 0: nothing), or exchanged with; likewise.
	Replaced meta.Inode
	// Err is what refused a command whose refusal had to be remembered: the transaction is to be committed all the same.
	Err error
}

// Replay says that a command is applied again after a crash. Promised: somebody was told that it is durable.
type Replay struct{ Promised bool }

// Apply does what a command says, at time t. replay is nil unless the command is replayed. A tagged command that has been
// done before answers what it did then.
func Apply(tx *vde.Tx, c command.Command, t meta.Time, tag command.Tag, replay *Replay) (Result, error) {
	a := &applier{Tx: tx, now: t, tag: tag, replay: replay}
	if tag.Session == 0 {
		return a.res, a.apply(c)
	}
	done, err := a.answered(tag)
	if l, ok := c.(*command.Lock); ok && done && err == nil {
		err = a.lockAnswered(l)
	}
	if done || err != nil {
		return a.res, err
	}
	err = a.apply(c)
	var errno syscall.Errno
	switch {
	case err == nil:
		err = a.remember(tag, 0)
	case tag.Retry && errors.As(err, &errno):
		// An earlier copy may still be on its way to the log: it must not be done after this one was refused.
		refused := err
		if err = tx.Restart(); err == nil {
			a.res = Result{}
			err = a.remember(tag, errno)
		}
		if err == nil {
			a.res.Err = refused
		}
	}
	return a.res, err
}

func (a *applier) apply(c command.Command) error {
	var err error
	switch c := c.(type) {
	case *command.SetAttr:
		err = a.setAttr(c)
	case *command.Make:
		err = a.make(c)
	case *command.Link:
		err = a.link(c)
	case *command.Remove:
		err = a.remove(c)
	case *command.Rename:
		err = a.rename(c)
	case *command.Write:
		err = a.write(c)
	case *command.Fill:
		err = a.fill(c)
	case *command.WriteRef:
		err = a.writeRef(c)
	case *command.Fallocate:
		err = a.fallocate(c)
	case *command.Share:
		err = a.share(c)
	case *command.SetXattr:
		err = a.setXattr(c)
	case *command.RemoveXattr:
		err = a.removeXattr(c)
	case *command.Reap:
		err = a.reap(c)
	case *command.Atimes:
		err = a.atimes(c)
	case *command.Replace:
		err = a.replace(c)
	case *command.BeginSession:
		err = a.beginSession(c)
	case *command.EndSession:
		err = a.endSession(c.Session)
	case *command.KeepAlive:
		// It is enough that it was applied.
	case *command.Release:
		err = a.release(c)
	case *command.Lock:
		err = a.lock(c)
	case *command.PutNode:
		err = a.putNode(c)
	case *command.SetLevel:
		err = a.setLevel(c)
	case *command.PutInvite:
		err = a.putInvite(c)
	case *command.Join:
		err = a.join(c)
	case *command.RemoveNode:
		err = a.removeNode(c)
	case *command.MakeApart:
		err = a.makeApart(c)
	case *command.LinkApart:
		err = a.linkApart(c)
	case *command.Name:
		err = a.name(c)
	case *command.Unname:
		err = a.unname(c)
	case *command.Finish:
		err = a.finish(c)
	case *command.Settle:
		err = a.settle(c)
	case *command.Forget:
		err = a.forget(c)
	case *command.PutGroup:
		err = a.putGroup(c)
	case *command.DropGroup:
		err = a.dropGroup(c)
	case *command.Freeze:
		err = a.freeze(c)
	case *command.FreezeVote:
		err = a.freezeVote(c)
	case *command.Unfreeze:
		err = a.unfreeze(c)
	case *command.Seal:
		err = a.seal()
	case *command.Route:
		err = a.route(c)
	default:
		return fmt.Errorf("no rule for %T", c)
	}
	if err == nil {
		err = a.unfit
	}
	switch {
	case errors.Is(err, vde.ErrNoSpace):
		err = errors.Join(syscall.ENOSPC, err)
	case errors.Is(err, vde.ErrBadBlock), errors.Is(err, meta.ErrDecode):
		// Damage of one file or directory is the answer to who touches it, not the end of the whole store.
		err = errors.Join(syscall.EIO, err)
	}
	return err
}

// applier is one application of a command.
type applier struct {
	*vde.Tx
	now    meta.Time
	tag    command.Tag
	replay *Replay
	unfit  error // a fact that could not be stored
	res    Result
}

// inode reads an inode; a missing one is a stale handle.
func (a *applier) inode(ino meta.Ino) (*meta.Inode, error) {
	in, err := a.Inode(ino)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, syscall.ESTALE
	}
	return in, err
}

// dir reads a directory that entries may be added to or taken from.
func (a *applier) dir(ino meta.Ino) (*meta.Inode, error) {
	in, err := a.inode(ino)
	switch {
	case err != nil:
		return nil, err
	case !isDir(in):
		return nil, syscall.ENOTDIR
	case in.Nlink == 0:
		return nil, syscall.ENOENT
	}
	return in, nil
}

// regular reads a regular file whose contents may be changed.
func (a *applier) regular(ino meta.Ino) (*meta.Inode, error) {
	in, err := a.inode(ino)
	switch {
	case err != nil:
		return nil, err
	case isDir(in):
		return nil, syscall.EISDIR
	case in.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, syscall.EINVAL
	}
	return in, nil
}

// entry reads an entry of a directory; ENOENT if there is none.
func (a *applier) entry(dir meta.Ino, name string) (meta.Dirent, error) {
	e, err := a.Dirent(dir, name)
	if errors.Is(err, meta.ErrNotFound) {
		return e, syscall.ENOENT
	}
	return e, err
}

// named reads the inode of an entry; one that is missing is damage, not a result.
func (a *applier) named(dir meta.Ino, e meta.Dirent) (*meta.Inode, error) {
	in, err := a.Inode(e.Ino)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, errors.Join(syscall.EIO, fmt.Errorf("%w: entry %q of directory %d names inode %d, which does not exist", vde.ErrDamaged, e.Name, dir, e.Ino))
	}
	return in, err
}

// CheckName refuses what cannot be the name of an entry.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return syscall.EINVAL
	case len(name) > MaxNameLen:
		return syscall.ENAMETOOLONG
	}
	for i := 0; i < len(name); i++ {
		if name[i] == '/' || name[i] == 0 {
			return syscall.EINVAL
		}
	}
	return nil
}

func isDir(in *meta.Inode) bool { return in.Mode&unix.S_IFMT == unix.S_IFDIR }

// changed notes a change of a directory's entries.
func (a *applier) changed(dir *meta.Inode) {
	dir.Mtime, dir.Ctime = a.now, a.now
	dir.Version++
	a.SetInode(dir)
}

// killPriv clears the set-user-id bit, and the set-group-id bit where the group may execute (else it means mandatory
// locking), as a write by somebody without privilege does.
func killPriv(in *meta.Inode) {
	if isDir(in) {
		return
	}
	in.Mode &^= unix.S_ISUID
	if in.Mode&unix.S_IXGRP != 0 {
		in.Mode &^= unix.S_ISGID
	}
}

const capability = "security.capability"

// dropCapability removes file capabilities, which never outlive a change of contents or owner.
func (a *applier) dropCapability(in *meta.Inode) error {
	if in.Flags&meta.FlagXattr == 0 {
		return nil
	}
	if _, err := a.Xattr(in.Ino, capability); errors.Is(err, meta.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	a.RemoveXattr(in.Ino, capability)
	return nil
}
