package posix

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// wrote notes a change of a file's contents. With the kernel's writeback cache the times are the kernel's, which sends
// them with a SETATTR of its own.
func (a *applier) wrote(in *meta.Inode, kill, fromCache bool) error {
	in.Version++
	if !fromCache {
		in.Mtime, in.Ctime = a.now, a.now
		if err := a.dropCapability(in); err != nil {
			return err
		}
	}
	if kill {
		killPriv(in)
	}
	a.SetInode(in)
	a.res.Inode = *in
	return nil
}

func (a *applier) write(c *command.Write) error {
	in, err := a.regular(c.Ino)
	if err != nil {
		return err
	}
	off := c.Off
	if c.Append {
		off = in.Size
	}
	end := off + uint64(len(c.Data))
	if end < off || end > vde.MaxFileSize {
		return syscall.EFBIG
	}
	if err := a.WriteData(in, off, c.Data); err != nil {
		return err
	}
	a.res.Bytes = off
	return a.wrote(in, c.KillPriv, c.FromCache)
}

// fill is write, then setAttr.
func (a *applier) fill(c *command.Fill) error {
	if len(c.Data) > 0 {
		if err := a.write(&command.Write{Ino: c.Ino, Off: c.Off, KillPriv: c.Set&command.KillPrivBefore != 0, Data: c.Data}); err != nil {
			return err
		}
	}
	return a.setAttr(&command.SetAttr{
		Ino: c.Ino, Set: c.Set &^ (command.SetSize | command.SetCtime | command.KillPrivBefore),
		Mode: c.Mode, UID: c.UID, GID: c.GID, Atime: c.Atime, Mtime: c.Mtime,
	})
}

func (a *applier) writeRef(c *command.WriteRef) error {
	in, err := a.regular(c.Ino)
	if err != nil {
		return err
	}
	if c.End%blockSize != 0 && in.Size > c.End {
		// The last block was filled up with zeros, as the file ended in it; it does not any more.
		return syscall.EAGAIN
	}
	if a.replay == nil {
		err = a.MapWritten(in, c.FileBlock, c.Extents, c.End)
	} else {
		err = a.MapReplayed(in, c.FileBlock, c.Extents, c.Sums, c.End, a.replay.Promised)
	}
	if err != nil {
		return err
	}
	return a.wrote(in, c.KillPriv, c.FromCache)
}

const blockSize = 4096

func (a *applier) fallocate(c *command.Fallocate) error {
	in, err := a.regular(c.Ino)
	if err != nil {
		return err
	}
	end := c.Off + c.Length
	switch {
	case c.Length == 0:
		return syscall.EINVAL
	case end < c.Off || end > vde.MaxFileSize:
		return syscall.EFBIG
	}
	keep := c.Mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch c.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		err = a.Preallocate(in, c.Off, end)
	case unix.FALLOC_FL_PUNCH_HOLE:
		if !keep {
			return syscall.EOPNOTSUPP
		}
		err = a.PunchHole(in, c.Off, end)
	case unix.FALLOC_FL_ZERO_RANGE:
		err = a.ZeroRange(in, c.Off, end)
	default:
		return syscall.EOPNOTSUPP
	}
	if err != nil {
		return err
	}
	if !keep {
		in.Size = max(in.Size, end)
	}
	return a.wrote(in, false, false)
}

func (a *applier) share(c *command.Share) error {
	src, err := a.regular(c.Src)
	if err != nil {
		return err
	}
	dst, err := a.regular(c.Dst)
	if err != nil {
		return err
	}
	if c.DstBlock+c.Count < c.DstBlock || (c.DstBlock+c.Count) > vde.MaxFileSize/blockSize {
		return syscall.EFBIG
	}
	if c.Src == c.Dst && c.SrcBlock < c.DstBlock+c.Count && c.DstBlock < c.SrcBlock+c.Count {
		return syscall.EINVAL
	}
	if tail := c.DstSize % blockSize; tail != 0 {
		// The last block is shared whole, as both files end in it: then there is nothing behind the end of either that
		// would be lost, or be found there later. The caller has looked, but files may have changed since.
		srcEnd := (c.SrcBlock+c.Count-1)*blockSize + tail
		if src.Size != srcEnd || dst.Size > c.DstSize || c.DstSize != (c.DstBlock+c.Count-1)*blockSize+tail {
			return syscall.EAGAIN
		}
	} else if src.Size < (c.SrcBlock+c.Count)*blockSize {
		return syscall.EAGAIN
	}
	if err := a.Share(src, c.SrcBlock, dst, c.DstBlock, c.Count); err != nil {
		return err
	}
	dst.Size = max(dst.Size, c.DstSize)
	return a.wrote(dst, false, false)
}

// replace swaps the contents of a file for equivalent ones: its times stay, as nothing changed that anybody asked
// for.
func (a *applier) replace(c *command.Replace) error {
	in, err := a.regular(c.Ino)
	if err != nil {
		return err
	}
	if in.Version != c.Version || in.Nlink == 0 {
		return syscall.EAGAIN
	}
	if len(c.Data) > 0 {
		if ok, err := a.mayReplace(c.Ino); err != nil || !ok {
			return errors.Join(syscall.EAGAIN, err)
		}
		if err := a.ReplaceContents(in, c.Data); err != nil {
			return err
		}
		in.Version++
		a.DeleteFact(freezeFact(c.Ino))
	}
	for _, x := range c.Xattrs {
		a.SetXattr(in.Ino, x.Name, x.Value)
		in.Flags |= meta.FlagXattr
	}
	a.SetInode(in)
	a.res.Inode = *in
	return nil
}
