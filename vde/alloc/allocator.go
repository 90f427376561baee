package alloc

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
)

// Allocator knows which blocks of an image are free. Its methods may be called from any goroutine; none but
// WriteBitmap, WriteChanges, FreeExtents and Check takes time that grows with the number of free extents, other
// than logarithmically, and none of those holds up the others.
type Allocator struct {
	total, firstUsable uint64 // blocks [firstUsable, total) may be given out

	mu sync.Mutex
	// All of the following is guarded by mu.
	tree      *ExtentTree
	placement placement
	// changed has the pages of the bitmap that differ from what was last written.
	changed pageSet
	// stats has the counters only; the rest is filled in by Stats.
	stats Stats
}

// Stats describes an Allocator at one moment.
type Stats struct {
	Total       uint64 // blocks in the image
	Usable      uint64 // blocks that may be given out
	Free        uint64 // blocks free now
	FreeExtents uint64 // number of free extents
	LargestFree uint64 // blocks in the longest free extent

	Allocations uint64 // successful calls of Allocate since the allocator was made
	AtHint      uint64 // of these, those that got their blocks exactly where they asked for them
	Fragmented  uint64 // of these, those that got several extents
}

// New returns an allocator for an image of total blocks of which all from firstUsable on are free.
func New(total uint64, firstUsable uint64) *Allocator {
	tree := NewExtentTree(total)
	if firstUsable < total {
		loader := treeLoader{tree: tree}
		loader.add(Extent{firstUsable, total - firstUsable})
		loader.finish()
	}
	a := newAllocator(tree, firstUsable)
	a.changed.addAll()
	return a
}

// LoadBitmap returns an allocator for an image of total blocks with what the stored bitmap says is free from
// firstUsable on. It calls read once for each of the Pages(total) pages, in rising order. It fails with the error of
// read, or, wrapping ErrBitmap, if the bitmap has blocks free that can never be.
func LoadBitmap(total, firstUsable uint64, read PageReader) (*Allocator, error) {
	tree, err := loadTree(total, firstUsable, read)
	if err != nil {
		return nil, err
	}
	return newAllocator(tree, firstUsable), nil
}

func newAllocator(tree *ExtentTree, firstUsable uint64) *Allocator {
	return &Allocator{
		total:       tree.limit,
		firstUsable: min(firstUsable, tree.limit),
		tree:        tree,
		placement:   placement{tree: tree, cursor: firstUsable, streams: streams{runs: map[uint64]uint64{}}},
	}
}

// Allocate takes count free blocks and returns them as extents in rising order, or none of them: it fails with
// ErrNoSpace if fewer are free. They are one extent if any free extent is long enough, otherwise as few as possible.
//
// hint is the block where they would best begin, usually the one behind the last block of the file; [NoHint] if there
// is no such wish. Allocating no blocks returns nothing.
func (a *Allocator) Allocate(count, hint uint64) ([]Extent, error) {
	if count == 0 {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if count > a.tree.Blocks() {
		return nil, fmt.Errorf("alloc: %d blocks asked for, %d of %d are free: %w",
			count, a.tree.Blocks(), a.total-a.firstUsable, ErrNoSpace)
	}
	if e, ok := a.placement.place(count, hint); ok {
		if err := a.takeLocked(e); err != nil {
			return nil, err
		}
		a.stats.Allocations++
		if e.Start == hint {
			a.stats.AtHint++
		}
		return []Extent{e}, nil
	}
	return a.allocateFragmentedLocked(count, hint)
}

// allocateFragmentedLocked takes count blocks, which must be free, when no extent is long enough: the longest
// extents whole, and the rest, once it fits into one, where it fits best. No way needs fewer extents.
func (a *Allocator) allocateFragmentedLocked(count, hint uint64) ([]Extent, error) {
	var extents []Extent
	for count > 0 {
		e, ok := a.tree.FindFreeExtent(count, hint)
		if !ok {
			e = a.tree.Largest()
		}
		if err := a.takeLocked(e); err != nil {
			return nil, err
		}
		extents = append(extents, e)
		count -= e.Count
	}
	slices.SortFunc(extents, func(x, y Extent) int { return cmp.Compare(x.Start, y.Start) })
	a.placement.placed(extents[len(extents)-1], hint)
	a.stats.Allocations++
	a.stats.Fragmented++
	return extents, nil
}

// takeLocked takes e, which the caller found to be free, out of the tree.
func (a *Allocator) takeLocked(e Extent) error {
	if err := a.tree.Remove(e); err != nil {
		return fmt.Errorf("alloc: cannot take %v: %w", e, err)
	}
	a.changed.add(e)
	return nil
}

// Reserve marks e as used, as replay does with blocks that a record names. It fails, and changes nothing, with
// ErrNotFree, naming the blocks, if part of e is in use, and with ErrOutOfRange if e reaches outside the usable blocks.
func (a *Allocator) Reserve(e Extent) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.inRange(e); err != nil {
		return fmt.Errorf("alloc: cannot reserve %v: %w", e, err)
	}
	if err := a.tree.Remove(e); err != nil {
		return fmt.Errorf("alloc: cannot reserve %v: %w", e, err)
	}
	a.changed.add(e)
	return nil
}

