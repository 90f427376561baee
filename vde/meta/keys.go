package meta

import (
	"encoding/binary"
	"fmt"
)

// The key space of meta/. Numbers in keys are big-endian, so that byte order is number order; an inode number begins
// with its group, so that everything of a group is one range behind each letter. In values, numbers are
// little-endian or unsigned varints.
//
//	i ino8                inode                        (codec.go: EncodeInode)
//	d dir8 name           ino8 type1 cookie8           entry of a directory by name
//	c dir8 cookie8        ino8 type1 name              the same entry by cookie: the order of readdir
//	e ino8 fileblock8     phys count flags (varints)   blocks of a file
//	x ino8 name           value                        extended attribute
//	o ino8                -                            inode without a name, to be freed
//	r phys8               count refs (varints)         blocks that more than one extent maps (refs >= 2)
//	g slot2               group state                  (codec.go: EncodeGroup)
//	f slot2 name          value                        small fact of a group, owned by who stands above
//	s name                store-wide facts: version, uuid, clean
const (
	kInode   = 'i'
	kDirent  = 'd'
	kCookie  = 'c'
	kExtent  = 'e'
	kXattr   = 'x'
	kOrphan  = 'o'
	kRef     = 'r'
	kGroup   = 'g'
	kFact    = 'f'
	kStore   = 's'
	keyInoSz = 9
	// factKeySz is what stands in front of the name of a group's fact.
	factKeySz = 3
)

func inoKey(kind byte, ino Ino) []byte {
	b := make([]byte, 1, keyInoSz+32)
	b[0] = kind
	return binary.BigEndian.AppendUint64(b, uint64(ino))
}

func inodeKey(ino Ino) []byte  { return inoKey(kInode, ino) }
func orphanKey(ino Ino) []byte { return inoKey(kOrphan, ino) }

func direntKey(dir Ino, name string) []byte { return append(inoKey(kDirent, dir), name...) }
func cookieKey(dir Ino, cookie uint64) []byte {
	return binary.BigEndian.AppendUint64(inoKey(kCookie, dir), cookie)
}
func extentKey(ino Ino, fileBlock uint64) []byte {
	return binary.BigEndian.AppendUint64(inoKey(kExtent, ino), fileBlock)
}
func xattrKey(ino Ino, name string) []byte { return append(inoKey(kXattr, ino), name...) }

func refKey(phys uint64) []byte { return binary.BigEndian.AppendUint64([]byte{kRef}, phys) }
func groupKey(slot uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{kGroup}, slot)
}
func factKey(slot uint16, name string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kFact}, slot), name...)
}
func storeKey(name string) []byte { return append([]byte{kStore}, name...) }

// after returns the first key behind every key that begins with prefix.
func after(prefix []byte) []byte {
	b := append([]byte(nil), prefix...)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}

// Key is a decoded key, for tools that walk the whole store.
type Key struct {
	Kind   byte // the letter of the table above
	Ino    Ino
	Number uint64 // cookie, file block, physical block or group slot (states and facts of groups)
	Name   string
}

// DecodeKey reads any key of the table.
func DecodeKey(k []byte) (Key, error) {
	bad := func() (Key, error) { return Key{}, fmt.Errorf("key %x is of no known form", k) }
	if len(k) == 0 {
		return bad()
	}
	key, rest := Key{Kind: k[0]}, k[1:]
	ino := func() bool {
		if len(rest) < 8 {
			return false
		}
		key.Ino, rest = Ino(binary.BigEndian.Uint64(rest)), rest[8:]
		return true
	}
	number := func() bool {
		if len(rest) != 8 {
			return false
		}
		key.Number = binary.BigEndian.Uint64(rest)
		return true
	}
	ok := false
	switch key.Kind {
	case kInode, kOrphan:
		ok = ino() && len(rest) == 0
	case kDirent, kXattr:
		ok = ino() && len(rest) > 0
		key.Name = string(rest)
	case kCookie, kExtent:
		ok = ino() && number()
	case kRef:
		ok = number()
	case kGroup:
		if ok = len(rest) == 2; ok {
			key.Number = uint64(binary.BigEndian.Uint16(rest))
		}
	case kFact:
		if ok = len(rest) > 2 && len(rest)-2 <= MaxFactName; ok {
			key.Number, key.Name = uint64(binary.BigEndian.Uint16(rest)), string(rest[2:])
		}
	case kStore:
		ok = len(rest) > 0
		key.Name = string(rest)
	}
	if !ok {
		return bad()
	}
	return key, nil
}
