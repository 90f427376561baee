package fs

import (
	"context"

	"vdefs/vde/meta"
)

// Volume is the filesystem as the mount needs it: POSIX operations on inode numbers. fs/replica implements it.
//
// All methods may be called concurrently. Errors that POSIX names are (or wrap) a syscall.Errno; every other error
// goes through ToErrno. Names are single path components, already checked by nobody: the volume refuses empty ones,
// "." and "..", those with '/' or NUL (EINVAL) and those above 255 bytes (ENAMETOOLONG).
//
// Permissions are the kernel's business (default_permissions); a volume checks types, emptiness, cycles, limits.
// Every operation that changes something has taken effect, for all later calls, when it returns; it is durable when
// a later Sync has returned.
type Volume interface {
	// Lookup finds a name in a directory. ENOENT if it is not there, ENOTDIR if parent is no directory.
	// Unlike the other methods it takes "." and ".." (the parent), for file handles that outlive their path.
	Lookup(ctx context.Context, parent meta.Ino, name string) (meta.Inode, error)
	// Inode returns the attributes of an inode, also of an unlinked one that is still referenced. ESTALE if there is none.
	Inode(ctx context.Context, ino meta.Ino) (meta.Inode, error)
	// SetAttr changes attributes; it returns them as they are afterwards.
	SetAttr(ctx context.Context, ino meta.Ino, change SetAttr) (meta.Inode, error)
	// Make creates a file, directory, symlink, device node, fifo or socket. EEXIST if the name is taken.
	// With Reference set (open with O_CREAT) the new inode is referenced as by Reference.
	Make(ctx context.Context, node NewNode) (meta.Inode, error)
	// MakeOrphan creates a regular file without a name (O_TMPFILE), referenced as by Reference.
	MakeOrphan(ctx context.Context, node NewNode) (meta.Inode, error)
	// Link gives an inode another name; also the first name of an orphan made by MakeOrphan.
	Link(ctx context.Context, ino, parent meta.Ino, name string) (meta.Inode, error)
	// Unlink removes the name of anything but a directory; Rmdir that of an empty directory. They return the inode
	// as it is afterwards (Nlink 0: gone once no longer referenced).
	Unlink(ctx context.Context, parent meta.Ino, name string) (meta.Inode, error)
	Rmdir(ctx context.Context, parent meta.Ino, name string) (meta.Inode, error)
	// Rename with the flags of renameat2(2): 0, RENAME_NOREPLACE, RENAME_EXCHANGE (others: EINVAL).
	Rename(ctx context.Context, oldParent meta.Ino, oldName string, newParent meta.Ino, newName string, flags uint32) error
	// RenameWhiteout is Rename with RENAME_WHITEOUT among the flags (without RENAME_EXCHANGE): the old name becomes a character
	// device 0:0 without permissions, of that user and group, in the same step.
	RenameWhiteout(ctx context.Context, oldParent meta.Ino, oldName string, newParent meta.Ino, newName string, flags, uid, gid uint32) error

	// ReadDir yields the entries after a cookie in cookie order ("." and ".." are not among them), until yield
	// returns false. Entries created or removed meanwhile may or may not be seen; all others are seen exactly once.
	// inode is nil unless plus is set. Cookies are 1 or more (and below 2^62), so that after 0 is the beginning.
	ReadDir(ctx context.Context, dir meta.Ino, after uint64, plus bool, yield func(entry meta.Dirent, inode *meta.Inode) bool) error

	// Reference keeps an inode alive although it is unlinked: one call per open file handle. ESTALE if it is gone.
	Reference(ino meta.Ino) error
	// Unreference undoes one Reference (or one Make/MakeOrphan with Reference); the last one of an unlinked inode
	// frees it. The mount keeps what it unlinks referenced until the kernel has forgotten it, so nearly every removed
	// inode is freed here, a moment after its Unlink: it must return without waiting, and freeing many at once pays.
	Unreference(ino meta.Ino)

	// Read fills dst from offset off and returns how many bytes it read: fewer than len(dst) only at the end of the
	// file. Holes read as zeros. A block that fails its checksum is an error wrapping EIO, never wrong bytes.
	Read(ctx context.Context, ino meta.Ino, off uint64, dst []byte) (int, error)
	// Write writes data at off (or at the end of the file, with WriteAppend) and returns the inode afterwards. All
	// or nothing. The volume may keep data only during the call. EFBIG beyond MaxFileSize, ENOSPC when full. Unless
	// WriteFromCache is set it removes security.capability, as do SetAttr with a size or an owner (whoever asks).
	Write(ctx context.Context, ino meta.Ino, off uint64, data []byte, how WriteFlags) (meta.Inode, error)
	// Fallocate with the mode bits of fallocate(2); EOPNOTSUPP for unknown ones.
	Fallocate(ctx context.Context, ino meta.Ino, mode uint32, off, length uint64) (meta.Inode, error)
	// CopyRange shares or copies length bytes from one file into another (or the same, not overlapping: EINVAL);
	// short at the end of the source. It returns how much was copied and the inode of the destination.
	CopyRange(ctx context.Context, src meta.Ino, srcOff uint64, dst meta.Ino, dstOff, length uint64) (uint64, meta.Inode, error)
	// Seek answers lseek(2) with SEEK_DATA or SEEK_HOLE. ENXIO beyond the end of the file.
	Seek(ctx context.Context, ino meta.Ino, off uint64, whence uint32) (uint64, error)

	// Xattr returns a value (ENODATA if there is none). Names carry their namespace ("user.", "trusted.",
	// "security.", "system.posix_acl_access", ...). user.vde.* is computed by the volume and read-only.
	Xattr(ctx context.Context, ino meta.Ino, name string) ([]byte, error)
	// Xattrs lists the names, without the computed ones.
	Xattrs(ctx context.Context, ino meta.Ino) ([]string, error)
	// SetXattr with the flags of setxattr(2) (XATTR_CREATE, XATTR_REPLACE). Setting system.posix_acl_access changes the
	// mode bits too; clearSGID asks to drop the set-group-id bit (FUSE_SETXATTR_ACL_KILL_SGID).
	SetXattr(ctx context.Context, ino meta.Ino, name string, value []byte, flags uint32, clearSGID bool) error
	RemoveXattr(ctx context.Context, ino meta.Ino, name string) error

	// TouchAtime notes that a file was read at a time; the volume decides (relatime, noatime) whether and when that is
	// written. It never blocks on the disk.
	TouchAtime(ino meta.Ino)

	// Sync returns when everything that returned before the call is durable (on a majority).
	Sync(ctx context.Context) error
	// StatFS tells size and use.
	StatFS(ctx context.Context) (StatFS, error)
}

