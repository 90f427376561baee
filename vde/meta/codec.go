package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrDecode marks a value in meta/ that does not have its form: damage, or a newer program's work.
var ErrDecode = errors.New("undecodable metadata")

// Inode value: little-endian, fixed up to the target.
//
//	 0  1 form (1)          33  8 blocks             93  8 version
//	 1  4 mode              41 12 atime (8 s, 4 ns)  101  8 parent
//	 5  4 nlink             53 12 mtime             109  8 next cookie
//	 9  4 uid               65 12 ctime             117  n target of a symlink
//	13  4 gid               77 12 btime
//	17  4 rdev              89  4 (zero)
//	21  4 flags
//	25  8 size
const (
	inodeForm  = 1
	inodeFixed = 117
)

// EncodeInode appends the value of an inode; the number is in the key.
func EncodeInode(b []byte, in *Inode) []byte {
	le := binary.LittleEndian
	b = append(b, inodeForm)
	for _, v := range [...]uint32{in.Mode, in.Nlink, in.UID, in.GID, in.Rdev, in.Flags} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, in.Size)
	b = le.AppendUint64(b, in.Blocks)
	for _, t := range [...]Time{in.Atime, in.Mtime, in.Ctime, in.Btime} {
		b = le.AppendUint64(b, uint64(t.Sec))
		b = le.AppendUint32(b, t.Nsec)
	}
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, in.Version)
	b = le.AppendUint64(b, uint64(in.Parent))
	b = le.AppendUint64(b, in.NextCookie)
	return append(b, in.Target...)
}

// DecodeInode reads the value of an inode.
func DecodeInode(ino Ino, b []byte) (Inode, error) {
	if len(b) < inodeFixed || b[0] != inodeForm {
		return Inode{}, fmt.Errorf("%w: inode %d: %d bytes of unknown form", ErrDecode, ino, len(b))
	}
	le := binary.LittleEndian
	at := func(off int) Time { return Time{int64(le.Uint64(b[off:])), le.Uint32(b[off+8:])} }
	in := Inode{
		Ino:  ino,
		Mode: le.Uint32(b[1:]), Nlink: le.Uint32(b[5:]), UID: le.Uint32(b[9:]), GID: le.Uint32(b[13:]),
		Rdev: le.Uint32(b[17:]), Flags: le.Uint32(b[21:]), Size: le.Uint64(b[25:]), Blocks: le.Uint64(b[33:]),
		Atime: at(41), Mtime: at(53), Ctime: at(65), Btime: at(77),
		Version: le.Uint64(b[93:]), Parent: Ino(le.Uint64(b[101:])), NextCookie: le.Uint64(b[109:]),
		Target: string(b[inodeFixed:]),
	}
	for _, t := range [...]Time{in.Atime, in.Mtime, in.Ctime, in.Btime} {
		if t.Nsec > 999_999_999 {
			return Inode{}, fmt.Errorf("%w: inode %d: %d nanoseconds", ErrDecode, ino, t.Nsec)
		}
	}
	return in, nil
}

// The type of a dirent is kept as the four S_IFMT bits shifted into one byte.
const typeShift = 12

func encodeDirent(e Dirent) []byte {
	b := make([]byte, 0, 17)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Ino))
	b = append(b, byte(e.Type>>typeShift))
	return binary.LittleEndian.AppendUint64(b, e.Cookie)
}

// DecodeDirent reads the value under a name.
func DecodeDirent(name string, b []byte) (Dirent, error) {
	if len(b) != 17 {
		return Dirent{}, fmt.Errorf("%w: entry %q: %d bytes, expected 17", ErrDecode, name, len(b))
	}
	return Dirent{
		Name: name, Ino: Ino(binary.LittleEndian.Uint64(b)), Type: uint32(b[8]) << typeShift,
		Cookie: binary.LittleEndian.Uint64(b[9:]),
	}, nil
}

