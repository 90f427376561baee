package vde

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"vdefs/vde/alloc"
	"vdefs/vde/image"
	"vdefs/vde/meta"
)

// maxRestoreBatch bounds the metadata of a group that can be restored: Pebble takes batches below 4 GiB, and the batch
// is what makes a restore one step.
const maxRestoreBatch = 3 << 30

// Restore makes a group exactly what a stream made by Snapshot says, with entry index of term as the last applied. It is
// durable when Restore returns. After an error, or a crash at any moment before, the group is as it was; readers see the
// old group or the new one. The group comes into being if the store does not have it. To be called like CreateGroup.
//
// Contents are read into fresh blocks, so the new group must fit beside the old one: ErrNoSpace, and the group is as it
// was. Its metadata is held in memory. ErrSnapshot: the stream cannot be used.
func (e *Engine) Restore(slot uint16, index, term uint64, r io.Reader) (err error) {
	if err := e.Err(); err != nil {
		return err
	}
	s, err := newStreamReader(r, slot)
	if err != nil {
		return fmt.Errorf("restore group %d: %w", slot, err)
	}
	w := &restorer{e: e, refs: newRefs(), batch: e.meta.NewBatch()}
	w.batch.DeleteGroup(slot)
	err = s.run(w)
	if err == nil {
		err = w.flushExtent()
	}
	if err == nil {
		// So that the flush below finds nothing to wait for.
		if err = e.img.Sync(); err != nil {
			err = e.fail(err)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("restore group %d: %w", slot, err), w.undo())
	}
	g := s.state
	g.Applied, g.Term = index, term
	w.batch.SetGroup(slot, g)
	var refs []meta.Ref
	w.refs.tree.Scan(func(x ref) bool {
		w.batch.SetRef(x.Ref)
		refs = append(refs, x.Ref)
		return true
	})
	return e.replaceGroup(w.batch, slot, &g, refs)
}

// restorer collects what a stream brings: contents in fresh blocks, keys in a batch.
type restorer struct {
	e     *Engine
	batch *meta.Batch
	fresh []alloc.Extent // all that were allocated
	refs  *refs          // counts of the new blocks, in memory only
	first spans          // shared blocks: the sender's to ours

	room []alloc.Extent // of the extent that is being read: where its contents go, those that have not come yet
	ino  meta.Ino       // of next
	next meta.Extent    // the extent that the following blocks may join; Count 0: none
}

// undo gives everything back.
func (w *restorer) undo() error {
	err := w.batch.Close()
	for _, x := range w.fresh {
		if ferr := w.e.alloc.Free(x); ferr != nil {
			err = errors.Join(err, w.e.fail(fmt.Errorf("give blocks %d+%d back: %w", x.Start, x.Count, ferr)))
		}
	}
	return err
}

func (w *restorer) key(_ meta.Key, key, value []byte) error {
	w.batch.SetKey(key, value)
	return w.checkSize()
}

func (w *restorer) checkSize() error {
	if w.batch.Len() > maxRestoreBatch {
		return fmt.Errorf("the metadata of the group is larger than %d bytes, which is the most that can be restored", maxRestoreBatch)
	}
	return nil
}

func (w *restorer) extent(x snapExtent) error {
	if x.kind == extentReference {
		return w.reference(x)
	}
	extents, err := w.allocate(x)
	if err != nil {
		return err
	}
	if x.kind != extentZero {
		w.room = append(w.room[:0], extents...)
	}
	at := x.fileBlock
	for _, a := range extents {
		if err := w.mapBlocks(x.ino, meta.Extent{FileBlock: at, Phys: a.Start, Count: a.Count, Unwritten: x.kind == extentZero}); err != nil {
			return err
		}
		if x.kind == extentFirst {
			from := x.source + at - x.fileBlock
			if _, found, n := w.first.find(from, a.Count); found || n < a.Count {
				return fmt.Errorf("%w: shared blocks %d+%d come twice", ErrSnapshot, from, a.Count)
			}
			w.first.add(span{from, a.Count, a.Start})
		}
		at += a.Count
	}
	return nil
}

// allocate takes fresh blocks, near those before, without touching what is promised to writers.
func (w *restorer) allocate(x snapExtent) ([]alloc.Extent, error) {
	if err := w.e.Reserve(x.count); err != nil {
		return nil, fmt.Errorf("the group does not fit beside the old one: inode %d: %w", x.ino, err)
	}
	defer w.e.Unreserve(x.count)
	hint := uint64(alloc.NoHint)
	if w.next.Count > 0 {
		hint = w.next.Phys + w.next.Count
	}
	extents, err := w.e.alloc.Allocate(x.count, hint)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	for _, x := range extents {
		if n := len(w.fresh); n > 0 && w.fresh[n-1].End() == x.Start {
			w.fresh[n-1].Count += x.Count
		} else {
			w.fresh = append(w.fresh, x)
		}
	}
	return extents, nil
}

// reference maps blocks that came before.
func (w *restorer) reference(x snapExtent) error {
	for x.count > 0 {
		to, found, n := w.first.find(x.source, x.count)
		if !found {
			return fmt.Errorf("%w: inode %d refers to shared block %d, which did not come", ErrSnapshot, x.ino, x.source)
		}
		w.refs.add(nil, to, n)
		if err := w.mapBlocks(x.ino, meta.Extent{FileBlock: x.fileBlock, Phys: to, Count: n}); err != nil {
			return err
		}
		x.source, x.fileBlock, x.count = x.source+n, x.fileBlock+n, x.count-n
	}
	return nil
}

func (w *restorer) data(blocks []byte, bad func(i int) bool) error {
	sums := image.AppendSums(nil, blocks)
	for i := range len(blocks) / blockSize {
		if !bad(i) {
			continue
		}
		sum, want := sums[i*4:i*4+4], blocks[i*blockSize:i*blockSize+4]
		if bytes.Equal(sum, want) {
			want = []byte{^sum[0], sum[1], sum[2], sum[3]}
		}
		copy(sum, want) // not that of what is written, so that reading it fails, as there
	}
	for len(blocks) > 0 {
		a := &w.room[0] // the stream has no more blocks than its extent
		n := min(a.Count, uint64(len(blocks)/blockSize))
		if err := w.e.img.WriteSummed(a.Start, blocks[:n*blockSize], sums[:n*4]); err != nil {
			return w.e.fail(err)
		}
		blocks, sums = blocks[n*blockSize:], sums[n*4:]
		if a.Start, a.Count = a.Start+n, a.Count-n; a.Count == 0 {
			w.room = w.room[1:]
		}
	}
	return nil
}

// mapBlocks adds an extent, joined with the one before where that is possible.
func (w *restorer) mapBlocks(ino meta.Ino, x meta.Extent) error {
	l := &w.next
	if l.Count > 0 && w.ino == ino && l.End() == x.FileBlock && l.Phys+l.Count == x.Phys && l.Unwritten == x.Unwritten {
		l.Count += x.Count
		return nil
	}
	if err := w.flushExtent(); err != nil {
		return err
	}
	w.ino, w.next = ino, x
	return nil
}

func (w *restorer) flushExtent() error {
	if w.next.Count > 0 {
		w.batch.SetExtent(w.ino, w.next)
	}
	return w.checkSize()
}
