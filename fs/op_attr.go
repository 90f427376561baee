package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

func (f *filesystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.count(opGetattr)
	if in.Flags()&fuse.FUSE_GETATTR_FH == 0 && f.stale(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.NodeId)
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 && f.noRoom.tell(in.NodeId) && f.full() {
		return f.status(opGetattr, ino, syscall.ENOSPC)
	}
	keep := f.refreshTimes(in.NodeId)
	inode, err := f.volume.Inode(f.ctx, ino)
	if err = f.attrGone(&in.InHeader, &inode, err); err != nil {
		return f.status(opGetattr, ino, err)
	}
	f.fillAttrOut(&inode, out)
	if !keep {
		setTimeout(0, &out.AttrValid, &out.AttrValidNsec)
	}
	return fuse.OK
}

// Statx is asked when a caller wants the time of birth.
func (f *filesystem) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	f.count(opStatx)
	if in.GetattrFlags&fuse.FUSE_GETATTR_FH == 0 && f.stale(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.NodeId)
	keep := f.refreshTimes(in.NodeId)
	inode, err := f.volume.Inode(f.ctx, ino)
	if err = f.attrGone(&in.InHeader, &inode, err); err != nil {
		return f.status(opStatx, ino, err)
	}
	if keep {
		setTimeout(f.options.Timeouts.Attr, &out.AttrValid, &out.AttrValidNsec)
	}
	out.Statx = fuse.Statx{
		Mask:      unix.STATX_BASIC_STATS | unix.STATX_BTIME,
		Blksize:   blockSize,
		Nlink:     inode.Nlink,
		Uid:       inode.UID,
		Gid:       inode.GID,
		Mode:      uint16(inode.Mode),
		Ino:       uint64(inode.Ino),
		Size:      inode.Size,
		Blocks:    inode.Blocks * (blockSize / statBlock),
		Atime:     sxTime(inode.Atime),
		Btime:     sxTime(inode.Btime),
		Ctime:     sxTime(inode.Ctime),
		Mtime:     sxTime(inode.Mtime),
		RdevMajor: unix.Major(uint64(inode.Rdev)),
		RdevMinor: unix.Minor(uint64(inode.Rdev)),
	}
	return fuse.OK
}

func sxTime(t meta.Time) fuse.SxTime { return fuse.SxTime{Sec: uint64(t.Sec), Nsec: t.Nsec} }

// timesFromCache is what a SETATTR has set with which the kernel writes the times of its writeback cache back.
const timesFromCache = fuse.FATTR_MTIME | fuse.FATTR_CTIME

func (f *filesystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.count(opSetattr)
	ino := f.ino(in.NodeId)
	valid := in.Valid &^ (fuse.FATTR_FH | fuse.FATTR_LOCKOWNER)
	if f.writeback && valid == timesFromCache && f.nodes.get(in.NodeId).unlinked {
		// An unlink changes the ctime, which the kernel keeps and now writes back. But a file without a name does not
		// outlive the kernel's inode, so nobody will ever ask the volume for these times: spare it the work.
		return f.ignoreTimes(in, ino, out)
	}
	if f.writeback && f.ownTimes.own(in) {
		return f.ignoreTimes(in, ino, out)
	}

	var values struct {
		atime, mtime, ctime meta.Time // so that they are one allocation
		mode, uid, gid      uint32
		size                uint64
	}
	var change SetAttr
	if valid&fuse.FATTR_MODE != 0 {
		values.mode = in.Mode & 0o7777
		change.Mode = &values.mode
	}
	if valid&fuse.FATTR_UID != 0 {
		values.uid = in.Uid
		change.UID = &values.uid
	}
	if valid&fuse.FATTR_GID != 0 {
		values.gid = in.Gid
		change.GID = &values.gid
	}
	if valid&fuse.FATTR_SIZE != 0 {
		values.size = in.Size
		change.Size = &values.size
	}
	if valid&fuse.FATTR_ATIME != 0 {
		values.atime = meta.Time{Sec: int64(in.Atime), Nsec: in.Atimensec}
		if valid&fuse.FATTR_ATIME_NOW != 0 {
			values.atime = Now()
		}
		change.Atime = &values.atime
	}
	if valid&fuse.FATTR_MTIME != 0 {
		values.mtime = meta.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec}
		if valid&fuse.FATTR_MTIME_NOW != 0 {
			values.mtime = Now()
		}
		change.Mtime = &values.mtime
	}
	if valid&fuse.FATTR_CTIME != 0 {
		values.ctime = meta.Time{Sec: int64(in.Ctime), Nsec: in.Ctimensec}
		change.Ctime = &values.ctime
	}
	// A change of owner drops set-id bits whoever makes it; the kernel leaves that to the server (HANDLE_KILLPRIV_V2). Of
	// a truncation it says whether it is to.
	change.KillPriv = valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 && valid&fuse.FATTR_MODE == 0 ||
		valid&fuse.FATTR_KILL_SUIDGID != 0

	byPath := in.Valid&fuse.FATTR_FH == 0
	if byPath && f.stale(in.NodeId) {
		if f.writeback && valid == timesFromCache {
			return f.ignoreTimes(in, ino, out) // of before the change
		}
		return fuse.Status(syscall.ESTALE)
	}
	if byPath && change.Size != nil {
		// As if it were opened for that: nothing else replaces the contents meanwhile.
		if err := f.volume.Reference(ino); err != nil {
			return f.status(opSetattr, ino, err)
		}
		defer f.volume.Unreference(ino)
		if f.stale(in.NodeId) {
			return fuse.Status(syscall.ESTALE)
		}
	}
	change.Behind = f.maySetBehind(in)
	inode, err := f.volume.SetAttr(f.ctx, ino, change)
	if err == nil && change.Behind {
		f.closedMeanwhile(in.NodeId)
	}
	if err == nil && valid&(fuse.FATTR_KILL_SUIDGID|fuse.FATTR_SIZE) == fuse.FATTR_KILL_SUIDGID|fuse.FATTR_SIZE {
		err = f.killSGID(&in.InHeader, &inode)
	}
	if err != nil {
		return f.status(opSetattr, ino, err)
	}
	f.changedMeanwhile(in.NodeId, ino)
	f.fillAttrOut(&inode, out)
	if change.Behind {
		out.AttrValid, out.AttrValidNsec = 0, 0 // a guess
	}
	return fuse.OK
}

// ignoreTimes answers a SETATTR of times as if it had been done.
func (f *filesystem) ignoreTimes(in *fuse.SetAttrIn, ino meta.Ino, out *fuse.AttrOut) fuse.Status {
	inode, err := f.volume.Inode(f.ctx, ino)
	if err != nil {
		return f.status(opSetattr, ino, err)
	}
	inode.Mtime = meta.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec}
	inode.Ctime = meta.Time{Sec: int64(in.Ctime), Nsec: in.Ctimensec}
	f.fillAttrOut(&inode, out)
	return fuse.OK
}

// StatFs tells size and use, as df shows it.
func (f *filesystem) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.count(opStatfs)
	stat, err := f.volume.StatFS(f.ctx)
	if err != nil {
		return f.status(opStatfs, f.ino(in.NodeId), err)
	}
	out.Bsize = stat.BlockSize
	out.Frsize = stat.BlockSize
	out.Blocks = stat.Blocks
	out.Bfree = stat.BlocksFree
	out.Bavail = stat.BlocksAvail
	out.Files = stat.Files
	out.Ffree = stat.FilesFree
	out.NameLen = MaxNameLen
	return fuse.OK
}