func encodeCookie(e Dirent) []byte {
	b := make([]byte, 0, 9+len(e.Name))
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Ino))
	b = append(b, byte(e.Type>>typeShift))
	return append(b, e.Name...)
}

// DecodeCookie reads the value under a cookie.
func DecodeCookie(cookie uint64, b []byte) (Dirent, error) {
	if len(b) < 10 {
		return Dirent{}, fmt.Errorf("%w: entry with cookie %d: %d bytes", ErrDecode, cookie, len(b))
	}
	return Dirent{
		Name: string(b[9:]), Ino: Ino(binary.LittleEndian.Uint64(b)), Type: uint32(b[8]) << typeShift, Cookie: cookie,
	}, nil
}

// Extent maps Count blocks of a file, from FileBlock on, to Count blocks of the image, from Phys on.
type Extent struct {
	FileBlock uint64
	Phys      uint64
	Count     uint64
	Unwritten bool // preallocated: reads as zeros
}

// End is the file block behind the extent.
func (e Extent) End() uint64 { return e.FileBlock + e.Count }

const extentUnwritten = 1

func encodeExtent(e Extent) []byte {
	var flags uint64
	if e.Unwritten {
		flags = extentUnwritten
	}
	b := make([]byte, 0, 12)
	b = binary.AppendUvarint(b, e.Phys)
	b = binary.AppendUvarint(b, e.Count)
	return binary.AppendUvarint(b, flags)
}

// DecodeExtent reads the value under a file block.
func DecodeExtent(fileBlock uint64, b []byte) (Extent, error) {
	var v [3]uint64
	if !uvarints(b, v[:]) || v[1] == 0 || v[2]&^extentUnwritten != 0 || fileBlock+v[1] < fileBlock || v[0]+v[1] < v[0] {
		return Extent{}, fmt.Errorf("%w: extent of file block %d: %x", ErrDecode, fileBlock, b)
	}
	return Extent{FileBlock: fileBlock, Phys: v[0], Count: v[1], Unwritten: v[2]&extentUnwritten != 0}, nil
}

// Ref tells that Count blocks of the image from Phys on are mapped by Refs extents (at least 2).
type Ref struct {
	Phys  uint64
	Count uint64
	Refs  uint64
}

func encodeRef(r Ref) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, r.Count), r.Refs)
}

// DecodeRef reads the value of a reference count.
func DecodeRef(phys uint64, b []byte) (Ref, error) {
	var v [2]uint64
	if !uvarints(b, v[:]) || v[0] == 0 || v[1] < 2 || phys+v[0] < phys {
		return Ref{}, fmt.Errorf("%w: reference count of block %d: %x", ErrDecode, phys, b)
	}
	return Ref{Phys: phys, Count: v[0], Refs: v[1]}, nil
}

// uvarints fills v from b and tells whether b held exactly that.
func uvarints(b []byte, v []uint64) bool {
	for i := range v {
		x, n := binary.Uvarint(b)
		if n <= 0 {
			return false
		}
		v[i], b = x, b[n:]
	}
	return len(b) == 0
}

// Group is the state of one group beside its files. It changes in the same batch as what it speaks of.
type Group struct {
	Applied uint64 // index of the last log entry applied
	Term    uint64 // its term
	NextSeq uint64 // sequence that the next new inode gets
	Inodes  uint64 // inodes in use
}

const groupForm = 1

func encodeGroup(b []byte, g Group) []byte {
	b = append(b, groupForm)
	for _, v := range [...]uint64{g.Applied, g.Term, g.NextSeq, g.Inodes} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// DecodeGroup reads the state of a group.
func DecodeGroup(slot uint16, b []byte) (Group, error) {
	var v [4]uint64
	if len(b) == 0 || b[0] != groupForm || !uvarints(b[1:], v[:]) {
		return Group{}, fmt.Errorf("%w: state of group %d: %x", ErrDecode, slot, b)
	}
	return Group{Applied: v[0], Term: v[1], NextSeq: v[2], Inodes: v[3]}, nil
}
