// Package alloc gives out and takes back the blocks of an image.
//
// [Allocator] is what the engine uses: all or nothing, contiguous where it can, safe for concurrent use. Below it,
// [ExtentTree] holds the free extents by offset and by length, so that nothing is ever searched block by block. The
// bitmap (one bit per block) is only the durable form of the tree: it is read once when a store is opened
// ([LoadBitmap]) and written at checkpoints ([Allocator.WriteChanges]), page by page, and is never in memory
// otherwise. After a crash, when the bitmap cannot be trusted, a [Builder] makes the allocator from the extents in use.
//
// What is free here may be given out at once. Holding back a freed extent until the log record that freed it is
// durable is the caller's duty: it calls Free only then.
//
// Locks: Allocator.mu is a leaf. It is never held during I/O or while calling out; writing the bitmap works on a
// copy-on-write snapshot of the tree.
package alloc

import (
	"errors"
	"fmt"
)

var (
	// ErrNoSpace is returned by Allocate when fewer blocks are free than asked for.
	ErrNoSpace = errors.New("no space left in the image")
	// ErrOutOfRange is returned when an extent reaches outside the blocks that may be given out.
	ErrOutOfRange = errors.New("outside the usable blocks of the image")
	// ErrNotFree is returned when blocks are to be used that are in use already.
	ErrNotFree = errors.New("in use already")
	// ErrAlreadyFree is returned when blocks are to be freed that are free already.
	ErrAlreadyFree = errors.New("free already")
	// ErrBitmap is returned when a stored bitmap cannot be true.
	ErrBitmap = errors.New("the bitmap of free blocks is damaged")
	// ErrInvariant is returned by Check.
	ErrInvariant = errors.New("the free space in memory contradicts itself")
)

// Extent is the run of blocks [Start, Start+Count).
type Extent struct {
	Start, Count uint64 // in blocks
}

// End returns the number of the block behind the last one. It wraps around if the extent passes the highest number,
// which no extent given out by this package does.
func (e Extent) End() uint64 { return e.Start + e.Count }

func (e Extent) String() string {
	switch e.Count {
	case 0:
		return fmt.Sprintf("no blocks at %d", e.Start)
	case 1:
		return fmt.Sprintf("block %d", e.Start)
	}
	return fmt.Sprintf("blocks %d to %d", e.Start, e.Start+e.Count-1)
}

// within reports whether all of e lies in [first, limit), whatever numbers e holds.
func (e Extent) within(first, limit uint64) bool {
	return e.Start >= first && e.Start <= limit && e.Count <= limit-e.Start
}

// intersect returns what e and f have in common; Count is 0 if that is nothing.
func (e Extent) intersect(f Extent) Extent {
	start, end := max(e.Start, f.Start), min(e.End(), f.End())
	if start >= end {
		return Extent{Start: start}
	}
	return Extent{start, end - start}
}
