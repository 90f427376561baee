package fs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

const capabilityXattr = "security.capability"

func (f *filesystem) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	f.count(opCreate)
	parent := f.ino(in.NodeId)
	inode, err := f.volume.Make(f.ctx, NewNode{
		Parent: parent, Name: name, Mode: in.Mode&^syscall.S_IFMT | syscall.S_IFREG, Umask: in.Umask, UID: in.Uid, GID: in.Gid,
		Reference: true,
	})
	if errors.Is(err, syscall.EEXIST) && in.Flags&syscall.O_EXCL == 0 {
		// Another mount has made it since the kernel looked. Who did not ask to be the first gets that file: told this, the
		// kernel looks again and opens what it finds, with the checks that an existing file needs.
		err = syscall.ESTALE
	}
	if err != nil {
		return f.status(opCreate, parent, err)
	}
	f.fillEntry(&inode, &out.EntryOut)
	f.opened(out.NodeId, in.Flags, false, &out.OpenOut)
	if f.others != nil {
		f.nodes.created(out.NodeId)
	}
	return fuse.OK
}

// Tmpfile makes a file without a name (O_TMPFILE). Beside the Reference of the open file, one is held as for a removed
// file: the kernel can come back to the inode through /proc/self/fd after the file is closed.
func (f *filesystem) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	f.count(opTmpfile)
	parent := f.ino(in.NodeId)
	inode, err := f.volume.MakeOrphan(f.ctx, NewNode{
		Parent: parent, Mode: in.Mode&^syscall.S_IFMT | syscall.S_IFREG, Umask: in.Umask, UID: in.Uid, GID: in.Gid,
		Reference: true,
	})
	if err != nil {
		return f.status(opTmpfile, parent, err)
	}
	f.fillEntry(&inode, &out.EntryOut)
	f.opened(out.NodeId, in.Flags, false, &out.OpenOut)
	if err := f.volume.Reference(inode.Ino); err == nil && !f.nodes.hold(out.NodeId, false) {
		f.volume.Unreference(inode.Ino)
	}
	return fuse.OK
}

func (f *filesystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.count(opOpen)
	if f.stale(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.NodeId)
	if err := f.volume.Reference(ino); err != nil {
		return f.status(opOpen, ino, err)
	}
	// Asked after the reference: nothing replaces the contents of a referenced file.
	if f.stale(in.NodeId) {
		f.volume.Unreference(ino)
		return fuse.Status(syscall.ESTALE)
	}
	dropCaps := false
	var err error
	switch {
	case in.Flags&syscall.O_TRUNC != 0:
		var size uint64
		kill, hadSetID := in.Mode&fuse.OPEN_KILL_SUIDGID != 0, false
		if kill {
			if hadSetID, err = f.mayHaveSetID(ino); err != nil {
				break
			}
		}
		var inode meta.Inode
		if inode, err = f.volume.SetAttr(f.ctx, ino, SetAttr{Size: &size, KillPriv: kill}); err == nil && kill {
			err = f.killSGID(&in.InHeader, &inode)
		}
		if hadSetID {
			f.modeChanged(in.NodeId)
		}
	case f.writeback && writes(in.Flags):
		dropCaps, err = f.hasCapabilities(ino)
	}
	if err != nil {
		f.volume.Unreference(ino)
		return f.status(opOpen, ino, err)
	}
	f.opened(in.NodeId, in.Flags, dropCaps, out)
	return fuse.OK
}

// hasCapabilities tells whether a file carries file capabilities.
//
// A write removes them. Those that the kernel sends on from its cache do not, as it cannot be told whether they were
// written before or after a setxattr (cp -a sets them before it closes). So a file that has some when it is opened for
// writing loses them with the next write, and one that gets them later keeps them.
func (f *filesystem) hasCapabilities(ino meta.Ino) (bool, error) {
	inode, err := f.volume.Inode(f.ctx, ino)
	if err != nil || inode.Flags&meta.FlagXattr == 0 {
		return false, err
	}
	_, err = f.volume.Xattr(f.ctx, ino, capabilityXattr)
	if ToErrno(err) == syscall.ENODATA {
		return false, nil
	}
	return err == nil, err
}

