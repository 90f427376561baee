package alloc

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Builder makes an Allocator from the extents in use, which may come in any order, when there is no bitmap to be
// trusted. It holds a temporary bitmap, at most one bit per block of the image for all extents and another for the
// shared ones, only for those pages in which something is used. It is not safe for concurrent use.
type Builder struct {
	total, firstUsable uint64
	used, shared       bitPages
}

// NewBuilder returns a builder for an image of total blocks, of which those from firstUsable on may be used.
func NewBuilder(total, firstUsable uint64) *Builder {
	return &Builder{
		total: total, firstUsable: min(firstUsable, total),
		used: make(bitPages, Pages(total)), shared: make(bitPages, Pages(total)),
	}
}

// OverlapError says that blocks are used twice by extents that are not both shared. It wraps ErrNotFree.
type OverlapError struct {
	Used   Extent // the extent that was to be added
	Blocks Extent // the first run of its blocks that was in use already
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("alloc: cannot use %v: %v: %v", e.Used, e.Blocks, ErrNotFree)
}

func (e *OverlapError) Unwrap() error { return ErrNotFree }

// Use says that e is in use. An extent that is shared (its blocks are counted by reference) may overlap others that are
// shared.
//
// Any other overlap is an *OverlapError. The blocks of e count as used all the same, so that a caller who reports it and
// goes on gets an allocator that gives none of them out. An extent that reaches outside the usable blocks is
// ErrOutOfRange and changes nothing.
func (b *Builder) Use(e Extent, shared bool) error {
	if !e.within(b.firstUsable, b.total) {
		return fmt.Errorf("alloc: cannot use %v: start %d, count %d, usable are [%d, %d): %w",
			e, e.Start, e.Count, b.firstUsable, b.total, ErrOutOfRange)
	}
	var overlap Extent
	for start := e.Start; start < e.End(); {
		page := start / BlocksPerPage
		part := Extent{start, min(e.End()-start, (page+1)*BlocksPerPage-start)}
		b.usePart(page, part, shared, &overlap)
		start = part.End()
	}
	if overlap.Count > 0 {
		return &OverlapError{Used: e, Blocks: overlap}
	}
	return nil
}

// usePart is Use for a part of an extent that lies in one page. overlap is the first forbidden overlap so far.
func (b *Builder) usePart(page uint64, part Extent, shared bool, overlap *Extent) {
	used := b.used.page(page)
	var sharedWords *bitPage
	if shared {
		sharedWords = b.shared.page(page)
	}
	first := part.Start % BlocksPerPage
	for done := uint64(0); done < part.Count; {
		word, bit := (first+done)/64, (first+done)%64
		n := min(64-bit, part.Count-done)
		mask := ^uint64(0) >> (64 - n) << bit
		twice := used[word] & mask
		if shared {
			twice &^= sharedWords[word]
			sharedWords[word] |= mask
		}
		if twice != 0 {
			note(overlap, part.Start-first+word*64, twice)
		}
		used[word] |= mask
		done += n
	}
}

// note extends run, the first run of blocks used twice, by the bits of a word that begins with block base, as
// far as they adjoin it.
func note(run *Extent, base, word uint64) {
	bit := uint64(bits.TrailingZeros64(word))
	if run.Count == 0 {
		run.Start = base + bit
	} else if base+bit != run.End() {
		return // a later run
	}
	run.Count += uint64(bits.TrailingZeros64(^(word >> bit)))
}

// Build returns the allocator in which all is free but what was used. The builder must not be used any more.
func (b *Builder) Build() (*Allocator, error) {
	head := Extent{0, b.firstUsable}
	tail := Extent{b.total, Pages(b.total)*BlocksPerPage - b.total}
	for _, e := range []Extent{head, tail} {
		for e.Count > 0 {
			page := e.Start / BlocksPerPage
			part := Extent{e.Start, min(e.Count, (page+1)*BlocksPerPage-e.Start)}
			b.usePart(page, part, false, &Extent{})
			e = Extent{part.End(), e.Count - part.Count}
		}
	}
	b.shared = nil
	a, err := LoadBitmap(b.total, b.firstUsable, b.used.read)
	if err != nil {
		return nil, err
	}
	a.changed.addAll() // whatever is stored is not this
	return a, nil
}

// bitPages is a bitmap in memory: one bit per block, with nil for a page of zeros.
type bitPages []*bitPage

type bitPage [BlocksPerPage / 64]uint64

// page returns a page to be written to.
func (p bitPages) page(i uint64) *bitPage {
	if p[i] == nil {
		p[i] = new(bitPage)
	}
	return p[i]
}

// read is a PageReader. It drops the page, so that memory shrinks while the tree grows.
func (p bitPages) read(i uint64, buf []byte) error {
	if p[i] == nil {
		clear(buf)
		return nil
	}
	for w, word := range p[i] {
		binary.LittleEndian.PutUint64(buf[w*8:], word)
	}
	p[i] = nil
	return nil
}
