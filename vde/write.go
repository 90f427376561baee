package vde

import (
	"fmt"
	"math"

	"vdefs/vde/alloc"
	"vdefs/vde/image"
	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

const (
	blockSize = image.BlockSize
	modeType  = 0o170000
)

// MaxFileSize is the largest size of a file in bytes: as ext4 with 4 KiB blocks, 16 TiB less one block.
const MaxFileSize = 1<<44 - blockSize

// BlocksFor tells how many fresh blocks a write may need at most.
func BlocksFor(off, n uint64) uint64 {
	if n == 0 {
		return 0
	}
	return (off+n-1)/blockSize - off/blockSize + 1
}

// WriteData plans the write of data at off into a regular file; it changes in.Size and in.Blocks, the caller stores in.
// The engine keeps data until the transaction has ended and, where blocks are overwritten in place, until the log
// is durable: it must never change again. ErrNoSpace, ErrBadBlock (a block to be completed is unreadable).
func (tx *Tx) WriteData(in *meta.Inode, off uint64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	end := off + uint64(len(data))
	if end < off || end > MaxFileSize {
		return fmt.Errorf("write of %d bytes at %d is beyond the largest file", len(data), off)
	}
	first, blocks := off/blockSize, BlocksFor(off, uint64(len(data)))
	m, err := tx.mapping(in.Ino, first, first+blocks)
	if err != nil {
		return err
	}
	if tx.needsBase(in, m, off, end) {
		// What the block held is part of the result, so it must be there: wait for earlier writes of the range.
		if err := tx.lockNow(in.Ino, first, blocks, rangelock.Exclusive); err != nil {
			return err
		}
	} else {
		tx.lock(in.Ino, first, blocks, rangelock.Exclusive)
	}
	var repl []meta.Extent
	err = m.pieces(func(x meta.Extent, hole bool) error {
		for x.Count > 0 {
			part, err := tx.writePiece(in, m, &repl, x, hole, off, data)
			if err != nil {
				return err
			}
			x.FileBlock += part
			x.Phys += part
			x.Count -= part
		}
		return nil
	})
	if err != nil {
		return err
	}
	tx.replace(in, m, repl)
	in.Size = max(in.Size, end)
	return nil
}

// covered tells whether a write of [off,end) leaves nothing of what a block held: all of the block, or all up to the
// end of the file (behind it a block holds zeros).
func covered(in *meta.Inode, fileBlock, off, end uint64) bool {
	start := fileBlock * blockSize
	return off <= start && (end >= start+blockSize || end >= in.Size)
}

// needsBase tells whether the first or the last block of a write must be completed from what they hold.
func (tx *Tx) needsBase(in *meta.Inode, m *mapping, off, end uint64) bool {
	for _, b := range [2]uint64{m.start, m.end - 1} {
		if covered(in, b, off, end) {
			continue
		}
		for _, x := range m.old {
			if b >= x.FileBlock && b < x.End() && !x.Unwritten {
				return true
			}
		}
	}
	return false
}

// writePiece plans the write of the first blocks of a piece of the mapping and tells how many it planned.
func (tx *Tx) writePiece(in *meta.Inode, m *mapping, repl *[]meta.Extent, x meta.Extent, hole bool, off uint64, data []byte) (uint64, error) {
	end := off + uint64(len(data))
	if !hole {
		shared, n := tx.e.refs.sharedPrefix(x.Phys, x.Count)
		x.Count = n
		if !covered(in, x.FileBlock, off, end) {
			x.Count = 1
		} else if last := x.FileBlock + x.Count - 1; x.Count > 1 && !covered(in, last, off, end) {
			x.Count--
		}
		base := !x.Unwritten && !covered(in, x.FileBlock, off, end)
		switch {
		case base:
			content, err := tx.readBlock(in, x.FileBlock, x.Phys)
			if err != nil {
				return 0, err
			}
			overlayBytes(content, x.FileBlock*blockSize, off, data)
			tx.dropBlocks(x.Phys, 1)
			return 1, tx.placeFresh(m, repl, x.FileBlock, content)
		case !shared:
			tx.data = append(tx.data, placement{x.Phys, wholeBlocks(x.FileBlock, x.Count, off, data), !x.Unwritten})
			x.Unwritten = false
			*repl = append(*repl, x)
			return x.Count, nil
		}
		tx.dropBlocks(x.Phys, x.Count)
	}
	return x.Count, tx.placeFresh(m, repl, x.FileBlock, wholeBlocks(x.FileBlock, x.Count, off, data))
}

// placeFresh puts contents into fresh blocks.
func (tx *Tx) placeFresh(m *mapping, repl *[]meta.Extent, fileBlock uint64, content []byte) error {
	hint := m.hint()
	if n := len(*repl); n > 0 {
		l := (*repl)[n-1]
		hint = l.Phys + l.Count
	}
	extents, err := tx.allocate(uint64(len(content)/blockSize), hint)
	if err != nil {
		return err
	}
	for _, a := range extents {
		n := a.Count * blockSize
		tx.data = append(tx.data, placement{start: a.Start, data: content[:n:n]})
		*repl = append(*repl, meta.Extent{FileBlock: fileBlock, Phys: a.Start, Count: a.Count})
		content = content[n:]
		fileBlock += a.Count
	}
	return nil
}

// wholeBlocks returns the contents of count blocks that the write of data at off covers, or that hold nothing else:
// a part of data itself where it is whole blocks, else a copy filled up with zeros.
func wholeBlocks(fileBlock, count, off uint64, data []byte) []byte {
	start, end := fileBlock*blockSize, (fileBlock+count)*blockSize
	if off <= start && off+uint64(len(data)) >= end {
		return data[start-off : end-off : end-off]
	}
	b := make([]byte, end-start)
	overlayBytes(b, start, off, data)
	return b
}

// overlayBytes copies what of data (at file offset off) falls into dst (at file offset start).
func overlayBytes(dst []byte, start, off uint64, data []byte) {
	if off >= start {
		if off-start < uint64(len(dst)) {
			copy(dst[off-start:], data)
		}
	} else if start-off < uint64(len(data)) {
		copy(dst, data[start-off:])
	}
}

// MapWritten maps count file blocks to extents whose data is in the image already (see Engine.PrepareWrite); it
// changes in.Size and in.Blocks. The blocks were allocated before; Discard leaves them to the caller.
func (tx *Tx) MapWritten(in *meta.Inode, fileBlock uint64, extents []alloc.Extent, size uint64) error {
	var count uint64
	for _, x := range extents {
		count += x.Count
	}
	m, err := tx.mapping(in.Ino, fileBlock, fileBlock+count)
	if err != nil {
		return err
	}
	if err := tx.dropRange(m); err != nil {
		return err
	}
	var repl []meta.Extent
	at := fileBlock
	for _, x := range extents {
		repl = append(repl, meta.Extent{FileBlock: at, Phys: x.Start, Count: x.Count})
		at += x.Count
	}
	tx.replace(in, m, repl)
	in.Size = max(in.Size, size)
	return nil
}

// dropRange takes a reference from all blocks that the range maps.
func (tx *Tx) dropRange(m *mapping) error {
	return m.pieces(func(x meta.Extent, hole bool) error {
		if !hole {
			tx.dropBlocks(x.Phys, x.Count)
		}
		return nil
	})
}

// Unmap frees the blocks of whole file blocks [start, end): they become a hole.
func (tx *Tx) Unmap(in *meta.Inode, start, end uint64) error {
	if start >= end {
		return nil
	}
	if err := tx.lockNow(in.Ino, start, end-start, rangelock.Exclusive); err != nil {
		return err
	}
	m, err := tx.mapping(in.Ino, start, end)
	if err != nil {
		return err
	}
	if err := tx.dropRange(m); err != nil {
		return err
	}
	tx.replace(in, m, nil)
	return nil
}

// Truncate sets the size of a file; what is behind it reads as zeros if the file grows again.
func (tx *Tx) Truncate(in *meta.Inode, size uint64) error {
	if size > MaxFileSize {
		return fmt.Errorf("size %d is beyond the largest file", size)
	}
	old := in.Size
	in.Size = size
	if size >= old && in.Blocks == 0 {
		return nil
	}
	// Blocks may be preallocated behind the end of the file; a truncation, also to a larger size, drops those
	// behind the new end only when it shrinks.
	if size >= old {
		return nil
	}
	return tx.zeroRange(in, size, math.MaxUint64, false)
}

// PunchHole makes a range of bytes a hole.
func (tx *Tx) PunchHole(in *meta.Inode, off, end uint64) error {
	return tx.zeroRange(in, off, end, false)
}

// ZeroRange makes a range of bytes read as zeros and keeps it allocated.
func (tx *Tx) ZeroRange(in *meta.Inode, off, end uint64) error {
	return tx.zeroRange(in, off, end, true)
}

// zeroRange zeros the bytes [off, end): whole blocks become a hole or (keep) unwritten blocks, parts of blocks are
// rewritten into fresh ones.
func (tx *Tx) zeroRange(in *meta.Inode, off, end uint64, keep bool) error {
	if off >= end {
		return nil
	}
	first, last := off/blockSize, (end-1)/blockSize
	if err := tx.lockNow(in.Ino, first, last-first+1, rangelock.Exclusive); err != nil {
		return err
	}
	m, err := tx.mapping(in.Ino, first, last+1)
	if err != nil {
		return err
	}
	headPart, tailPart := off%blockSize != 0, end%blockSize != 0 && end != math.MaxUint64
	partial := func(b uint64) bool { return b == first && headPart || b == last && tailPart }
	var repl []meta.Extent
	err = m.pieces(func(x meta.Extent, hole bool) error {
		for x.Count > 0 {
			n := x.Count
			isPart := partial(x.FileBlock)
			if isPart {
				n = 1
			} else if x.Count > 1 && partial(x.FileBlock+x.Count-1) {
				n--
			}
			part := x
			part.Count = n
			switch {
			case isPart && !hole && x.Unwritten:
				repl = append(repl, part)
			case isPart && !hole:
				content, err := tx.readBlock(in, x.FileBlock, x.Phys)
				if err != nil {
					return err
				}
				start := x.FileBlock * blockSize
				lo, hi := max(off, start)-start, uint64(blockSize)
				if end < start+blockSize {
					hi = end - start
				}
				clear(content[lo:hi])
				tx.dropBlocks(x.Phys, 1)
				if err := tx.placeFresh(m, &repl, x.FileBlock, content); err != nil {
					return err
				}
			case keep:
				if !hole {
					tx.dropBlocks(x.Phys, n)
				}
				if err := tx.placeUnwritten(m, &repl, x.FileBlock, n); err != nil {
					return err
				}
			case !hole:
				tx.dropBlocks(x.Phys, n)
			}
			x.FileBlock += n
			x.Phys += n
			x.Count -= n
		}
		return nil
	})
	if err != nil {
		return err
	}
	tx.replace(in, m, repl)
	return nil
}

// placeUnwritten maps file blocks to fresh blocks that read as zeros.
func (tx *Tx) placeUnwritten(m *mapping, repl *[]meta.Extent, fileBlock, count uint64) error {
	hint := m.hint()
	if n := len(*repl); n > 0 {
		l := (*repl)[n-1]
		hint = l.Phys + l.Count
	}
	extents, err := tx.allocate(count, hint)
	if err != nil {
		return err
	}
	for _, a := range extents {
		*repl = append(*repl, meta.Extent{FileBlock: fileBlock, Phys: a.Start, Count: a.Count, Unwritten: true})
		fileBlock += a.Count
	}
	return nil
}

// Preallocate maps the holes of a range of bytes to unwritten blocks; the size stays.
func (tx *Tx) Preallocate(in *meta.Inode, off, end uint64) error {
	if off >= end {
		return nil
	}
	first, last := off/blockSize, (end-1)/blockSize
	m, err := tx.mapping(in.Ino, first, last+1)
	if err != nil {
		return err
	}
	var repl []meta.Extent
	err = m.pieces(func(x meta.Extent, hole bool) error {
		if hole {
			return tx.placeUnwritten(m, &repl, x.FileBlock, x.Count)
		}
		repl = append(repl, x)
		return nil
	})
	if err != nil {
		return err
	}
	tx.replace(in, m, repl)
	return nil
}

// Share maps count blocks of src, from srcBlock on, into dst at dstBlock too, and frees what dst mapped there; sizes
// stay. The blocks are copied when one of the files writes them. The files must be of
// one group, and the ranges must not overlap within one file.
func (tx *Tx) Share(src *meta.Inode, srcBlock uint64, dst *meta.Inode, dstBlock, count uint64) error {
	if src.Ino.Group() != dst.Ino.Group() {
		return fmt.Errorf("blocks of inode %d cannot be shared with inode %d, of another group", src.Ino, dst.Ino)
	}
	if src.Ino == dst.Ino && srcBlock < dstBlock+count && dstBlock < srcBlock+count {
		return fmt.Errorf("shared ranges of inode %d overlap", src.Ino)
	}
	if err := tx.lockNow(src.Ino, srcBlock, count, rangelock.Shared); err != nil {
		return err
	}
	if err := tx.lockNow(dst.Ino, dstBlock, count, rangelock.Exclusive); err != nil {
		return err
	}
	from, err := tx.mapping(src.Ino, srcBlock, srcBlock+count)
	if err != nil {
		return err
	}
	to, err := tx.mapping(dst.Ino, dstBlock, dstBlock+count)
	if err != nil {
		return err
	}
	var repl []meta.Extent
	err = from.pieces(func(x meta.Extent, hole bool) error {
		if hole || x.Unwritten {
			return nil // reads as zeros: a hole does too
		}
		tx.marks = append(tx.marks, refMark{x.Phys, x.Count, true})
		x.FileBlock = x.FileBlock - srcBlock + dstBlock
		repl = append(repl, x)
		return nil
	})
	if err != nil {
		return err
	}
	// References are added before others are dropped: a block that both ranges map must not fall to none between.
	if err := tx.dropRange(to); err != nil {
		return err
	}
	tx.replace(dst, to, repl)
	return nil
}

// ReplaceContents makes data the whole contents of a file, in fresh blocks.
func (tx *Tx) ReplaceContents(in *meta.Inode, data []byte) error {
	if err := tx.lockNow(in.Ino, 0, math.MaxUint64, rangelock.Exclusive); err != nil {
		return err
	}
	m, err := tx.mapping(in.Ino, 0, math.MaxUint64)
	if err != nil {
		return err
	}
	if err := tx.dropRange(m); err != nil {
		return err
	}
	var repl []meta.Extent
	if n := BlocksFor(0, uint64(len(data))); n > 0 {
		if err := tx.placeFresh(m, &repl, 0, wholeBlocks(0, n, 0, data)); err != nil {
			return err
		}
	}
	tx.replace(in, m, repl)
	in.Size = uint64(len(data))
	return nil
}

// FreshBlocks tells how many fresh blocks a write of n bytes at off would need now: those that are not mapped, shared,
// or written in part. BlocksFor is what it needs at most, whatever is mapped.
func (e *Engine) FreshBlocks(ino meta.Ino, off, n uint64) (uint64, error) {
	in, err := e.meta.Inode(ino)
	if err != nil {
		return 0, err
	}
	need, end := BlocksFor(off, n), off+n
	err = e.meta.Extents(ino, off/blockSize, (end+blockSize-1)/blockSize, func(x meta.Extent) (bool, error) {
		x, ok := clip(x, off/blockSize, (end+blockSize-1)/blockSize)
		for ok && x.Count > 0 {
			shared, same := e.refs.sharedPrefix(x.Phys, x.Count)
			if !shared {
				need -= same
				for _, b := range [2]uint64{off / blockSize, (end - 1) / blockSize} {
					if b >= x.FileBlock && b < x.FileBlock+same && !covered(&in, b, off, end) && !x.Unwritten {
						need++ // both ends may be one block: one too many is reserved
					}
				}
			}
			x.FileBlock, x.Phys, x.Count = x.FileBlock+same, x.Phys+same, x.Count-same
		}
		return true, nil
	})
	return need, err
}