// Read fills the buffer that go-fuse took from its pool. It is asked of any handle, write-only ones included (the
// writeback cache completes pages).
func (f *filesystem) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.count(opRead)
	ino := f.ino(in.NodeId)
	n, err := f.volume.Read(f.ctx, ino, in.Offset, buf[:in.Size])
	if err != nil {
		return nil, f.status(opRead, ino, err)
	}
	f.stats.bytesRead.Add(uint64(n))
	if !(f.writeback && in.Flags&syscall.O_ACCMODE == syscall.O_WRONLY) {
		f.touch(ino, in.Flags)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *filesystem) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f.count(opWrite)
	ino := f.ino(in.NodeId)
	var how WriteFlags
	fromCache := in.WriteFlags&fuse.WRITE_CACHE != 0
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		how |= WriteKillPriv
	}
	switch {
	case f.writeback && fromCache:
		how |= WriteFromCache
	case !f.writeback && !fromCache && in.Flags&syscall.O_APPEND != 0:
		how |= WriteAppend
	case f.mayWriteBehind(in):
		how |= WriteBehind
	}
	hadSetID := false
	if how&WriteKillPriv != 0 {
		var err error
		if hadSetID, err = f.mayHaveSetID(ino); err != nil {
			return 0, f.status(opWrite, ino, err)
		}
		if hadSetID {
			how &^= WriteBehind // they go now, not later
		}
	}
	inode, err := f.volume.Write(f.ctx, ino, in.Offset, data, how)
	if how&WriteFromCache != 0 && isNoRoom(err) {
		f.noRoom.note(in.NodeId)
		f.server.InodeNotify(in.NodeId, -1, 0) // ENOENT: the kernel does not know it
	}
	if err == nil && how&WriteKillPriv != 0 {
		err = f.killSGID(&in.InHeader, &inode)
	}
	if hadSetID {
		f.modeChanged(in.NodeId)
	}
	if err != nil {
		return 0, f.status(opWrite, ino, err)
	}
	if f.nodes.wrote(in.NodeId) {
		if err := f.volume.RemoveXattr(f.ctx, ino, capabilityXattr); err != nil && ToErrno(err) != syscall.ENODATA {
			return 0, f.status(opWrite, ino, err)
		}
	}
	if f.writeback && in.Fh&handleDirect != 0 {
		f.nodes.staleTimes(in.NodeId)
	}
	// With FOPEN_DIRECT_IO the kernel leaves O_SYNC to the server; otherwise it sends an FSYNC itself.
	if in.Fh&handleDirect != 0 && !fromCache && in.Flags&(syscall.O_SYNC|syscall.O_DSYNC) != 0 {
		if err := f.volume.Sync(f.ctx); err != nil {
			return 0, f.status(opWrite, ino, err)
		}
	}
	f.stats.bytesWritten.Add(uint64(len(data)))
	if !fromCache && (in.Fh&handleDirect != 0 || in.Flags&syscall.O_DIRECT != 0) && f.nodes.get(in.NodeId).cached > 0 {
		f.dropPages(in.NodeId, int64(in.Offset), int64(len(data)))
	}
	if f.others == nil && f.nodes.written(in.NodeId) {
		f.syncEarly()
	}
	return uint32(len(data)), fuse.OK
}

// syncEarly begins to sync for an fsync that is likely to come next: the disk works while the answer to the write and the fsync
// travel. One at a time, for all files: the volume has one log, and who comes then shares the next flush.
func (f *filesystem) syncEarly() {
	if !f.syncing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer f.syncing.Store(false)
		_ = f.volume.Sync(f.ctx) // an error comes again with the fsync
	}()
}

// Flush is asked at every close(2). There is nothing to do: the kernel itself writes its cache back before and reports
// what failed. ENOSYS tells it never to ask again. Where others share the volume, what was written behind is done before
// they open the file; with locks here, those of the closing process go; a volume that has something to do at close(2) does it.
func (f *filesystem) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	f.count(opFlush)
	if f.locks == nil && f.closing == nil {
		return fuse.ENOSYS
	}
	if f.others != nil {
		f.nodes.flushed(in.NodeId)
	}
	err := f.settleHandle(in.NodeId, in.Fh)
	f.flushed(in)
	if f.locks != nil {
		f.unlockOwner(in.NodeId, in.LockOwner)
	}
	return f.status(opFlush, f.ino(in.NodeId), err)
}

func (f *filesystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f.count(opFsync)
	f.nodes.fsynced(in.NodeId)
	err := f.settleHandle(in.NodeId, in.Fh)
	if err == nil {
		err = f.volume.Sync(f.ctx)
	}
	return f.status(opFsync, f.ino(in.NodeId), err)
}