// MaxNameLen is the longest name of one directory entry, in bytes.
const MaxNameLen = 255

// SetAttr is a change of attributes; nil fields stay.
type SetAttr struct {
	Mode         *uint32 // permission, set-id and sticky bits; the type bits are ignored
	UID, GID     *uint32
	Size         *uint64
	Atime, Mtime *meta.Time
	Ctime        *meta.Time // the kernel's, with its writeback cache; nil: now
	KillPriv     bool       // clear set-user-id, and set-group-id where the group may execute (FATTR_KILL_SUIDGID); capabilities go too; nothing on directories
	// Behind: it may be done after the call has returned what the inode will be, until SharedVolume.Settle, which tells of an error.
	// Every other call on the inode through this volume sees it done.
	Behind bool
}

// NewNode describes an inode to be made.
type NewNode struct {
	Parent    meta.Ino
	Name      string
	Mode      uint32 // type and permission bits as the caller asked
	Umask     uint32 // applied unless the parent has a default ACL
	UID, GID  uint32 // of the caller; a set-group-id parent gives its own group
	Rdev      uint32
	Target    string // symlinks
	Reference bool
	// Security is set as an xattr in the same step (label of a security module), if Name is not empty.
	Security struct {
		Name  string
		Value []byte
	}
}

// WriteFlags say how a write is done.
type WriteFlags uint32

const (
	// WriteAppend ignores the offset: the data goes to the end of the file as it is when the write is applied.
	WriteAppend WriteFlags = 1 << iota
	// WriteKillPriv clears set-id bits and file capabilities (FUSE_WRITE_KILL_SUIDGID).
	WriteKillPriv
	// WriteFromCache marks a write of the kernel's writeback cache: it must not grow the file beyond what a truncate
	// that came later allows, and leaves mtime to the SETATTR that the kernel sends.
	WriteFromCache
	// WriteBehind allows the write to take effect later: before any later call on the inode that this volume gets, and
	// before SharedVolume.Settle returns, which tells whether it has failed. The inode that is returned is its number only.
	// It is given with WriteKillPriv or with no other flag.
	WriteBehind
)

// StatFS is the answer to statfs(2).
type StatFS struct {
	BlockSize   uint32 // bytes
	Blocks      uint64 // data blocks in all
	BlocksFree  uint64
	BlocksAvail uint64 // for ordinary users: without the reserve
	Files       uint64 // inodes in all: used and possible
	FilesFree   uint64
}
