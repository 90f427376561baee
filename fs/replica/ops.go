package replica

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/consensus"
	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// Lookup implements fs.Volume.
func (v *Volume) Lookup(ctx context.Context, parent meta.Ino, name string) (meta.Inode, error) {
	if err := v.barrier(ctx, parent); err != nil {
		return meta.Inode{}, err
	}
	if name == "." || name == ".." {
		in, err := v.inode(parent)
		if err != nil || name == "." {
			return in, err
		}
		return v.inode(in.Parent)
	}
	if err := posix.CheckName(name); err != nil {
		return meta.Inode{}, err
	}
	// Entry and inode are read one after the other: a removal between the two is a lookup that came after it.
	e, err := v.eng.Meta().Dirent(parent, name)
	if errors.Is(err, meta.ErrNotFound) {
		dir, err := v.inode(parent)
		if err == nil && dir.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = syscall.ENOTDIR
		} else if err == nil {
			err = syscall.ENOENT
		}
		return meta.Inode{}, err
	}
	if err != nil {
		return meta.Inode{}, err
	}
	if e.Ino.Group() != parent.Group() {
		if err := v.barrier(ctx, e.Ino); err != nil {
			return meta.Inode{}, err
		}
	}
	v.settled(e.Ino)
	in, err := v.inode(e.Ino)
	if errors.Is(err, syscall.ESTALE) {
		err = syscall.ENOENT
	}
	v.watch.named(parent, name, &in)
	return in, err
}

// Peek implements fs.SharedVolume.
func (v *Volume) Peek(parent meta.Ino, name string) (meta.Inode, error) {
	e, err := v.eng.Meta().Dirent(parent, name)
	if errors.Is(err, meta.ErrNotFound) {
		err = syscall.ENOENT
	}
	if err != nil {
		return meta.Inode{}, err
	}
	return v.inode(e.Ino)
}

// PeekInode implements fs.SharedVolume.
func (v *Volume) PeekInode(ino meta.Ino) (meta.Inode, error) { return v.inode(ino) }

// Inode implements fs.Volume.
func (v *Volume) Inode(ctx context.Context, ino meta.Ino) (meta.Inode, error) {
	v.settled(ino)
	if err := v.barrier(ctx, ino); err != nil {
		return meta.Inode{}, err
	}
	return v.inode(ino)
}

// inode reads an inode as this node knows it.
func (v *Volume) inode(ino meta.Ino) (meta.Inode, error) {
	in, err := v.eng.Meta().Inode(ino)
	if errors.Is(err, meta.ErrNotFound) {
		err = syscall.ESTALE
	}
	if err == nil {
		v.atimes.overlay(&in)
	}
	return in, err
}

// SetAttr implements fs.Volume.
func (v *Volume) SetAttr(ctx context.Context, ino meta.Ino, change fs.SetAttr) (meta.Inode, error) {
	c := &command.SetAttr{Ino: ino}
	if change.Mode != nil {
		c.Set, c.Mode = c.Set|command.SetMode, *change.Mode
	}
	if change.UID != nil {
		c.Set, c.UID = c.Set|command.SetUID, *change.UID
	}
	if change.GID != nil {
		c.Set, c.GID = c.Set|command.SetGID, *change.GID
	}
	if change.Atime != nil {
		c.Set, c.Atime = c.Set|command.SetAtime, *change.Atime
	}
	if change.Mtime != nil {
		c.Set, c.Mtime = c.Set|command.SetMtime, *change.Mtime
	}
	if change.Ctime != nil {
		c.Set, c.Ctime = c.Set|command.SetCtime, *change.Ctime
	}
	if change.KillPriv {
		c.Set |= command.KillPriv
	}
	if change.Behind && change.Size == nil && change.Ctime == nil {
		if in, ok := v.setAttrBehind(ino, func(*meta.Inode) *command.SetAttr { return c }); ok {
			return in, nil
		}
	}
	v.settled(ino)
	if change.Size != nil {
		c.Set, c.Size = c.Set|command.SetSize, *change.Size
		if *change.Size%4096 != 0 {
			// The block that is cut is rewritten.
			done, err := v.reserve(ctx, 1)
			if err != nil {
				return meta.Inode{}, err
			}
			defer done()
		}
	}
	res, err := v.change(ctx, c)
	if err == nil {
		if change.Atime != nil {
			v.atimes.forget(ino)
		}
		if change.Size != nil {
			v.watch.wrote(ino)
		}
		v.atimes.overlay(&res.Inode)
		if isDir(&res.Inode) && c.Set&(command.SetMode|command.SetUID|command.SetGID) != 0 {
			v.othersTold(ctx, false)
		}
	}
	return res.Inode, err
}

