package vde

import (
	"sync"

	"github.com/tidwall/btree"

	"vdefs/vde/alloc"
	"vdefs/vde/meta"
)

// refs counts the extents that map a block, for blocks that are or were shared (copy_file_range). A block without an
// entry is mapped once or not at all. The counts of 2 and more are kept in meta/ too.
//
// A count that has fallen to 1 stays until the next checkpoint: until then the block must not be overwritten in
// place, because the replay of an entry from before may complete a partly written block of another file from it.
//
// Invariant: entries do not overlap; Refs >= 1; in meta/ exactly those with Refs >= 2.
type refs struct {
	mu        sync.RWMutex
	tree      *btree.BTreeG[ref] // by Phys; guarded by mu
	epoch     uint64             // checkpoints begun; guarded by mu
	lingering []alloc.Extent     // entries that fell to 1 in this epoch; guarded by mu
}

// ref is an entry; epoch is when it last fell to 1.
type ref struct {
	meta.Ref
	epoch uint64
}

func newRefs() *refs {
	return &refs{tree: btree.NewBTreeGOptions(func(a, b ref) bool { return a.Phys < b.Phys }, btree.Options{NoLocks: true})}
}

// overlapping returns the entries that touch [start, start+count), in order. mu must be held.
func (r *refs) overlappingLocked(start, count uint64) []ref {
	if r.tree.Len() == 0 {
		return nil
	}
	var out []ref
	r.tree.Descend(ref{Ref: meta.Ref{Phys: start}}, func(e ref) bool {
		if e.Phys+e.Count > start {
			out = append(out, e)
		}
		return false
	})
	r.tree.Ascend(ref{Ref: meta.Ref{Phys: start + 1}}, func(e ref) bool {
		if e.Phys >= start+count {
			return false
		}
		out = append(out, e)
		return true
	})
	return out
}

// sharedPrefix tells whether the first block is (or lately was) shared, and for how many of the blocks from it on that
// answer is the same.
func (r *refs) sharedPrefix(start, count uint64) (shared bool, n uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	over := r.overlappingLocked(start, count)
	switch {
	case len(over) == 0:
		return false, count
	case over[0].Phys > start:
		return false, over[0].Phys - start
	default:
		return true, min(count, over[0].Phys+over[0].Count-start)
	}
}

// add gives every block of the range one more reference. Without a batch nothing but memory is changed.
func (r *refs) add(b *meta.Batch, start, count uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changeLocked(b, start, count, +1)
}

// drop takes one reference from every block of the range and returns those that nobody maps any more.
func (r *refs) drop(b *meta.Batch, start, count uint64) (free []alloc.Extent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changeLocked(b, start, count, -1)
}

func (r *refs) changeLocked(b *meta.Batch, start, count uint64, by int) (free []alloc.Extent) {
	end := start + count
	set := func(phys, to, n uint64) {
		// A piece cut off an entry that had already fallen to 1 lingers one epoch longer than it must: harmless.
		if phys == to {
			return
		}
		e := ref{meta.Ref{Phys: phys, Count: to - phys, Refs: n}, r.epoch}
		r.tree.Set(e)
		if b == nil {
			return
		}
		if n >= 2 {
			b.SetRef(e.Ref)
		} else {
			b.DeleteRef(phys)
			r.lingering = append(r.lingering, alloc.Extent{Start: phys, Count: to - phys})
		}
	}
	// single handles blocks without an entry: mapped once.
	single := func(from, to uint64) {
		if from == to {
			return
		}
		if by > 0 {
			set(from, to, 2)
		} else {
			free = append(free, alloc.Extent{Start: from, Count: to - from})
		}
	}
	pos := start
	for _, e := range r.overlappingLocked(start, count) {
		lo, hi := max(e.Phys, start), min(e.Phys+e.Count, end)
		single(pos, lo)
		r.tree.Delete(e)
		if b != nil {
			b.DeleteRef(e.Phys)
		}
		set(e.Phys, lo, e.Refs)
		switch n := e.Refs + uint64(by); {
		case n == 0:
			free = append(free, alloc.Extent{Start: lo, Count: hi - lo})
		default:
			set(lo, hi, n)
		}
		set(hi, e.Phys+e.Count, e.Refs)
		pos = hi
	}
	single(pos, end)
	return free
}

// remove forgets the entries of blocks that no extent maps after the batch, whatever their count.
func (r *refs) remove(b *meta.Batch, start, count uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.overlappingLocked(start, count) {
		r.tree.Delete(e)
		b.DeleteRef(e.Phys)
	}
}

// load sets an entry read from meta/ at open, or that a restored group brings.
func (r *refs) load(e meta.Ref) {
	r.mu.Lock()
	r.tree.Set(ref{Ref: e})
	r.mu.Unlock()
}

// beginEpoch returns what fell to one reference in the epoch that ends, and its number.
func (r *refs) beginEpoch() ([]alloc.Extent, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ended := r.lingering, r.epoch
	r.lingering = nil
	r.epoch++
	return l, ended
}

// forget removes entries that fell to one reference up to an epoch whose changes are durable by now.
func (r *refs) forget(lingering []alloc.Extent, epoch uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range lingering {
		for _, e := range r.overlappingLocked(x.Start, x.Count) {
			if e.Refs == 1 && e.epoch <= epoch {
				r.tree.Delete(e)
			}
		}
	}
}
