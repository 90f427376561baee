package fs

import (
	"math"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

func (f *filesystem) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(opMknod, NewNode{
		Parent: f.ino(in.NodeId), Name: name, Mode: in.Mode, Umask: in.Umask, UID: in.Uid, GID: in.Gid, Rdev: in.Rdev,
	}, out)
}

func (f *filesystem) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(opMkdir, NewNode{
		Parent: f.ino(in.NodeId), Name: name, Mode: in.Mode&^syscall.S_IFMT | syscall.S_IFDIR, Umask: in.Umask, UID: in.Uid, GID: in.Gid,
	}, out)
}

func (f *filesystem) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.make(opSymlink, NewNode{
		Parent: f.ino(in.NodeId), Name: name, Mode: syscall.S_IFLNK | 0o777, UID: in.Uid, GID: in.Gid, Target: target,
	}, out)
}

func (f *filesystem) make(o op, node NewNode, out *fuse.EntryOut) fuse.Status {
	f.count(o)
	inode, err := f.volume.Make(f.ctx, node)
	if err != nil {
		return f.status(o, node.Parent, err)
	}
	f.fillEntry(&inode, out)
	return fuse.OK
}

func (f *filesystem) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	f.count(opReadlink)
	ino := f.ino(in.NodeId)
	inode, err := f.volume.Inode(f.ctx, ino)
	if err != nil {
		return nil, f.status(opReadlink, ino, err)
	}
	if inode.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return nil, fuse.EINVAL
	}
	f.touch(ino, 0)
	return []byte(inode.Target), fuse.OK
}

func (f *filesystem) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	f.count(opLink)
	if f.stale(in.Oldnodeid) {
		return fuse.Status(syscall.ESTALE)
	}
	ino := f.ino(in.Oldnodeid)
	inode, err := f.volume.Link(f.ctx, ino, f.ino(in.NodeId), name)
	if err != nil {
		return f.status(opLink, ino, err)
	}
	if f.nodes.named(in.Oldnodeid) {
		f.volume.Unreference(ino)
	}
	f.fillEntry(&inode, out)
	return fuse.OK
}

func (f *filesystem) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(opUnlink, f.ino(in.NodeId), name)
}

func (f *filesystem) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return f.remove(opRmdir, f.ino(in.NodeId), name)
}

// remove removes a name. The inode is referenced over it, so that it is still there for whatever the kernel may do with
// it (it knows it: it has just looked it up) if this was its last name.
func (f *filesystem) remove(o op, parent meta.Ino, name string) fuse.Status {
	f.count(o)
	victim, err := f.removable(parent, name)
	if err != nil {
		return f.status(o, parent, err)
	}
	var after meta.Inode
	if o == opRmdir {
		after, err = f.volume.Rmdir(f.ctx, parent, name)
	} else {
		after, err = f.volume.Unlink(f.ctx, parent, name)
	}
	if victim != 0 {
		f.keepRemoved(victim, err == nil && after.Ino == victim && after.Nlink == 0)
	}
	return f.status(o, parent, err)
}

// removable references what a name stands for; 0: that is not known, and removing it tells.
func (f *filesystem) removable(parent meta.Ino, name string) (meta.Ino, error) {
	if f.others != nil && !f.options.NoCache {
		// The kernel has looked the name up a moment ago. If another mount has put a new file in its place since, then this machine has
		// nothing of that open.
		victim, err := f.others.Peek(parent, name)
		if err != nil || f.volume.Reference(victim.Ino) != nil {
			return 0, nil
		}
		return victim.Ino, nil
	}
	victim, err := f.volume.Lookup(f.ctx, parent, name)
	if err == nil {
		err = f.volume.Reference(victim.Ino)
	}
	return victim.Ino, err
}

// keepRemoved decides about a Reference that was taken before a name of an inode went: if it was the last, the Reference
// is kept until the kernel has forgotten the inode.
func (f *filesystem) keepRemoved(ino meta.Ino, last bool) {
	if !last || !f.nodes.hold(f.node(ino), true) {
		f.volume.Unreference(ino)
	}
}

// Rename moves a name; what had the new name before is removed as by Unlink.
func (f *filesystem) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	f.count(opRename)
	oldParent, newParent := f.ino(in.NodeId), f.ino(in.Newdir)
	victim := meta.Ino(0)
	if in.Flags&(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) == 0 {
		// ENOENT is the usual case, and whatever else is wrong the rename itself says better.
		if ino, err := f.removable(newParent, newName); err == nil {
			victim = ino
		}
	}
	var err error
	if in.Flags&unix.RENAME_WHITEOUT != 0 {
		err = f.volume.RenameWhiteout(f.ctx, oldParent, oldName, newParent, newName, in.Flags, in.Uid, in.Gid)
	} else {
		err = f.volume.Rename(f.ctx, oldParent, oldName, newParent, newName, in.Flags)
	}
	if victim != 0 {
		last := false
		if err == nil {
			// Renaming a file to another name of itself removes nothing.
			after, e := f.volume.Inode(f.ctx, victim)
			last = e == nil && after.Nlink == 0
		}
		f.keepRemoved(victim, last)
	}
	if err == nil && oldParent != newParent {
		f.moved(newParent, newName)
		if in.Flags&unix.RENAME_EXCHANGE != 0 {
			f.moved(oldParent, oldName)
		}
	}
	return f.status(opRename, oldParent, err)
}