func (v *Volume) makeNode(ctx context.Context, n fs.NewNode, orphan bool) (meta.Inode, error) {
	var open *opens
	if n.Reference {
		open = v.opens
	}
	if !orphan && n.Mode&unix.S_IFMT == unix.S_IFREG {
		if slot := v.place(n.Parent, n.Name); slot != n.Parent.Group() {
			return v.makeApart(ctx, n, slot, open)
		}
	}
	return v.makeHere(ctx, n, orphan, open)
}

// makeHere makes an inode in the group of its directory.
func (v *Volume) makeHere(ctx context.Context, n fs.NewNode, orphan bool, open *opens) (meta.Inode, error) {
	c := &command.Make{
		Parent: n.Parent, Name: n.Name, Mode: n.Mode, Umask: n.Umask, UID: n.UID, GID: n.GID, Rdev: n.Rdev, Target: n.Target,
		Orphan: orphan, SecurityName: n.Security.Name, SecurityValue: n.Security.Value,
	}
	res, err := v.changeOpen(ctx, c, open)
	if err != nil {
		return res.Inode, err
	}
	if !orphan {
		v.watch.named(n.Parent, n.Name, &res.Inode)
	}
	return res.Inode, nil
}

// Make implements fs.Volume.
func (v *Volume) Make(ctx context.Context, n fs.NewNode) (meta.Inode, error) {
	return v.makeNode(ctx, n, false)
}

// MakeOrphan implements fs.Volume.
func (v *Volume) MakeOrphan(ctx context.Context, n fs.NewNode) (meta.Inode, error) {
	n.Reference = true
	return v.makeNode(ctx, n, true)
}

// Link implements fs.Volume.
func (v *Volume) Link(ctx context.Context, ino, parent meta.Ino, name string) (meta.Inode, error) {
	v.settled(ino)
	if v.apart(parent, ino) {
		return v.linkApart(ctx, ino, parent, name)
	}
	res, err := v.change(ctx, &command.Link{Ino: ino, Parent: parent, Name: name})
	if err == nil {
		v.watch.named(parent, name, &res.Inode)
	}
	return res.Inode, err
}

// orphaned frees what a command of this mount has taken the last name from, if nobody has it open.
func (v *Volume) orphaned(res *posix.Result) {
	if v.node != nil {
		return // it was told so when that was applied
	}
	for _, ino := range res.Orphans {
		v.unnamed(ino)
	}
}

// unnamed frees an inode that has lost its last name, if nobody has it open.
func (v *Volume) unnamed(ino meta.Ino) {
	if !v.opens.used(ino) {
		v.reaper.add(ino)
	}
}

// Unlink implements fs.Volume.
func (v *Volume) Unlink(ctx context.Context, parent meta.Ino, name string) (meta.Inode, error) {
	res, tag, err := v.changeTx(ctx, &command.Remove{Parent: parent, Name: name})
	if err != nil {
		return res.Inode, err
	}
	if v.apart(parent, res.Inode.Ino) {
		if v.dropLater(tag, res.Inode.Ino) {
			return res.Inode, nil
		}
		return v.finishDrop(ctx, tag, res.Inode.Ino), nil
	}
	v.orphaned(&res)
	return res.Inode, nil
}

// Rmdir implements fs.Volume.
func (v *Volume) Rmdir(ctx context.Context, parent meta.Ino, name string) (meta.Inode, error) {
	res, err := v.change(ctx, &command.Remove{Parent: parent, Name: name, Dir: true})
	if err == nil {
		v.orphaned(&res)
		v.othersTold(ctx, false) // not of the name: see fs.goneElsewhere
	}
	return res.Inode, err
}

// Rename implements fs.Volume.
func (v *Volume) Rename(ctx context.Context, oldParent meta.Ino, oldName string, newParent meta.Ino, newName string, flags uint32) error {
	if flags&unix.RENAME_WHITEOUT != 0 {
		return syscall.EINVAL // it has an owner: RenameWhiteout
	}
	return v.RenameWhiteout(ctx, oldParent, oldName, newParent, newName, flags, 0, 0)
}

