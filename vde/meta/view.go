package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// groupKinds are the kinds of keys that belong to one group, each followed by the group's slot: all but reference
// counts, which belong to the group whose extents map the blocks, and facts of the store.
const groupKinds = "gidcexof"

// groupSpan is the range of the keys of one kind of a group.
func groupSpan(kind byte, slot uint16) (lower, upper []byte) {
	lower = binary.BigEndian.AppendUint16([]byte{kind}, slot)
	return lower, after(lower)
}

// View is the state of the store at one moment, whatever is committed meanwhile. End it with Close.
type View struct{ snap *pebble.Snapshot }

// View returns the state as of the last commit.
func (s *Store) View() *View { return &View{s.db.NewSnapshot()} }

// Close ends the view; its cursors must have been closed before.
func (v *View) Close() error { return v.snap.Close() }

// Cursor goes through the keys of several kinds of a group, in the order of the kinds and then of the keys. One
// goroutine at a time.
type Cursor struct {
	view  *View
	slot  uint16
	kinds string
	it    *pebble.Iterator
	value []byte
	err   error
}

// Keys returns a cursor that stands before the first key of a group of the kinds named: letters of the table in
// keys.go, of those that belong to a group. End it with Close.
func (v *View) Keys(slot uint16, kinds string) *Cursor {
	return &Cursor{view: v, slot: slot, kinds: kinds}
}

// Next moves to the next key and tells whether there is one; if not, Err tells whether that is the end.
func (c *Cursor) Next() bool {
	if c.err != nil {
		return false
	}
	ok := c.it != nil && c.it.Next()
	for !ok {
		if c.it != nil {
			c.err = errors.Join(c.it.Error(), c.it.Close())
			c.it = nil
		}
		if c.err != nil || c.kinds == "" {
			return false
		}
		lower, upper := groupSpan(c.kinds[0], c.slot)
		c.kinds = c.kinds[1:]
		if c.it, c.err = c.view.snap.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper}); c.err != nil {
			c.it = nil
			return false
		}
		ok = c.it.First()
	}
	c.value, c.err = c.it.ValueAndErr()
	return c.err == nil
}

// Key and Value are those that the cursor stands at, valid until the next call of Next.
func (c *Cursor) Key() []byte   { return c.it.Key() }
func (c *Cursor) Value() []byte { return c.value }

// Extent decodes the extent that the cursor stands at.
func (c *Cursor) Extent() (Ino, Extent, error) {
	k, err := DecodeKey(c.Key())
	if err != nil {
		return 0, Extent{}, err
	}
	if k.Kind != kExtent {
		return 0, Extent{}, fmt.Errorf("key %x is no extent", c.Key())
	}
	x, err := DecodeExtent(k.Number, c.Value())
	if err != nil {
		return 0, Extent{}, fmt.Errorf("inode %d: %w", k.Ino, err)
	}
	return k.Ino, x, nil
}

// Err tells why Next stopped, nil at the end.
func (c *Cursor) Err() error {
	if c.err != nil {
		return fmt.Errorf("read metadata of group %d: %w", c.slot, Words(c.err))
	}
	return nil
}

// Close ends the cursor. It may be called more than once.
func (c *Cursor) Close() error {
	if c.it == nil {
		return nil
	}
	it := c.it
	c.it, c.kinds = nil, ""
	return it.Close()
}

// Refs yields every reference count of the store, by block.
func (v *View) Refs(yield func(Ref) (bool, error)) error { return scanRefs(v.snap, yield) }

// NextExtents yields the extents of a group that begin at or behind a file block of an inode, by inode and file block.
func (s *Store) NextExtents(slot uint16, ino Ino, fileBlock uint64, yield func(Ino, Extent) (bool, error)) error {
	lower, upper := groupSpan(kExtent, slot)
	if from := extentKey(ino, fileBlock); bytes.Compare(from, lower) > 0 {
		lower = from
	}
	return s.scanExtents(lower, upper, yield)
}

// DeleteGroup removes every key of a group; what is set in the batch after it stays. Reference counts of its blocks
// are not among them: see DeleteRef.
func (b *Batch) DeleteGroup(slot uint16) {
	for i := range groupKinds {
		b.deleteRange(groupSpan(groupKinds[i], slot))
	}
}

// SetKey stores a key and a value that CheckKey accepted.
func (b *Batch) SetKey(key, value []byte) { b.set(key, value) }

// CheckKey tells whether key and value, which come from elsewhere, may be stored as part of a group: they have their
// form and belong to it. Extents and the group's state, which depend on the store, do not pass.
func CheckKey(slot uint16, key, value []byte) (Key, error) {
	k, err := DecodeKey(key)
	if err != nil {
		return k, fmt.Errorf("%w: %w", ErrDecode, err)
	}
	switch k.Kind {
	case kInode:
		_, err = DecodeInode(k.Ino, value)
	case kDirent:
		_, err = DecodeDirent(k.Name, value)
	case kCookie:
		_, err = DecodeCookie(k.Number, value)
	case kOrphan:
		if len(value) > 0 {
			err = fmt.Errorf("%w: inode %d to be freed with a value of %d bytes", ErrDecode, k.Ino, len(value))
		}
	case kXattr:
	case kFact:
		if err = CheckFact(k.Name, value); err != nil {
			err = fmt.Errorf("%w: %w", ErrDecode, err)
		}
	default:
		err = fmt.Errorf("%w: key %x does not belong to a group's files", ErrDecode, key)
	}
	if err != nil {
		return k, err
	}
	if of := binary.BigEndian.Uint16(key[1:]); of != slot {
		return k, fmt.Errorf("%w: key %x is of group %d, not of %d", ErrDecode, key, of, slot)
	}
	return k, nil
}

// IsGroupState tells whether a key is that of the state of a group.
func IsGroupState(slot uint16, key []byte) bool {
	return len(key) == 3 && key[0] == kGroup && binary.BigEndian.Uint16(key[1:]) == slot
}

// NextInodes yields the inodes of a group behind one, ascending, until yield returns false.
func (s *Store) NextInodes(slot uint16, behind Ino, yield func(Ino) bool) error {
	lower, upper := groupSpan(kInode, slot)
	if from := inodeKey(behind + 1); bytes.Compare(from, lower) > 0 {
		lower = from
	}
	return s.scan(lower, upper, func(k, _ []byte) (bool, error) {
		key, err := DecodeKey(k)
		if err != nil {
			return false, err
		}
		return yield(key.Ino), nil
	})
}
