package vde

import (
	"encoding/binary"
	"fmt"

	"vdefs/vde/alloc"
	"vdefs/vde/image"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// Large writes are not written twice: their blocks go into fresh blocks of the image first, by whoever writes and in
// parallel, and the log record carries only where they are and their checksums (Tx.MapWritten). A record may reach the
// disk before its blocks, if nobody asked for a sync: replay compares the blocks with the record's checksums and leaves
// out those that are not there, as if that part of the write, which nobody was promised, had not happened.

// PrepareWrite puts data, whole blocks, into fresh blocks near those before fileBlock and returns where, and their
// checksums. The space must have been reserved. A transaction maps the blocks (Tx.MapWritten), or Unprepare gives them
// back. The bytes are the caller's again when it returns.
func (e *Engine) PrepareWrite(ino meta.Ino, fileBlock uint64, data []byte) ([]alloc.Extent, []byte, error) {
	hint := uint64(alloc.NoHint)
	if fileBlock > 0 {
		x, found, err := e.meta.LastExtent(ino, fileBlock)
		if err != nil {
			return nil, nil, err
		}
		if found {
			hint = x.Phys + min(x.Count, fileBlock-x.FileBlock)
		}
	}
	extents, err := e.alloc.Allocate(uint64(len(data)/blockSize), hint)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	sums := image.AppendSums(make([]byte, 0, len(data)/blockSize*4), data)
	done := uint64(0)
	for _, x := range extents {
		part := data[done*blockSize : (done+x.Count)*blockSize]
		if err := e.img.WriteSummed(x.Start, part, sums[done*4:(done+x.Count)*4]); err != nil {
			return nil, nil, e.fail(err)
		}
		done += x.Count
	}
	e.refsWritten.Add(1)
	return extents, sums, nil
}

// Unprepare gives blocks back that no transaction mapped. They are free after the next checkpoint: the log may hold the
// refused record that names them, and a replay keeps what records name from being given out.
func (e *Engine) Unprepare(extents []alloc.Extent) { e.frees.add(extents) }

// SyncPrepared makes durable the blocks of every PrepareWrite that returned before the call. To be called before the
// log is synced for somebody who was promised it. It costs nothing when there were none; callers that come together
// share one flush.
func (e *Engine) SyncPrepared() error {
	want := e.refsWritten.Load()
	if e.refsSynced.Load() >= want {
		return nil
	}
	e.refsMu.Lock()
	defer e.refsMu.Unlock()
	if e.refsSynced.Load() >= want {
		return nil
	}
	now := e.refsWritten.Load()
	if err := e.img.Sync(); err != nil {
		return e.fail(err)
	}
	e.refsSynced.Store(now)
	return nil
}

// ReserveReplay keeps blocks that a log record refers to from being given out, until the record is applied.
func (e *Engine) ReserveReplay(extents []alloc.Extent) error {
	for _, x := range extents {
		if err := e.alloc.Reserve(x); err != nil {
			return fmt.Errorf("%w: a log record refers to blocks %d+%d: %w", ErrDamaged, x.Start, x.Count, err)
		}
	}
	return nil
}

// MapReplayed is MapWritten for a record that is replayed: sums are the checksums that the blocks should have. With
// promised set somebody was told that the record is durable: all blocks are mapped, and a bad one is found when it is
// read. Without, blocks that are not there are left out: the file keeps what it had in their place.
func (tx *Tx) MapReplayed(in *meta.Inode, fileBlock uint64, extents []alloc.Extent, sums []byte, size uint64, promised bool) error {
	var good []bool
	buf := make([]byte, blockSize)
	var kept, lost []alloc.Extent // lost: never mapped, free at once
	at := uint64(0)
	for _, x := range extents {
		for i := uint64(0); i < x.Count; i++ {
			ok := promised
			if !ok {
				if err := tx.e.img.ReadRaw(x.Start+i, buf); err != nil {
					return err
				}
				ok = layout.CRC(buf) == binary.LittleEndian.Uint32(sums[at*4:])
			}
			b := alloc.Extent{Start: x.Start + i, Count: 1}
			if good = append(good, ok); ok {
				kept = append(kept, b)
				// The checksum region may have lost what the data region kept.
				if err := tx.e.img.WriteSums(b.Start, sums[at*4:at*4+4]); err != nil {
					return err
				}
			} else {
				lost = append(lost, b)
			}
			at++
		}
	}
	if len(lost) == 0 {
		return tx.MapWritten(in, fileBlock, extents, size)
	}
	m, err := tx.mapping(in.Ino, fileBlock, fileBlock+at)
	if err != nil {
		return err
	}
	var repl []meta.Extent
	next := 0
	err = m.pieces(func(x meta.Extent, hole bool) error {
		for b := x.FileBlock; b < x.End(); b++ {
			old := meta.Extent{FileBlock: b, Phys: x.Phys + b - x.FileBlock, Count: 1, Unwritten: x.Unwritten}
			switch i := b - fileBlock; {
			case good[i]:
				if !hole {
					tx.dropBlocks(old.Phys, 1)
				}
				repl = append(repl, meta.Extent{FileBlock: b, Phys: kept[next].Start, Count: 1})
				next++
			case !hole:
				repl = append(repl, old)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	tx.replace(in, m, repl)
	in.Size = max(in.Size, size)
	tx.freed = append(tx.freed, lost...)
	return nil
}