// RenameWhiteout implements fs.Volume.
func (v *Volume) RenameWhiteout(ctx context.Context, oldParent meta.Ino, oldName string, newParent meta.Ino, newName string, flags, uid, gid uint32) error {
	if oldParent.Group() != newParent.Group() {
		return syscall.EXDEV // directories are all of one group: no path leads here
	}
	res, tag, err := v.changeTx(ctx, &command.Rename{
		Stay:      v.mayUse(command.OpRenameStay), // without it a whiteout is refused
		OldParent: oldParent, OldName: oldName, NewParent: newParent, NewName: newName, Flags: flags, UID: uid, GID: gid,
	})
	if err != nil {
		return err
	}
	exchange := flags&unix.RENAME_EXCHANGE != 0
	if !exchange && v.apart(oldParent, res.Replaced.Ino) && !v.dropLater(tag, res.Replaced.Ino) {
		v.finishDrop(ctx, tag, res.Replaced.Ino)
	}
	if v.apart(oldParent, res.Inode.Ino) {
		v.moved(ctx, &res.Inode)
	}
	if exchange && v.apart(oldParent, res.Replaced.Ino) {
		v.moved(ctx, &res.Replaced)
	}
	v.orphaned(&res)
	if isDir(&res.Inode) || isDir(&res.Replaced) {
		v.othersTold(ctx, true)
	}
	v.watch.renamed(newParent, newName, &res.Inode)
	if exchange {
		v.watch.renamed(oldParent, oldName, &res.Replaced)
	}
	return nil
}

// ReadDir implements fs.Volume.
func (v *Volume) ReadDir(ctx context.Context, dir meta.Ino, after uint64, plus bool, yield func(meta.Dirent, *meta.Inode) bool) error {
	if err := v.barrier(ctx, dir); err != nil {
		return err
	}
	current := map[uint16]bool{dir.Group(): true} // groups that were asked
	return v.eng.Meta().Dirents(dir, after, func(e meta.Dirent) (bool, error) {
		if !plus {
			return yield(e, nil), nil
		}
		if !current[e.Ino.Group()] {
			current[e.Ino.Group()] = true
			if err := v.barrier(ctx, e.Ino); err != nil {
				return false, err
			}
		}
		v.settled(e.Ino)
		in, err := v.inode(e.Ino)
		if errors.Is(err, syscall.ESTALE) {
			return true, nil // removed meanwhile
		}
		if err != nil {
			return false, err
		}
		v.watch.named(dir, e.Name, &in)
		return yield(e, &in), nil
	})
}

// Reference implements fs.Volume.
func (v *Volume) Reference(ino meta.Ino) error {
	if !v.opens.add(ino) {
		return syscall.ESTALE
	}
	if _, err := v.eng.Meta().Inode(ino); err != nil {
		v.opens.drop(ino)
		if errors.Is(err, meta.ErrNotFound) {
			return syscall.ESTALE
		}
		return err
	}
	return nil
}

// Unreference implements fs.Volume.
func (v *Volume) Unreference(ino meta.Ino) {
	if !v.opens.drop(ino) {
		return
	}
	in, err := v.eng.Meta().Inode(ino)
	if err != nil {
		return
	}
	if in.Nlink == 0 {
		v.reaper.add(ino)
	} else {
		v.watch.closed(ino)
	}
}

// Read implements fs.Volume.
func (v *Volume) Read(ctx context.Context, ino meta.Ino, off uint64, dst []byte) (int, error) {
	v.settled(ino)
	if v.strict {
		if err := v.barrier(ctx, ino); err != nil {
			return 0, err
		}
	}
	n, err := v.eng.Read(ctx, ino, off, dst)
	if errors.Is(err, vde.ErrBadBlock) {
		if rerr := v.repair(ctx, ino, off, uint64(len(dst))); rerr == nil {
			n, err = v.eng.Read(ctx, ino, off, dst)
		}
	}
	switch {
	case errors.Is(err, vde.ErrBadBlock):
		err = errors.Join(syscall.EIO, err)
	case errors.Is(err, meta.ErrNotFound):
		err = syscall.ESTALE
	}
	return n, err
}

