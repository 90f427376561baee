package fs

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// memVolume is the dumb twin: a Volume in memory under one lock, with the rules written down as plainly as they are in the
// manuals. It has no limits and no default ACLs.
type memVolume struct {
	mu     sync.Mutex
	inodes map[meta.Ino]*memInode
	last   meta.Ino

	syncs atomic.Int64 // calls of Sync
}

type memInode struct {
	meta.Inode
	blocks     map[uint64][]byte // data by block number, blockSize each; holes are not there
	entries    []meta.Dirent     // in cookie order
	xattrs     map[string][]byte
	references int
}

func newMemVolume() *memVolume {
	v := &memVolume{inodes: make(map[meta.Ino]*memInode)}
	root := v.newInode(NewNode{Mode: syscall.S_IFDIR | 0o755})
	root.Nlink = 2
	root.Parent = root.Ino
	return v
}

func (v *memVolume) newInode(node NewNode) *memInode {
	v.last++
	now := Now()
	in := &memInode{
		Inode: meta.Inode{
			Ino: v.last, Mode: node.Mode &^ (node.Umask & 0o777), UID: node.UID, GID: node.GID, Rdev: node.Rdev, Target: node.Target,
			Atime: now, Mtime: now, Ctime: now, Btime: now, NextCookie: 1, Size: uint64(len(node.Target)),
		},
		blocks: make(map[uint64][]byte),
		xattrs: make(map[string][]byte),
	}
	v.inodes[in.Ino] = in
	return in
}

func (v *memVolume) inode(ino meta.Ino) (*memInode, error) {
	if in := v.inodes[ino]; in != nil {
		return in, nil
	}
	return nil, syscall.ESTALE
}

func (v *memVolume) dir(ino meta.Ino) (*memInode, error) {
	in, err := v.inode(ino)
	if err == nil && in.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		err = syscall.ENOTDIR
	}
	return in, err
}

func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..", strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > MaxNameLen:
		return syscall.ENAMETOOLONG
	}
	return nil
}

func (in *memInode) find(name string) int {
	return slices.IndexFunc(in.entries, func(e meta.Dirent) bool { return e.Name == name })
}

func (in *memInode) isDir() bool { return in.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// out is the inode as it is told.
func (in *memInode) out() meta.Inode {
	i := in.Inode
	i.Blocks = uint64(len(in.blocks))
	if in.isDir() {
		i.Size = uint64(len(in.entries))
	}
	if len(in.xattrs) > 0 {
		i.Flags |= meta.FlagXattr
	}
	return i
}

// entry is the directory and the inode behind a name in it.
func (v *memVolume) entry(parent meta.Ino, name string) (*memInode, *memInode, error) {
	dir, err := v.dir(parent)
	if err != nil {
		return nil, nil, err
	}
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	i := dir.find(name)
	if i < 0 {
		return dir, nil, syscall.ENOENT
	}
	in, err := v.inode(dir.entries[i].Ino)
	return dir, in, err
}

func (in *memInode) add(name string, child *memInode) { in.addAt(in.NextCookie, name, child) }

func (in *memInode) addAt(place uint64, name string, child *memInode) {
	i := slices.IndexFunc(in.entries, func(e meta.Dirent) bool { return e.Cookie > place })
	if i < 0 {
		i = len(in.entries)
	}
	in.entries = slices.Insert(in.entries, i, meta.Dirent{Name: name, Ino: child.Ino, Type: child.Mode & syscall.S_IFMT, Cookie: place})
	in.NextCookie = max(in.NextCookie, place+1)
	if child.isDir() {
		in.Nlink++
		child.Parent = in.Ino
	}
	in.Mtime = Now()
	in.Ctime = in.Mtime
}

func (in *memInode) cut(name string, child *memInode) {
	i := in.find(name)
	in.entries = slices.Delete(in.entries, i, i+1)
	if child.isDir() {
		in.Nlink--
	}
	in.Mtime = Now()
	in.Ctime = in.Mtime
}

func (v *memVolume) drop(in *memInode) {
	if in.isDir() {
		in.Nlink = 0
	} else {
		in.Nlink--
	}
	in.Ctime = Now()
	v.free(in)
}

func (v *memVolume) free(in *memInode) {
	if in.Nlink == 0 && in.references == 0 {
		delete(v.inodes, in.Ino)
	}
}

func (v *memVolume) Lookup(_ context.Context, parent meta.Ino, name string) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if name == "." || name == ".." {
		dir, err := v.dir(parent)
		if err == nil && name == ".." {
			dir, err = v.dir(dir.Parent)
		}
		if err != nil {
			return meta.Inode{}, err
		}
		return dir.out(), nil
	}
	_, in, err := v.entry(parent, name)
	if err != nil {
		return meta.Inode{}, err
	}
	return in.out(), nil
}