// Free gives e back. It fails, and changes nothing, with ErrAlreadyFree, naming the first blocks, if part of e is free
// already, and with ErrOutOfRange if e reaches outside the usable blocks.
func (a *Allocator) Free(e Extent) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.inRange(e); err != nil {
		return fmt.Errorf("alloc: cannot free %v: %w", e, err)
	}
	if err := a.tree.Insert(e); err != nil {
		return fmt.Errorf("alloc: cannot free %v: %w", e, err)
	}
	a.changed.add(e)
	return nil
}

func (a *Allocator) inRange(e Extent) error {
	if !e.within(a.firstUsable, a.total) {
		return fmt.Errorf("start %d, count %d, usable are [%d, %d): %w", e.Start, e.Count, a.firstUsable, a.total, ErrOutOfRange)
	}
	return nil
}

// Total returns the number of blocks of the image, usable or not.
func (a *Allocator) Total() uint64 { return a.total }

// FreeBlocks returns the number of free blocks.
func (a *Allocator) FreeBlocks() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tree.Blocks()
}

// LargestFree returns the length of the longest free extent in blocks.
func (a *Allocator) LargestFree() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tree.Largest().Count
}

// Stats returns all figures of one moment.
func (a *Allocator) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.stats
	s.Total = a.total
	s.Usable = a.total - a.firstUsable
	s.Free = a.tree.Blocks()
	s.FreeExtents = uint64(a.tree.Len())
	s.LargestFree = a.tree.Largest().Count
	return s
}

func (a *Allocator) snapshot() *ExtentTree {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tree.snapshot()
}

// FreeExtents calls yield for each free extent in the order of offsets, until it returns false. They are those of the
// moment of the call: yield may use the allocator.
func (a *Allocator) FreeExtents(yield func(Extent) bool) { a.snapshot().All(yield) }

// Check returns an error wrapping ErrInvariant, naming what is wrong, if the free space in memory is not consistent:
// extents that overlap, touch or lie outside the usable blocks, indexes or sums that disagree.
func (a *Allocator) Check() error {
	if err := a.snapshot().check(a.firstUsable); err != nil {
		return fmt.Errorf("alloc: %w", err)
	}
	return nil
}

// WriteBitmap calls emit for every page of the bitmap, in rising order, as it is at the moment of the call. It stops
// at the first error of emit and returns it. Two calls of WriteBitmap or WriteChanges must not overlap, or the older
// state might be stored last.
func (a *Allocator) WriteBitmap(emit PageWriter) error {
	a.mu.Lock()
	a.changed.addAll()
	a.mu.Unlock()
	return a.WriteChanges(emit)
}

// WriteChanges is WriteBitmap for those pages only that may differ from what the last successful call of
// WriteBitmap, WriteChanges or LoadBitmap has stored or read. After an error they stay due for the next call.
func (a *Allocator) WriteChanges(emit PageWriter) error {
	a.mu.Lock()
	tree := a.tree.snapshot()
	changed := a.changed
	a.changed = pageSet{}
	a.mu.Unlock()

	data := make([]byte, PageSize)
	err := changed.each(Pages(a.total), func(page uint64) error {
		tree.fillPage(page, data)
		if err := emit(page, data); err != nil {
			return fmt.Errorf("alloc: cannot write page %d of the bitmap of free blocks: %w", page, err)
		}
		return nil
	})
	if err != nil {
		a.mu.Lock()
		a.changed.union(changed)
		a.mu.Unlock()
	}
	return err
}