// Write implements fs.Volume.
func (v *Volume) Write(ctx context.Context, ino meta.Ino, off uint64, data []byte, how fs.WriteFlags) (meta.Inode, error) {
	if how&fs.WriteBehind != 0 {
		if err := v.writeBehind(ctx, ino, off, data, how&fs.WriteKillPriv != 0); !errors.Is(err, syscall.EAGAIN) {
			return meta.Inode{Ino: ino}, err
		}
	}
	v.settled(ino)
	blocks := vde.BlocksFor(off, uint64(len(data))) + 1
	done, err := v.reserve(ctx, blocks)
	inPlace := false
	if errors.Is(err, syscall.ENOSPC) && how&fs.WriteAppend == 0 {
		// A full store takes what needs no room: the overwriting of blocks that are mapped.
		need, ferr := v.eng.FreshBlocks(ino, off, uint64(len(data)))
		if ferr == nil && need < blocks {
			done, err = v.reserve(ctx, need)
			inPlace = true
		}
	}
	if err != nil {
		return meta.Inode{}, err
	}
	defer done()
	if !inPlace && len(data) >= v.refMin && off%4096 == 0 && how&fs.WriteAppend == 0 && off+uint64(len(data)) <= vde.MaxFileSize {
		in, err := v.writeRef(ctx, ino, off, data, how)
		if !errors.Is(err, syscall.EAGAIN) {
			return in, err
		}
	}
	res, err := v.change(ctx, &command.Write{
		Ino: ino, Off: off, Data: data,
		Append: how&fs.WriteAppend != 0, KillPriv: how&fs.WriteKillPriv != 0, FromCache: how&fs.WriteFromCache != 0,
	})
	if err == nil {
		v.watch.wrote(ino)
	}
	return res.Inode, err
}

// writeRef writes data to the image at once and proposes only where it is. EAGAIN: the write cannot be done like this.
func (v *Volume) writeRef(ctx context.Context, ino meta.Ino, off uint64, data []byte, how fs.WriteFlags) (meta.Inode, error) {
	if v.readOnly.Load() {
		return meta.Inode{}, syscall.EROFS
	}
	end := off + uint64(len(data))
	if tail := len(data) % 4096; tail != 0 {
		// Whole blocks only, filled up where the file ends; applying checks that it does.
		in, err := v.Inode(ctx, ino)
		if err != nil || in.Size > end {
			return in, errors.Join(syscall.EAGAIN, err)
		}
		whole := make([]byte, len(data)-tail+4096)
		copy(whole, data)
		data = whole
	}
	return v.proposeRef(ctx, ino, off, end, data, how)
}

// proposeRef writes whole blocks to the image and proposes a write that ends at end and refers to them.
func (v *Volume) proposeRef(ctx context.Context, ino meta.Ino, off, end uint64, data []byte, how fs.WriteFlags) (meta.Inode, error) {
	g, err := v.group(ino)
	if err != nil {
		return meta.Inode{}, err
	}
	if g.Replicated() {
		return meta.Inode{}, syscall.EAGAIN // the others have not got the blocks
	}
	extents, sums, err := v.eng.PrepareWrite(ino, off/4096, data)
	if err != nil {
		return meta.Inode{}, errors.Join(syscall.EAGAIN, err) // the plain way tells what is wrong
	}
	res, err := v.changeAlone(ctx, &command.WriteRef{
		Ino: ino, FileBlock: off / 4096, End: end, Extents: extents, Sums: sums, Durable: g.promised.Load(),
		KillPriv: how&fs.WriteKillPriv != 0, FromCache: how&fs.WriteFromCache != 0,
	})
	if err != nil {
		v.eng.Unprepare(extents)
		if errors.Is(err, consensus.ErrNotAlone) {
			err = syscall.EAGAIN
		}
		return res.Inode, err
	}
	v.watch.wrote(ino)
	return res.Inode, nil
}

// Fallocate implements fs.Volume.
func (v *Volume) Fallocate(ctx context.Context, ino meta.Ino, mode uint32, off, length uint64) (meta.Inode, error) {
	v.settled(ino)
	blocks := uint64(2) // the parts of blocks at both ends
	if mode&unix.FALLOC_FL_PUNCH_HOLE == 0 {
		if length > vde.MaxFileSize {
			return meta.Inode{}, syscall.EFBIG
		}
		blocks += vde.BlocksFor(off, length)
	}
	done, err := v.reserve(ctx, blocks)
	if err != nil {
		return meta.Inode{}, err
	}
	defer done()
	res, err := v.change(ctx, &command.Fallocate{Ino: ino, Mode: mode, Off: off, Length: length})
	if err == nil {
		v.watch.wrote(ino)
	}
	return res.Inode, err
}