func (v *memVolume) Inode(_ context.Context, ino meta.Ino) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return meta.Inode{}, err
	}
	return in.out(), nil
}

func (in *memInode) killPriv() {
	if in.isDir() {
		return
	}
	in.Mode &^= syscall.S_ISUID
	if in.Mode&0o010 != 0 {
		in.Mode &^= syscall.S_ISGID
	}
	delete(in.xattrs, capabilityXattr)
}

// resize cuts off or adds a hole.
func (in *memInode) resize(size uint64) {
	if size < in.Size {
		for b, data := range in.blocks {
			if b*blockSize >= size {
				delete(in.blocks, b)
			} else if size < (b+1)*blockSize {
				clear(data[size-b*blockSize:])
			}
		}
	}
	in.Size = size
}

func (v *memVolume) SetAttr(_ context.Context, ino meta.Ino, c SetAttr) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return meta.Inode{}, err
	}
	now := Now()
	if c.Size != nil {
		if in.Mode&syscall.S_IFMT != syscall.S_IFREG {
			return meta.Inode{}, syscall.EINVAL
		}
		in.resize(*c.Size)
		in.Mtime = now
	}
	if c.KillPriv {
		in.killPriv()
	}
	if (c.Size != nil || c.UID != nil || c.GID != nil) && !in.isDir() {
		delete(in.xattrs, capabilityXattr)
	}
	if c.Mode != nil {
		in.Mode = in.Mode&syscall.S_IFMT | *c.Mode
	}
	if c.UID != nil {
		in.UID = *c.UID
	}
	if c.GID != nil {
		in.GID = *c.GID
	}
	if c.Atime != nil {
		in.Atime = *c.Atime
	}
	if c.Mtime != nil {
		in.Mtime = *c.Mtime
	}
	in.Ctime = now
	if c.Ctime != nil {
		in.Ctime = *c.Ctime
	}
	return in.out(), nil
}

func (v *memVolume) Make(_ context.Context, node NewNode) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir, in, err := v.entry(node.Parent, node.Name)
	switch {
	case err == nil && in != nil:
		return meta.Inode{}, syscall.EEXIST
	case err != syscall.ENOENT:
		return meta.Inode{}, err
	case dir.Nlink == 0:
		return meta.Inode{}, syscall.ENOENT
	}
	inheritGroup(&node, dir)
	in = v.newInode(node)
	in.Nlink = 1
	if in.isDir() {
		in.Nlink = 2
	}
	if node.Reference {
		in.references++
	}
	dir.add(node.Name, in)
	return in.out(), nil
}

func inheritGroup(node *NewNode, dir *memInode) {
	if dir.Mode&syscall.S_ISGID != 0 {
		node.GID = dir.GID
		if node.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			node.Mode |= syscall.S_ISGID
		}
	}
}

func (v *memVolume) MakeOrphan(_ context.Context, node NewNode) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir, err := v.dir(node.Parent)
	if err != nil {
		return meta.Inode{}, err
	}
	inheritGroup(&node, dir)
	in := v.newInode(node)
	in.references++
	return in.out(), nil
}