// killPriv drops the set-id bits of a file before an ordinary user changes its contents. Of writes and truncations the kernel
// says when that is to be done, of other changes it does not (HANDLE_KILLPRIV_V2).
func (f *filesystem) killPriv(header *fuse.InHeader, ino meta.Ino) error {
	if header.Uid == 0 {
		return nil
	}
	ask := f.hasSetID
	if f.others != nil && f.nodes.get(f.node(ino)).fresh {
		ask = f.mayHaveSetID
	}
	has, err := ask(ino)
	if err != nil || !has {
		return err
	}
	inode, err := f.volume.SetAttr(f.ctx, ino, SetAttr{KillPriv: true})
	if err == nil {
		err = f.killSGID(header, &inode)
	}
	f.modeChanged(f.node(ino))
	return err
}

// hasSetID tells whether a file has a set-id bit, which the next change of its contents may drop.
func (f *filesystem) hasSetID(ino meta.Ino) (bool, error) {
	inode, err := f.volume.Inode(f.ctx, ino)
	return inode.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0, err
}

// mayHaveSetID is hasSetID without asking the others: where it is only to be known what the kernel has been told, and whether a change
// that drops the bits itself may be made later.
func (f *filesystem) mayHaveSetID(ino meta.Ino) (bool, error) {
	if f.others != nil {
		return f.others.MayHaveSetID(ino), nil
	}
	return f.hasSetID(ino)
}

// modeChanged has the kernel ask for the mode of a file when it needs it next. After a WRITE, OPEN, FALLOCATE or COPY_FILE_RANGE it
// expects other times, another size, but the mode that it knows, and would go on giving away the rights of the owner.
// It forgets attributes only: that waits for nothing, so a request may do it.
func (f *filesystem) modeChanged(node uint64) {
	f.server.InodeNotify(node, -1, 0)
}

// killSGID drops the set-group-id bit of a file that its group may not execute, after a change by somebody of another group;
// that of other files has gone with KillPriv. A request names only the first group of the caller, so one who is in the
// file's group by another drops it too.
func (f *filesystem) killSGID(header *fuse.InHeader, inode *meta.Inode) error {
	if inode.Mode&(syscall.S_IFMT|syscall.S_ISGID|syscall.S_IXGRP) != syscall.S_IFREG|syscall.S_ISGID || header.Gid == inode.GID {
		return nil
	}
	mode := inode.Mode & 0o7777 &^ syscall.S_ISGID
	after, err := f.volume.SetAttr(f.ctx, inode.Ino, SetAttr{Mode: &mode})
	if err == nil {
		*inode = after
	}
	return err
}

func (f *filesystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f.count(opFallocate)
	ino := f.ino(in.NodeId)
	if err := f.killPriv(&in.InHeader, ino); err != nil {
		return f.status(opFallocate, ino, err)
	}
	_, err := f.volume.Fallocate(f.ctx, ino, in.Mode, in.Offset, in.Length)
	return f.status(opFallocate, ino, err)
}

// Lseek answers SEEK_DATA and SEEK_HOLE. The kernel does not write back before it asks, and would be told that what it
// still holds is a hole (cp would leave it out), so where somebody may have written the server asks it to. It holds no page
// while it waits for this answer, so the writes pass.
func (f *filesystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f.count(opLseek)
	ino := f.ino(in.NodeId)
	if f.writeback && f.nodes.get(in.NodeId).writers > 0 {
		f.server.InodeNotify(in.NodeId, 0, 0)
	}
	offset, err := f.volume.Seek(f.ctx, ino, in.Offset, in.Whence)
	if err != nil {
		return f.status(opLseek, ino, err)
	}
	out.Offset = offset
	return fuse.OK
}

// maxCopy bounds one COPY_FILE_RANGE, whose answer has 32 bits; callers go on where it ended.
const maxCopy = 1 << 30

func (f *filesystem) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	f.count(opCopyFileRange)
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	src, dst := f.ino(in.NodeId), f.ino(in.NodeIdOut)
	if err := f.killPriv(&in.InHeader, dst); err != nil {
		return 0, f.status(opCopyFileRange, dst, err)
	}
	n, ok := f.copyBehind(in, src, dst)
	if !ok {
		copied, _, err := f.volume.CopyRange(f.ctx, src, in.OffIn, dst, in.OffOut, min(in.Len, maxCopy))
		if err != nil {
			return 0, f.status(opCopyFileRange, dst, err)
		}
		n = uint32(copied)
	}
	if in.FhIn&handleNoAtime == 0 {
		f.touch(src, 0)
	}
	return n, fuse.OK
}

// Ioctl knows none: chattr and the like are told so.
func (f *filesystem) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	f.count(opIoctl)
	return fuse.Status(syscall.ENOTTY)
}