// moved has the kernel drop the listing of a directory that has come from another one: ".." is in it. The kernel drops
// those of the two parents by itself.
func (f *filesystem) moved(parent meta.Ino, name string) {
	inode, err := f.volume.Lookup(f.ctx, parent, name)
	if err == nil && inode.Mode&syscall.S_IFMT == syscall.S_IFDIR && f.server != nil {
		f.server.InodeNotify(f.node(inode.Ino), 0, 0) // ENOENT: the kernel does not know it
	}
}

// OpenDir is asked once: after ENOSYS the kernel opens directories by itself, and keeps their listings as with
// FOPEN_CACHE_DIR. That saves two requests per listing, and the server has nothing to do for an open directory.
func (f *filesystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	if f.others != nil {
		dir, err := f.others.PeekInode(f.ino(in.NodeId))
		if err == nil && f.goneElsewhere(in.NodeId, &dir) {
			err = syscall.ESTALE
		}
		return f.status(opReaddir, f.ino(in.NodeId), err)
	}
	if f.options.NoCache || f.options.Shared {
		return fuse.OK
	}
	return fuse.ENOSYS
}

// ReleaseDir ends an open directory.
func (f *filesystem) ReleaseDir(*fuse.ReleaseIn) {}

// Offsets in a directory: 0 is its beginning, 1 stands after ".", 2 after "..", and the place after an entry is its
// cookie and 2.
const dotEntries = 2

func (f *filesystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.count(opReaddir)
	return f.list(opReaddir, in, out, func(entry *fuse.DirEntry, _ *meta.Inode) bool { return out.AddDirEntry(*entry) })
}

func (f *filesystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.count(opReaddirplus)
	return f.list(opReaddirplus, in, out, func(entry *fuse.DirEntry, inode *meta.Inode) bool {
		slot := out.AddDirLookupEntry(*entry)
		if slot == nil {
			return false
		}
		if inode != nil { // node id 0 ("." and ".."): no lookup
			f.fillEntry(inode, slot)
		}
		return true
	})
}

func (f *filesystem) list(o op, in *fuse.ReadIn, out *fuse.DirEntryList, add func(*fuse.DirEntry, *meta.Inode) bool) fuse.Status {
	dir := f.ino(in.NodeId)
	after := in.Offset
	var entry fuse.DirEntry
	if after < dotEntries {
		inode, err := f.volume.Inode(f.ctx, dir)
		if f.others != nil && ToErrno(err) == syscall.ESTALE {
			err = syscall.ENOENT // another mount has removed it, and who lists it has it open
		}
		if err != nil {
			return f.status(o, dir, err)
		}
		if inode.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			return fuse.ENOTDIR
		}
		f.touch(dir, in.Flags)
		f.listings.begin(dir, inode.NextCookie)
		dots := [dotEntries]fuse.DirEntry{
			{Name: ".", Ino: uint64(dir), Mode: syscall.S_IFDIR, Off: 1},
			{Name: "..", Ino: uint64(inode.Parent), Mode: syscall.S_IFDIR, Off: 2},
		}
		for ; after < dotEntries; after++ {
			if !add(&dots[after], nil) {
				return fuse.OK
			}
		}
		if inode.Nlink == 0 {
			return fuse.OK // removed
		}
	}
	end := f.listings.end(dir)
	err := f.volume.ReadDir(f.ctx, dir, after-dotEntries, o == opReaddirplus, func(e meta.Dirent, inode *meta.Inode) bool {
		if e.Cookie >= end {
			return false
		}
		entry = fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: e.Type, Off: e.Cookie + dotEntries}
		return add(&entry, inode)
	})
	if f.others != nil && ToErrno(err) == syscall.ESTALE {
		err = syscall.ENOENT // as above
	}
	return f.status(o, dir, err)
}

// listings knows where the listings of directories end: behind the entries that were there when the last of them began. What is made
// meanwhile has its place at the end, so a program that makes or moves in an entry for each that it finds would never be done. Disk
// filesystems end a listing likewise. One place for all who list a directory does for each of them: an earlier one just gets more.
//
// A directory that is dropped to make room, or listed on after a restart of the server, has no such end.
type listings struct {
	mu   sync.Mutex
	ends map[meta.Ino]uint64 // guarded by mu
}

// maxListings is how many directories are remembered: more than are listed at the same time.
const maxListings = 4096

// begin notes the cookie that the next new entry of a directory will get, as a listing begins.
func (l *listings) begin(dir meta.Ino, next uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.ends[dir]; !known && len(l.ends) >= maxListings {
		for other := range l.ends { // any
			delete(l.ends, other)
			break
		}
	}
	if l.ends == nil {
		l.ends = map[meta.Ino]uint64{}
	}
	l.ends[dir] = max(l.ends[dir], next)
}

// end is the cookie before which a listing ends.
func (l *listings) end(dir meta.Ino) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if end, known := l.ends[dir]; known {
		return end
	}
	return math.MaxUint64
}

// FsyncDir makes a directory's entries durable.
func (f *filesystem) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f.count(opFsync)
	return f.status(opFsync, f.ino(in.NodeId), f.volume.Sync(f.ctx))
}