func (v *memVolume) Link(_ context.Context, ino, parent meta.Ino, name string) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return meta.Inode{}, err
	}
	if in.isDir() {
		return meta.Inode{}, syscall.EPERM
	}
	dir, other, err := v.entry(parent, name)
	switch {
	case err == nil && other != nil:
		return meta.Inode{}, syscall.EEXIST
	case err != syscall.ENOENT:
		return meta.Inode{}, err
	case dir.Nlink == 0:
		return meta.Inode{}, syscall.ENOENT
	}
	in.Nlink++
	in.Ctime = Now()
	dir.add(name, in)
	return in.out(), nil
}

func (v *memVolume) Unlink(_ context.Context, parent meta.Ino, name string) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir, in, err := v.entry(parent, name)
	if err != nil {
		return meta.Inode{}, err
	}
	if in.isDir() {
		return meta.Inode{}, syscall.EISDIR
	}
	dir.cut(name, in)
	v.drop(in)
	return in.out(), nil
}

func (v *memVolume) Rmdir(_ context.Context, parent meta.Ino, name string) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir, in, err := v.entry(parent, name)
	switch {
	case err != nil:
		return meta.Inode{}, err
	case !in.isDir():
		return meta.Inode{}, syscall.ENOTDIR
	case len(in.entries) > 0:
		return meta.Inode{}, syscall.ENOTEMPTY
	}
	dir.cut(name, in)
	v.drop(in)
	return in.out(), nil
}

// within tells whether a directory is another one or below it.
func (v *memVolume) within(dir, ancestor *memInode) bool {
	for {
		if dir == ancestor {
			return true
		}
		if dir.Ino == meta.RootIno {
			return false
		}
		dir = v.inodes[dir.Parent]
	}
}

func (v *memVolume) Rename(_ context.Context, oldParent meta.Ino, oldName string, newParent meta.Ino, newName string, flags uint32) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 || flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE {
		return syscall.EINVAL
	}
	oldDir, in, err := v.entry(oldParent, oldName)
	if err != nil {
		return err
	}
	newDir, other, err := v.entry(newParent, newName)
	if err != nil && err != syscall.ENOENT {
		return err
	}
	if in.isDir() && v.within(newDir, in) {
		return syscall.EINVAL
	}
	if newDir.Nlink == 0 {
		return syscall.ENOENT
	}
	if flags == unix.RENAME_EXCHANGE {
		if other == nil {
			return syscall.ENOENT
		}
		if other.isDir() && v.within(oldDir, other) {
			return syscall.EINVAL
		}
		if in == other {
			return nil
		}
		oldDir.cut(oldName, in)
		newDir.cut(newName, other)
		oldDir.add(oldName, other)
		newDir.add(newName, in)
		in.Ctime, other.Ctime = Now(), Now()
		return nil
	}
	if other != nil {
		switch {
		case flags == unix.RENAME_NOREPLACE:
			return syscall.EEXIST
		case in == other:
			return nil
		case in.isDir() && !other.isDir():
			return syscall.ENOTDIR
		case !in.isDir() && other.isDir():
			return syscall.EISDIR
		case other.isDir() && len(other.entries) > 0:
			return syscall.ENOTEMPTY
		}
	}
	// The entry that is replaced keeps its place, and so does one that stays in its directory.
	place := newDir.NextCookie
	switch {
	case other != nil:
		place = newDir.entries[newDir.find(newName)].Cookie
		newDir.cut(newName, other)
		v.drop(other)
	case newDir == oldDir:
		place = oldDir.entries[oldDir.find(oldName)].Cookie
	}
	oldDir.cut(oldName, in)
	newDir.addAt(place, newName, in)
	in.Ctime = Now()
	return nil
}

func (v *memVolume) RenameWhiteout(ctx context.Context, oldParent meta.Ino, oldName string, newParent meta.Ino, newName string, flags, uid, gid uint32) error {
	if flags&unix.RENAME_EXCHANGE != 0 {
		return syscall.EINVAL
	}
	err := v.Rename(ctx, oldParent, oldName, newParent, newName, flags&^unix.RENAME_WHITEOUT)
	if err == nil {
		_, err = v.Make(ctx, NewNode{Parent: oldParent, Name: oldName, Mode: unix.S_IFCHR, UID: uid, GID: gid})
	}
	return err
}

