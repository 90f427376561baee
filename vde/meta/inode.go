package meta

import "time"

// Ino is an inode number: 16 bits of group in front, 48 bits of a sequence that is never used twice within its
// group. So an inode number names its group without a path, and no generation number is needed.
type Ino uint64

const (
	// RootIno is the root directory: sequence 1 of group 0 ("default").
	RootIno Ino = 1
	// seqBits is the width of the sequence part of an Ino.
	seqBits = 48
)

// MakeIno joins a group slot (0..65535) and a sequence (1..2^48-1).
func MakeIno(group uint16, seq uint64) Ino { return Ino(uint64(group)<<seqBits | seq&(1<<seqBits-1)) }

// Group is the slot of the group that holds the inode.
func (i Ino) Group() uint16 { return uint16(i >> seqBits) }

// Seq is the sequence number of the inode within its group.
func (i Ino) Seq() uint64 { return uint64(i) & (1<<seqBits - 1) }

// Time is a point in time as POSIX keeps it: seconds since 1970 (negative before) and 0..999,999,999 nanoseconds.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts from the standard library's time.
func TimeOf(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Before tells whether t is earlier than u.
func (t Time) Before(u Time) bool { return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec }

// Flags of an inode.
const (
	// FlagXattr is set when the inode may have extended attributes, so that the many that have none are answered
	// without a look into the store.
	FlagXattr uint32 = 1 << iota
	// FlagDefaultACL is set on directories with a default ACL.
	FlagDefaultACL
	// FlagLinkable is set on an inode that was made without a name (O_TMPFILE): it may get one.
	FlagLinkable
)

// Inode is everything that stat(2) tells of a file, and what the store keeps beside it.
//
// Invariants: Mode has exactly one S_IFMT type; Nlink is 0 only for an orphan (unlinked, still open); directories
// have Nlink 2 + number of subdirectories, Parent set and Size equal to the number of entries; Blocks counts the
// 4 KiB blocks that are mapped (written or preallocated), shared ones included; Target is set for symlinks only and
// Size is its length.
type Inode struct {
	Ino        Ino
	Mode       uint32 // raw st_mode: type, set-id, sticky and permission bits
	Nlink      uint32
	UID, GID   uint32
	Rdev       uint32 // as mknod(2) gives it, for device nodes
	Flags      uint32
	Size       uint64 // bytes; of a directory: its number of entries
	Blocks     uint64 // 4 KiB blocks mapped
	Atime      Time
	Mtime      Time
	Ctime      Time
	Btime      Time
	Version    uint64 // grows with every change of the contents
	Parent     Ino    // directories: the directory that holds it (the root is its own)
	NextCookie uint64 // directories: cookie that the next new entry gets
	Target     string // symlinks
}

// Dirent is one entry of a directory.
type Dirent struct {
	Name   string
	Ino    Ino
	Type   uint32 // the S_IFMT bits of the inode's mode
	Cookie uint64 // place in the directory: never given to another entry, grows with creation; readdir resumes after it
}
