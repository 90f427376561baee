// Package advisory is the algebra of the advisory locks of one file, fcntl(2) and flock(2): no waiting, no goroutine. It is
// used for the locks of one mount and for those that several mounts share.
package advisory

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
)

// Class tells the kinds of locks apart that know nothing of each other.
type Class uint8

const (
	// POSIX locks are those of fcntl(2): of a process, or of an open file (OFD).
	POSIX Class = iota
	// Flock locks are those of flock(2).
	Flock
	// Classes is how many there are.
	Classes
)

// Owner is who has a lock: what the kernel calls the owner, of one mount.
type Owner struct {
	Session uint64 // of the mount; 0 where there is but one
	ID      uint64
}

// Lock is a lock on a range of bytes.
type Lock struct {
	Start, End uint64 // both inclusive
	Owner      Owner
	Handle     uint64 // open file through which it was taken
	PID        uint32
	Exclusive  bool
}

// Conflicts tells whether two locks cannot both be held.
func (l *Lock) Conflicts(m *Lock) bool {
	return l.Owner != m.Owner && l.overlaps(m) && (l.Exclusive || m.Exclusive)
}

func (l *Lock) overlaps(m *Lock) bool { return l.Start <= m.End && m.Start <= l.End }

// Set is the locks of one file. The zero value is none.
//
// Invariants: no two of one owner and class overlap, and no two of different owners that overlap are of one class with one
// of them exclusive.
type Set struct {
	held [Classes][]Lock
}

// Held returns the locks of a class; the caller must not change them.
func (s *Set) Held(class Class) []Lock { return s.held[class] }

// Empty tells whether there are none.
func (s *Set) Empty() bool { return len(s.held[POSIX])+len(s.held[Flock]) == 0 }

// Conflict returns a lock in the way of want, nil if there is none.
func (s *Set) Conflict(class Class, want *Lock) *Lock {
	for i := range s.held[class] {
		if s.held[class][i].Conflicts(want) {
			return &s.held[class][i]
		}
	}
	return nil
}

// Take takes a lock; ok is false where another owner's is in the way. freed tells that somebody else may now get what he
// could not before, which a refused flock(2) can bring about too: one that changes its kind is given back first.
func (s *Set) Take(class Class, want Lock) (ok, freed bool) {
	if class == Flock && slices.ContainsFunc(s.held[class], func(l Lock) bool {
		return l.Owner == want.Owner && l.Exclusive != want.Exclusive
	}) {
		s.cut(class, &want)
		freed = true
	}
	if s.Conflict(class, &want) != nil {
		return false, freed
	}
	freed = s.cut(class, &want) || freed
	s.held[class] = append(s.held[class], want)
	s.join(class, want.Owner)
	return true, freed
}

// Covers tells whether an owner has all of a range locked in the way that want says.
func (s *Set) Covers(class Class, want Lock) bool {
	at := want.Start
	for {
		i := slices.IndexFunc(s.held[class], func(l Lock) bool {
			return l.Owner == want.Owner && l.Exclusive == want.Exclusive && l.Start <= at && at <= l.End
		})
		if i < 0 {
			return false
		}
		end := s.held[class][i].End
		if end >= want.End {
			return true
		}
		at = end + 1
	}
}

// Release gives back what an owner has locked in a range.
func (s *Set) Release(class Class, what Lock) { s.cut(class, &what) }

// ReleaseOwner gives back all POSIX locks of an owner: it closed the file.
func (s *Set) ReleaseOwner(owner Owner) {
	s.drop(POSIX, func(l Lock) bool { return l.Owner == owner })
}

// ReleaseHandle gives back all locks that were taken through an open file that is no more.
func (s *Set) ReleaseHandle(session, handle uint64) {
	for class := range Classes {
		s.drop(class, func(l Lock) bool { return l.Owner.Session == session && l.Handle == handle })
	}
}

// ReleaseSession gives back all locks of a mount.
func (s *Set) ReleaseSession(session uint64) {
	for class := range Classes {
		s.drop(class, func(l Lock) bool { return l.Owner.Session == session })
	}
}

func (s *Set) drop(class Class, which func(Lock) bool) {
	s.held[class] = slices.DeleteFunc(s.held[class], which)
}

// cut takes a range away from what an owner has locked, and tells whether there was something exclusive in it.
func (s *Set) cut(class Class, what *Lock) (exclusive bool) {
	var rest []Lock
	for _, l := range s.held[class] {
		if l.Owner != what.Owner || !l.overlaps(what) {
			rest = append(rest, l)
			continue
		}
		exclusive = exclusive || l.Exclusive
		if l.Start < what.Start {
			left := l
			left.End = what.Start - 1
			rest = append(rest, left)
		}
		if l.End > what.End {
			right := l
			right.Start = what.End + 1
			rest = append(rest, right)
		}
	}
	s.held[class] = rest
	return exclusive
}

// join makes one of neighbouring locks of an owner that are alike.
func (s *Set) join(class Class, owner Owner) {
	locks := s.held[class]
	slices.SortFunc(locks, func(a, b Lock) int {
		return cmp.Or(cmp.Compare(a.Owner.Session, b.Owner.Session), cmp.Compare(a.Owner.ID, b.Owner.ID), cmp.Compare(a.Start, b.Start))
	})
	joined := locks[:0]
	for _, l := range locks {
		if n := len(joined); n > 0 && l.Owner == owner {
			last := &joined[n-1]
			if last.Owner == owner && last.Exclusive == l.Exclusive && last.Handle == l.Handle && last.PID == l.PID && last.End+1 == l.Start {
				last.End = l.End
				continue
			}
		}
		joined = append(joined, l)
	}
	s.held[class] = joined
}

// lockSize is the encoded size of a lock: class and kind, then session, owner, start, end, handle and process.
const lockSize = 1 + 5*8 + 4

const exclusiveBit = 0x80

// Encode appends the set, little-endian, lockSize bytes a lock.
func (s *Set) Encode(b []byte) []byte {
	le := binary.LittleEndian
	for class := range Classes {
		for _, l := range s.held[class] {
			kind := byte(class)
			if l.Exclusive {
				kind |= exclusiveBit
			}
			b = append(b, kind)
			for _, v := range [...]uint64{l.Owner.Session, l.Owner.ID, l.Start, l.End, l.Handle} {
				b = le.AppendUint64(b, v)
			}
			b = le.AppendUint32(b, l.PID)
		}
	}
	return b
}

// ErrDecode marks bytes that are no set.
var ErrDecode = errors.New("undecodable locks")

// Decode reads what Encode wrote.
func Decode(b []byte) (*Set, error) {
	if len(b)%lockSize != 0 {
		return nil, ErrDecode
	}
	s := &Set{}
	le := binary.LittleEndian
	for ; len(b) > 0; b = b[lockSize:] {
		class := Class(b[0] &^ exclusiveBit)
		l := Lock{
			Owner: Owner{le.Uint64(b[1:]), le.Uint64(b[9:])}, Start: le.Uint64(b[17:]), End: le.Uint64(b[25:]),
			Handle: le.Uint64(b[33:]), PID: le.Uint32(b[41:]), Exclusive: b[0]&exclusiveBit != 0,
		}
		if class >= Classes || l.Start > l.End {
			return nil, ErrDecode
		}
		s.held[class] = append(s.held[class], l)
	}
	return s, nil
}