func (v *memVolume) ReadDir(_ context.Context, ino meta.Ino, after uint64, plus bool, yield func(meta.Dirent, *meta.Inode) bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir, err := v.dir(ino)
	if err != nil {
		return err
	}
	for _, e := range dir.entries {
		if e.Cookie <= after {
			continue
		}
		var inode *meta.Inode
		if plus {
			i := v.inodes[e.Ino].out()
			inode = &i
		}
		if !yield(e, inode) {
			break
		}
	}
	return nil
}

func (v *memVolume) Reference(ino meta.Ino) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err == nil {
		in.references++
	}
	return err
}

func (v *memVolume) Unreference(ino meta.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in := v.inodes[ino]
	if in == nil || in.references == 0 {
		panic("Unreference without Reference")
	}
	in.references--
	v.free(in)
}

func (v *memVolume) Read(_ context.Context, ino meta.Ino, off uint64, dst []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return 0, err
	}
	return in.read(off, dst), nil
}

func (in *memInode) read(off uint64, dst []byte) int {
	n := int(min(uint64(len(dst)), in.Size-min(off, in.Size)))
	clear(dst[:n])
	in.each(off, uint64(n), func(b, from, to, at uint64) {
		if data := in.blocks[b]; data != nil {
			copy(dst[at:], data[from:to])
		}
	})
	return n
}

// each calls do for each block that a range touches: with its number, the part of it and where that is in the range.
func (in *memInode) each(off, length uint64, do func(block, from, to, at uint64)) {
	for at := uint64(0); at < length; {
		block, from := (off+at)/blockSize, (off+at)%blockSize
		to := min(blockSize, from+length-at)
		do(block, from, to, at)
		at += to - from
	}
}

func (in *memInode) write(off uint64, data []byte) {
	in.allocate(off, uint64(len(data)))
	in.each(off, uint64(len(data)), func(b, from, to, at uint64) { copy(in.blocks[b][from:to], data[at:]) })
	in.Size = max(in.Size, off+uint64(len(data)))
}

func (in *memInode) allocate(off, length uint64) {
	in.each(off, length, func(b, _, _, _ uint64) {
		if in.blocks[b] == nil {
			in.blocks[b] = make([]byte, blockSize)
		}
	})
}

func (v *memVolume) Write(_ context.Context, ino meta.Ino, off uint64, data []byte, how WriteFlags) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return meta.Inode{}, err
	}
	if how&WriteAppend != 0 {
		off = in.Size
	}
	if how&WriteKillPriv != 0 {
		in.killPriv()
	}
	in.write(off, data)
	if how&WriteFromCache == 0 {
		delete(in.xattrs, capabilityXattr)
		in.Mtime = Now()
		in.Ctime = in.Mtime
	}
	return in.out(), nil
}

func (v *memVolume) Fallocate(_ context.Context, ino meta.Ino, mode uint32, off, length uint64) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return meta.Inode{}, err
	}
	end := off + length
	switch mode {
	case 0, unix.FALLOC_FL_KEEP_SIZE:
		in.allocate(off, length)
		if mode == 0 && end > in.Size {
			in.resize(end)
		}
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE:
		if mode == unix.FALLOC_FL_ZERO_RANGE && end > in.Size {
			in.resize(end)
		}
		if mode&unix.FALLOC_FL_ZERO_RANGE != 0 {
			in.allocate(off, length)
		}
		in.each(off, length, func(b, from, to, _ uint64) {
			if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 && to-from == blockSize {
				delete(in.blocks, b)
			} else if data := in.blocks[b]; data != nil {
				clear(data[from:to])
			}
		})
	default:
		return meta.Inode{}, syscall.EOPNOTSUPP
	}
	in.Mtime = Now()
	in.Ctime = in.Mtime
	return in.out(), nil
}

