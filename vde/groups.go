package vde

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"vdefs/vde/alloc"
	"vdefs/vde/meta"
)

// Groups are told apart by their slot, which is a part of every inode number. A store always has group 0; which others
// it has is the caller's decision. What all of them share is the space.

// ErrGroupExists tells that the store has a group already, ErrNoGroup that it does not have it.
var (
	ErrGroupExists = errors.New("the group exists already")
	ErrNoGroup     = errors.New("there is no such group in this store")
)

// Groups lists the slots of the groups of the store in rising order.
func (e *Engine) Groups() []uint16 {
	e.groupsMu.RLock()
	defer e.groupsMu.RUnlock()
	slots := make([]uint16, 0, len(e.groups))
	for slot := range e.groups {
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	return slots
}

// CreateGroup makes a group with nothing in it: no inode, nothing applied, and sequence 1 for the first new inode. It is
// durable when CreateGroup returns; after a crash before, it is there or not. ErrGroupExists. To be called, like
// RemoveGroup and Restore, in the order of the group's transactions, as if it was one of them.
func (e *Engine) CreateGroup(slot uint16) error {
	if err := e.Err(); err != nil {
		return err
	}
	if _, ok := e.Group(slot); ok {
		return fmt.Errorf("group %d: %w", slot, ErrGroupExists)
	}
	if err := e.markInUse(); err != nil {
		return err
	}
	g := meta.Group{NextSeq: 1}
	b := e.meta.NewBatch()
	b.SetGroup(slot, g)
	e.unflushed.Add(int64(b.Len()))
	if err := b.Commit(); err != nil {
		return e.fail(err)
	}
	e.overlay.forget(slot, 0)
	e.groupsMu.Lock()
	e.groups[slot] = &g
	e.groupsMu.Unlock()
	return e.Checkpoint()
}

// RemoveGroup deletes everything of a group and frees its blocks. It is durable when RemoveGroup returns; after a crash
// before, the group is there as it was or not at all. ErrNoGroup. Group 0 cannot be removed. Snapshots of the group that
// are open fail. Options.OnCheckpoint may be called for the group once more while RemoveGroup runs, not after it.
func (e *Engine) RemoveGroup(slot uint16) error {
	if err := e.Err(); err != nil {
		return err
	}
	if slot == 0 {
		return errors.New("group 0 cannot be removed: it holds the root directory")
	}
	if _, ok := e.Group(slot); !ok {
		return fmt.Errorf("group %d: %w", slot, ErrNoGroup)
	}
	b := e.meta.NewBatch()
	b.DeleteGroup(slot)
	return e.replaceGroup(b, slot, nil, nil)
}

// replaceGroup commits a batch that deletes all keys of a group and sets others, frees the blocks that the group mapped
// before, and makes all of that durable. next is the state of the group afterwards, nil if there is none, and refs are
// the reference counts that the batch sets. A group whose state was not there before comes into being.
func (e *Engine) replaceGroup(b *meta.Batch, slot uint16, next *meta.Group, refs []meta.Ref) error {
	if err := e.markInUse(); err != nil {
		return errors.Join(err, b.Close())
	}
	e.endSnapshots(&slot, fmt.Errorf("group %d was replaced or removed", slot))
	// Data of transactions that were committed may still be on its way to the old blocks.
	e.settle.Lock()
	//lint:ignore SA2001 the lock is taken to wait for those who hold it
	e.settle.Unlock()
	var old []alloc.Extent
	err := e.meta.NextExtents(slot, meta.MakeIno(slot, 0), 0, func(_ meta.Ino, x meta.Extent) (bool, error) {
		if n := len(old); n > 0 && old[n-1].End() == x.Phys {
			old[n-1].Count += x.Count
		} else {
			old = append(old, alloc.Extent{Start: x.Phys, Count: x.Count})
		}
		return true, nil
	})
	if err != nil {
		return errors.Join(err, b.Close())
	}
	old = union(old)
	durable := uint64(0)
	if next != nil {
		durable = next.Applied
	}

	// A read finds the inode and then its extents: both are of the old state or both of the new.
	e.readGate.Lock()
	e.commitGate.RLock()
	for _, x := range old {
		e.refs.remove(b, x.Start, x.Count)
	}
	for _, r := range refs {
		e.refs.load(r)
	}
	e.unflushed.Add(int64(b.Len()))
	err = b.Commit()
	if err == nil {
		e.groupsMu.Lock()
		if next == nil {
			delete(e.groups, slot)
		} else {
			g := *next
			e.groups[slot] = &g
		}
		e.groupsMu.Unlock()
		e.frees.add(old)
		// No reader is on the way to the old blocks, so what was to be written to them is not needed any more.
		e.overlay.forget(slot, durable)
	}
	e.commitGate.RUnlock()
	e.readGate.Unlock()
	if err != nil {
		return e.fail(err)
	}
	return e.Checkpoint()
}

// union sorts extents and joins those that touch or overlap.
func union(x []alloc.Extent) []alloc.Extent {
	slices.SortFunc(x, func(a, b alloc.Extent) int { return cmp.Compare(a.Start, b.Start) })
	out := x[:0]
	for _, e := range x {
		if n := len(out); n > 0 && out[n-1].End() >= e.Start {
			out[n-1].Count = max(out[n-1].End(), e.End()) - out[n-1].Start
		} else {
			out = append(out, e)
		}
	}
	return out
}
