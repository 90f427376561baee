package vde

import (
	"cmp"
	"fmt"
	"slices"

	"vdefs/vde/alloc"
	"vdefs/vde/image"
	"vdefs/vde/meta"
)

// Mapping of file blocks to image blocks. A change of a range reads the extents that touch it and its neighbours,
// builds the new list, and stores the difference, so that a file that is written in order stays one extent.

// mapping is the extents of a file around a range that is about to change.
type mapping struct {
	start, end uint64        // the range, in file blocks
	old        []meta.Extent // those that touch [start-1, end+1), in order
}

func (tx *Tx) mapping(ino meta.Ino, start, end uint64) (*mapping, error) {
	m := &mapping{start: start, end: end}
	lo, hi := start, end
	if lo > 0 {
		lo--
	}
	if hi+1 > hi {
		hi++
	}
	err := tx.e.meta.Extents(ino, lo, hi, func(x meta.Extent) (bool, error) {
		m.old = append(m.old, x)
		return true, nil
	})
	return m, err
}

// pieces yields the range as a sequence of mapped parts and holes (Phys 0, which is a superblock and never data), each
// cut to the range.
func (m *mapping) pieces(yield func(x meta.Extent, hole bool) error) error {
	at := m.start
	for _, x := range m.old {
		x, ok := clip(x, m.start, m.end)
		if !ok {
			continue
		}
		if x.FileBlock > at {
			if err := yield(meta.Extent{FileBlock: at, Count: x.FileBlock - at}, true); err != nil {
				return err
			}
		}
		if err := yield(x, false); err != nil {
			return err
		}
		at = x.End()
	}
	if at < m.end {
		return yield(meta.Extent{FileBlock: at, Count: m.end - at}, true)
	}
	return nil
}

// clip cuts an extent to [start, end).
func clip(x meta.Extent, start, end uint64) (meta.Extent, bool) {
	lo, hi := max(x.FileBlock, start), min(x.End(), end)
	if lo >= hi {
		return x, false
	}
	x.Phys += lo - x.FileBlock
	x.FileBlock, x.Count = lo, hi-lo
	return x, true
}

// hint is where the image block for the first block of the range would best be: behind the block before it.
func (m *mapping) hint() uint64 {
	for i := len(m.old) - 1; i >= 0; i-- {
		if x := m.old[i]; x.FileBlock < m.start {
			return x.Phys + min(x.Count, m.start-x.FileBlock)
		}
	}
	return alloc.NoHint
}

// replace stores the mapping with the range replaced by repl (in order, inside the range), and keeps in.Blocks.
func (tx *Tx) replace(in *meta.Inode, m *mapping, repl []meta.Extent) {
	next := make([]meta.Extent, 0, len(m.old)+len(repl)+1)
	add := func(x meta.Extent) {
		if n := len(next); n > 0 {
			l := &next[n-1]
			if l.End() == x.FileBlock && l.Phys+l.Count == x.Phys && l.Unwritten == x.Unwritten {
				l.Count += x.Count
				return
			}
		}
		next = append(next, x)
	}
	var before, after uint64
	for _, x := range m.old {
		before += x.Count
		if l, ok := clip(x, 0, m.start); ok {
			add(l)
		}
	}
	for _, x := range repl {
		add(x)
	}
	for _, x := range m.old {
		if r, ok := clip(x, m.end, ^uint64(0)); ok {
			add(r)
		}
	}
	for _, x := range next {
		after += x.Count
	}
	byBlock := func(y meta.Extent, b uint64) int { return cmp.Compare(y.FileBlock, b) }
	for _, x := range m.old {
		if _, ok := slices.BinarySearchFunc(next, x.FileBlock, byBlock); !ok {
			tx.batch.DeleteExtent(in.Ino, x.FileBlock)
		}
	}
	for _, x := range next {
		if i, ok := slices.BinarySearchFunc(m.old, x.FileBlock, byBlock); !ok || m.old[i] != x {
			tx.batch.SetExtent(in.Ino, x)
		}
	}
	in.Blocks += after - before
}

// allocate takes blocks; Discard gives them back.
func (tx *Tx) allocate(count, hint uint64) ([]alloc.Extent, error) {
	x, err := tx.e.alloc.Allocate(count, hint)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	tx.taken = append(tx.taken, x...)
	return x, nil
}

// dropBlocks takes one reference from image blocks that a file does not map any more.
func (tx *Tx) dropBlocks(start, count uint64) {
	tx.marks = append(tx.marks, refMark{start: start, count: count})
}

// readBlock reads one block of a file's data for completion or zeroing of a part of it. The range must be locked.
func (tx *Tx) readBlock(in *meta.Inode, fileBlock, phys uint64) ([]byte, error) {
	buf := make([]byte, image.BlockSize)
	if err := tx.e.readPhys(in.Ino, fileBlock, phys, buf); err != nil {
		return nil, err
	}
	return buf, nil
}