func (v *memVolume) CopyRange(_ context.Context, src meta.Ino, srcOff uint64, dst meta.Ino, dstOff, length uint64) (uint64, meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	from, err := v.inode(src)
	if err != nil {
		return 0, meta.Inode{}, err
	}
	to, err := v.inode(dst)
	if err != nil {
		return 0, meta.Inode{}, err
	}
	if from == to && srcOff < dstOff+length && dstOff < srcOff+length {
		return 0, meta.Inode{}, syscall.EINVAL
	}
	data := make([]byte, length)
	data = data[:from.read(srcOff, data)]
	to.write(dstOff, data)
	to.Mtime = Now()
	to.Ctime = to.Mtime
	return uint64(len(data)), to.out(), nil
}

func (v *memVolume) Seek(_ context.Context, ino meta.Ino, off uint64, whence uint32) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return 0, err
	}
	if off >= in.Size {
		return 0, syscall.ENXIO
	}
	data := whence == unix.SEEK_DATA
	for b := off / blockSize; b*blockSize < in.Size; b++ {
		if (in.blocks[b] != nil) == data {
			return max(off, b*blockSize), nil
		}
	}
	if data {
		return 0, syscall.ENXIO
	}
	return in.Size, nil
}

func (v *memVolume) Xattr(_ context.Context, ino meta.Ino, name string) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return nil, err
	}
	value, ok := in.xattrs[name]
	if !ok {
		return nil, syscall.ENODATA
	}
	return value, nil
}

func (v *memVolume) Xattrs(_ context.Context, ino meta.Ino) ([]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range in.xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (v *memVolume) SetXattr(_ context.Context, ino meta.Ino, name string, value []byte, flags uint32, clearSGID bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return err
	}
	_, exists := in.xattrs[name]
	switch {
	case exists && flags&unix.XATTR_CREATE != 0:
		return syscall.EEXIST
	case !exists && flags&unix.XATTR_REPLACE != 0:
		return syscall.ENODATA
	}
	in.xattrs[name] = slices.Clone(value)
	if name == accessACL {
		in.modeFromACL(value)
		if clearSGID {
			in.Mode &^= syscall.S_ISGID
		}
	}
	in.Ctime = Now()
	return nil
}

// modeFromACL sets the permission bits to what an ACL says: entries of tag, permissions and id after a version number.
func (in *memInode) modeFromACL(acl []byte) {
	const userObj, groupObj, mask, other = 0x01, 0x04, 0x10, 0x20
	shifts := map[uint16]uint{userObj: 6, groupObj: 3, other: 0}
	for _, tag := range []uint16{userObj, groupObj, other, mask} { // the mask, where there is one, is the group's bits
		for e := acl[4:]; len(e) >= 8; e = e[8:] {
			if binary.LittleEndian.Uint16(e) != tag {
				continue
			}
			shift := shifts[tag]
			if tag == mask {
				shift = 3
			}
			in.Mode = in.Mode&^(0o7<<shift) | uint32(binary.LittleEndian.Uint16(e[2:])&7)<<shift
		}
	}
}

func (v *memVolume) RemoveXattr(_ context.Context, ino meta.Ino, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	in, err := v.inode(ino)
	if err != nil {
		return err
	}
	if _, ok := in.xattrs[name]; !ok {
		return syscall.ENODATA
	}
	delete(in.xattrs, name)
	in.Ctime = Now()
	return nil
}

func (v *memVolume) TouchAtime(ino meta.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if in := v.inodes[ino]; in != nil && !in.Mtime.Before(in.Atime) {
		in.Atime = Now()
	}
}

func (v *memVolume) Sync(context.Context) error {
	v.syncs.Add(1)
	return nil
}

func (v *memVolume) StatFS(context.Context) (StatFS, error) {
	return StatFS{BlockSize: blockSize, Blocks: 1 << 20, BlocksFree: 1 << 19, BlocksAvail: 1 << 19, Files: 1 << 20, FilesFree: 1 << 19}, nil
}
