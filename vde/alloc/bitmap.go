package alloc

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// The bitmap is the durable form of the free space: one bit per block, 1 = in use, 0 = free.
//
//	page p, byte i, bit j (0 = the lowest)  ↔  block p·32768 + i·8 + j
//
// It is stored in pages of [PageSize] bytes, so that it is written by blocks of the image. Bits of blocks that cannot
// be given out (those before the first usable block, and those of the last page that lie behind the last block) are 1.
//
// Example: an image of 40,000 blocks of which the first 16 hold superblocks and tables has 2 pages. Freshly made,
// page 0 is ff ff 00 00 … 00, and page 1 is 00 (904 times) ff (3,192 times), as (40,000-32,768)/8 = 904.
const (
	// PageSize is the size of a page of the bitmap in bytes.
	PageSize = 4096
	// BlocksPerPage is the number of blocks that a page of the bitmap speaks of.
	BlocksPerPage = PageSize * 8
)

// Pages returns the number of pages of the bitmap of an image of total blocks.
func Pages(total uint64) uint64 {
	return total/BlocksPerPage + min(total%BlocksPerPage, 1)
}

// PageReader fills buf, which is [PageSize] long, with a page of a stored bitmap.
type PageReader func(page uint64, buf []byte) error

// PageWriter stores a page of the bitmap. data is [PageSize] long and only valid during the call.
type PageWriter func(page uint64, data []byte) error

// fillPage fills data with a page of the bitmap of t.
func (t *ExtentTree) fillPage(page uint64, data []byte) {
	for i := range data {
		data[i] = 0xff
	}
	here := Extent{page * BlocksPerPage, BlocksPerPage}
	here.Count = min(here.Count, t.limit-here.Start) // never past the highest number
	for e := range t.from(here.Start) {
		free := here.intersect(e)
		if free.Count == 0 {
			return // a later page's
		}
		clearBits(data, free.Start-here.Start, free.Count)
	}
}

// clearBits clears count bits of data from bit first on.
func clearBits(data []byte, first, count uint64) {
	for ; count > 0 && first%8 != 0; first, count = first+1, count-1 {
		data[first/8] &^= 1 << (first % 8)
	}
	clear(data[first/8 : first/8+count/8])
	first, count = first+count&^7, count&7
	for ; count > 0; first, count = first+1, count-1 {
		data[first/8] &^= 1 << (first % 8)
	}
}

// loadTree reads all pages of the bitmap of an image of total blocks. It fails with an error of read, or wrapping
// ErrBitmap if a block is free that lies before firstUsable or not before total.
func loadTree(total, firstUsable uint64, read PageReader) (*ExtentTree, error) {
	tree := NewExtentTree(total)
	loader := treeLoader{tree: tree}
	buf := make([]byte, PageSize)
	open := false // a free extent reaches up to the block now looked at
	var start uint64
	closeAt := func(end uint64) error {
		open = false
		e := Extent{start, end - start}
		if !e.within(firstUsable, total) {
			return fmt.Errorf("%w: it has %v free, but only blocks %d to %d can be: rebuild it with fsck --repair",
				ErrBitmap, e, firstUsable, total-1)
		}
		loader.add(e)
		return nil
	}

	pages := Pages(total)
	for page := range pages {
		if err := read(page, buf); err != nil {
			return nil, fmt.Errorf("alloc: cannot read page %d of the %d of the bitmap of free blocks: %w", page, pages, err)
		}
		for i := 0; i < PageSize; i += 8 {
			word := binary.LittleEndian.Uint64(buf[i:])
			block := page*BlocksPerPage + uint64(i)*8
			if (word == 0 && open) || (word == ^uint64(0) && !open) {
				continue
			}
			for bit := uint64(0); bit < 64; {
				if open {
					bit += uint64(bits.TrailingZeros64(word >> bit)) // to the next block in use
					if bit < 64 {
						if err := closeAt(block + bit); err != nil {
							return nil, err
						}
					}
				} else {
					bit += uint64(bits.TrailingZeros64(^word >> bit)) // to the next free block
					if bit < 64 {
						start, open = block+bit, true
					}
				}
			}
		}
	}
	if open {
		if err := closeAt(pages * BlocksPerPage); err != nil {
			return nil, err
		}
	}
	loader.finish()
	return tree, nil
}