// copyChunk is how much CopyRange copies with one command where it cannot share, in bytes.
const copyChunk = 1 << 20

// CopyRange implements fs.Volume: whole blocks at equal offsets within a block are shared, the rest is copied.
func (v *Volume) CopyRange(ctx context.Context, src meta.Ino, srcOff uint64, dst meta.Ino, dstOff, length uint64) (uint64, meta.Inode, error) {
	in, err := v.Inode(ctx, src)
	if err != nil {
		return 0, in, err
	}
	out, err := v.Inode(ctx, dst)
	if err != nil {
		return 0, out, err
	}
	if srcOff >= in.Size {
		return 0, out, nil
	}
	length = min(length, in.Size-srcOff)
	switch {
	case dstOff+length < dstOff || dstOff+length > vde.MaxFileSize:
		return 0, out, syscall.EFBIG
	case src == dst && srcOff < dstOff+length && dstOff < srcOff+length:
		return 0, out, syscall.EINVAL
	}
	const bs = 4096
	done := uint64(0)
	copyBytes := func(n uint64) error {
		buf := make([]byte, min(n, copyChunk))
		for n > 0 {
			m, err := v.Read(ctx, src, srcOff+done, buf[:min(n, copyChunk)])
			if err != nil || m == 0 {
				return err
			}
			if out, err = v.Write(ctx, dst, dstOff+done, buf[:m], 0); err != nil {
				return err
			}
			done += uint64(m)
			n -= uint64(m)
		}
		return nil
	}
	if srcOff%bs == dstOff%bs {
		if head := (bs - srcOff%bs) % bs; head > 0 {
			if err := copyBytes(min(head, length)); err != nil {
				return done, out, err
			}
		}
		// The last block of the source is shared whole where it lands at or behind the end of the destination: what
		// is behind the end of a file is zeros in both. Applying makes sure that both still end there; else the rest is
		// copied.
		left := length - done
		blocks, size := left/bs, dstOff+done
		if left%bs != 0 && srcOff+length == in.Size && dstOff+length >= out.Size {
			blocks++
			size += left
		} else {
			size += blocks * bs
		}
		if blocks > 0 && src.Group() == dst.Group() {
			res, err := v.change(ctx, &command.Share{
				Src: src, SrcBlock: (srcOff + done) / bs, Dst: dst, DstBlock: (dstOff + done) / bs, Count: blocks, DstSize: size,
			})
			if err != nil && !errors.Is(err, syscall.EAGAIN) {
				return done, out, err
			}
			if err == nil {
				v.watch.wrote(dst)
				out = res.Inode
				done = min(length, done+blocks*bs)
			}
		}
	}
	if err := copyBytes(length - done); err != nil && done == 0 {
		return 0, out, err
	}
	return done, out, nil
}

// Seek implements fs.Volume.
func (v *Volume) Seek(ctx context.Context, ino meta.Ino, off uint64, whence uint32) (uint64, error) {
	hole := whence == unix.SEEK_HOLE
	if !hole && whence != unix.SEEK_DATA {
		return 0, syscall.EINVAL
	}
	v.settled(ino)
	if err := v.barrier(ctx, ino); err != nil {
		return 0, err
	}
	at, found, err := v.eng.Seek(ino, off, hole)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return 0, syscall.ESTALE
	case err != nil:
		return 0, err
	case !found:
		return 0, syscall.ENXIO
	}
	return at, nil
}

// TouchAtime implements fs.Volume.
func (v *Volume) TouchAtime(ino meta.Ino) { v.atimes.touch(ino) }

// StatFS implements fs.Volume. As many inodes are said to be possible as there is room for files of one block. In a cluster, what is kept for
// other mounts is free and not available, so that what df promises can be had.
func (v *Volume) StatFS(context.Context) (fs.StatFS, error) {
	total, free := v.eng.Usage()
	avail := free
	if v.node != nil && v.replicated(0) {
		least, kept := v.node.spare()
		avail = min(free, least-min(least, kept))
	}
	inodes := uint64(0)
	for _, g := range v.all() {
		state, _ := v.eng.Group(g.slot)
		inodes += state.Inodes
	}
	return fs.StatFS{
		BlockSize: blockSize, Blocks: total, BlocksFree: free, BlocksAvail: avail, Files: inodes + avail, FilesFree: avail,
	}, nil
}
