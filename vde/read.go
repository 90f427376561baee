package vde

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/sirupsen/logrus"

	"vdefs/vde/image"
	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

// Read fills dst from off and tells how much there was: less than len(dst) only at the end of the file. It waits for
// the writes ahead of it on the range. A block that fails its checksum is an error that wraps ErrBadBlock.
func (e *Engine) Read(ctx context.Context, ino meta.Ino, off uint64, dst []byte) (int, error) {
	if len(dst) == 0 {
		return 0, nil
	}
	e.readGate.RLock()
	defer e.readGate.RUnlock()
	f := e.files.use(ino)
	defer e.files.done(ino, f)
	first, blocks := off/blockSize, BlocksFor(off, uint64(len(dst)))
	m, err := e.lockMapped(ctx, f, ino, first, blocks, rangelock.Shared)
	if err != nil {
		return 0, err
	}
	defer m.ticket.Release()
	in := &m.inode
	if off >= in.Size {
		return 0, nil
	}
	dst = dst[:min(uint64(len(dst)), in.Size-off)]
	end := off + uint64(len(dst))
	at := off // everything before is filled
	fill := func(to uint64) {
		if to > at {
			clear(dst[at-off : to-off])
			at = to
		}
	}
	for _, x := range m.extents {
		if x.Unwritten {
			continue
		}
		fill(min(max(x.FileBlock*blockSize, off), end))
		to := min(x.End()*blockSize, end)
		if to <= at {
			break
		}
		if err := e.readRange(ino, x, at, dst[at-off:to-off]); err != nil {
			return 0, err
		}
		at = to
	}
	fill(end)
	return len(dst), nil
}

// mapped is a range of a file whose blocks are held, and what it maps.
type mapped struct {
	ticket  *rangelock.Ticket
	inode   meta.Inode
	extents []meta.Extent // cut to the range, in order
}

// lockTries is how often lockMapped queues again behind writers.
const lockTries = 4

// lockMapped takes a range of a file, of which it tells the mapping: the data of every mapped block is in the image or the
// overlay. Release the ticket. readGate must be held for reading.
//
// A writer queues, commits the new mapping, and writes the data when its turn comes. So a mapping that is read while a
// writer waits behind may be of blocks that hold anything: then the range is taken again, behind the writer. If writers come too
// fast for that, the mapping is read before queueing: it is that of writers which are all ahead then. What those change that
// are ahead and were not seen is read old or new, block by block.
func (e *Engine) lockMapped(ctx context.Context, f *file, ino meta.Ino, start, count uint64, mode rangelock.Mode) (m mapped, err error) {
	for try := range lockTries + 1 {
		look := func() error {
			m.extents = m.extents[:0]
			if m.inode, err = e.meta.Inode(ino); err != nil {
				return err
			}
			return e.meta.Extents(ino, start, start+count, func(x meta.Extent) (bool, error) {
				if x, ok := clip(x, start, start+count); ok {
					m.extents = append(m.extents, x)
				}
				return true, nil
			})
		}
		last := try == lockTries
		if last {
			if err := look(); err != nil {
				return m, err
			}
		}
		if m.ticket, err = f.lock.Acquire(ctx, start, count, mode); err != nil || last {
			return m, err
		}
		if err = look(); err != nil {
			m.ticket.Release()
			return m, err
		}
		if !m.ticket.Overtaken() {
			return m, nil
		}
		m.ticket.Release()
	}
	return m, err
}

// bounce holds blocks that are read in part.
var bounce = sync.Pool{New: func() any { return new([blockSize]byte) }}

// readRange reads file bytes from off into dst, all inside one extent: whole blocks straight into dst.
func (e *Engine) readRange(ino meta.Ino, x meta.Extent, off uint64, dst []byte) error {
	for len(dst) > 0 {
		b, skip := off/blockSize, off%blockSize
		phys := x.Phys + b - x.FileBlock
		if skip == 0 && len(dst) >= blockSize {
			n := len(dst) - len(dst)%blockSize
			if err := e.readPhys(ino, b, phys, dst[:n]); err != nil {
				return err
			}
			off += uint64(n)
			dst = dst[n:]
			continue
		}
		buf := bounce.Get().(*[blockSize]byte)
		err := e.readPhys(ino, b, phys, buf[:])
		n := copy(dst, buf[skip:])
		bounce.Put(buf)
		if err != nil {
			return err
		}
		off += uint64(n)
		dst = dst[n:]
	}
	return nil
}

// readPhys reads whole image blocks that hold file blocks from fileBlock on. Of a store that has stopped nothing is read:
// the write that stopped it left a mapping without its data, and the blocks may hold another file's, with good checksums.
// It stopped before it let go of its range, so who waited for it sees that here.
func (e *Engine) readPhys(ino meta.Ino, fileBlock, phys uint64, dst []byte) error {
	if err := e.Err(); err != nil {
		return err
	}
	n := uint64(len(dst) / blockSize)
	if !e.overlay.covers(phys, n) {
		return e.judge(ino, fileBlock, phys, e.img.Read(phys, dst))
	}
	for i := uint64(0); i < n; i++ {
		b := dst[i*blockSize : (i+1)*blockSize]
		if e.overlay.read(phys+i, b) {
			continue
		}
		if err := e.judge(ino, fileBlock+i, phys+i, e.img.Read(phys+i, b)); err != nil {
			return err
		}
	}
	return nil
}

// readEach reads whole image blocks and calls bad for each that cannot be read or fails its checksum, with its place in
// dst and the error; what dst holds there is no contents. An error of bad ends it, and so does a stopped store, see readPhys.
func (e *Engine) readEach(phys uint64, dst []byte, bad func(i uint64, err error) error) error {
	if err := e.Err(); err != nil {
		return err
	}
	n := uint64(len(dst) / blockSize)
	if !e.overlay.covers(phys, n) && e.img.Read(phys, dst) == nil {
		return nil
	}
	for i := uint64(0); i < n; i++ {
		b := dst[i*blockSize : (i+1)*blockSize]
		if e.overlay.read(phys+i, b) {
			continue
		}
		if err := e.img.Read(phys+i, b); err != nil {
			if err := bad(i, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// judge turns a checksum error into one that names the file, counts and logs it.
func (e *Engine) judge(ino meta.Ino, fileBlock, phys uint64, err error) error {
	var bad *image.ChecksumError
	if !errors.As(err, &bad) {
		return err
	}
	e.checksumErrors.Add(1)
	off := (fileBlock + bad.Block - phys) * blockSize
	e.log.WithFields(logrus.Fields{"inode": uint64(ino), "offset": off, "block": bad.Block}).WithError(err).Error("bad block")
	return fmt.Errorf("%w: inode %d, offset %d: %w", ErrBadBlock, ino, off, err)
}

// Seek finds the next data (or hole) of a file at or behind off, within its size. found is false when there is none: no
// data behind off. A hole is always found: the end of the file is one. Unwritten blocks count as holes.
func (e *Engine) Seek(ino meta.Ino, off uint64, hole bool) (at uint64, found bool, err error) {
	in, err := e.meta.Inode(ino)
	if err != nil {
		return 0, false, err
	}
	if off >= in.Size {
		return 0, false, nil
	}
	end := (in.Size + blockSize - 1) / blockSize
	pos := off
	err = e.meta.Extents(ino, off/blockSize, end, func(x meta.Extent) (bool, error) {
		if x.Unwritten {
			return true, nil
		}
		start := x.FileBlock * blockSize
		if hole {
			if start > pos {
				return false, nil // pos is in a hole
			}
			pos = x.End() * blockSize
			return true, nil
		}
		pos, found = max(start, off), true
		return false, nil
	})
	if err != nil {
		return 0, false, err
	}
	if hole {
		return min(pos, in.Size), true, nil
	}
	return pos, found && pos < in.Size, nil
}

// Shared tells whether any of the blocks is, or lately was, mapped more than once.
func (e *Engine) Shared(start, count uint64) bool {
	for count > 0 {
		shared, n := e.refs.sharedPrefix(start, count)
		if shared {
			return true
		}
		start, count = start+n, count-n
	}
	return false
}
