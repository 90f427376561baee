package vde

import (
	"cmp"
	"slices"
	"sync"

	"vdefs/vde/image"
)

// overlay holds the new contents of mapped blocks that may not be overwritten yet, because the log record of the
// write is not durable (R2). Readers look here first. When the log has become durable, flush moves the contents into
// the image.
//
// Invariant: a block has at most one entry, the newest; only flush writes to blocks that have or had an entry, one
// flush at a time, so an older write can never land after a newer one.
type overlay struct {
	img *image.Image

	run     []byte     // a buffer of flush; guarded by flushMu
	flushMu sync.Mutex // held over a flush; before mu

	mu      sync.RWMutex
	blocks  map[uint64]overlaid // guarded by mu
	durable map[uint16]uint64   // group slot -> log index known to be durable; guarded by mu
	room    sync.Cond           // on mu: signalled when blocks were flushed
	err     error               // guarded by mu: flushing failed, entries stay
}

// overlaid is the newest contents of a block and the log record it waits for. data is one block, never changed.
type overlaid struct {
	data  []byte
	slot  uint16
	index uint64
}

func newOverlay(img *image.Image) *overlay {
	o := &overlay{img: img, blocks: map[uint64]overlaid{}, durable: map[uint16]uint64{}}
	o.room.L = &o.mu
	return o
}

// put sets the contents of consecutive blocks. The overlay keeps data, which must not change any more.
func (o *overlay) put(start uint64, data []byte, slot uint16, index uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := uint64(0); len(data) > 0; i++ {
		o.blocks[start+i] = overlaid{data[:image.BlockSize:image.BlockSize], slot, index}
		data = data[image.BlockSize:]
	}
}

// covers tells whether any of the blocks has an entry; it is the quick answer for most reads.
func (o *overlay) covers(start, count uint64) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if len(o.blocks) == 0 {
		return false
	}
	for b := start; b < start+count; b++ {
		if _, ok := o.blocks[b]; ok {
			return true
		}
	}
	return false
}

// read copies a block out of the overlay and tells whether it was there.
func (o *overlay) read(block uint64, dst []byte) bool {
	o.mu.RLock()
	e, ok := o.blocks[block]
	o.mu.RUnlock()
	if ok {
		copy(dst, e.data)
	}
	return ok
}

// setDurable notes how far a group's log is durable; it never goes back.
func (o *overlay) setDurable(slot uint16, index uint64) {
	o.mu.Lock()
	o.durable[slot] = max(o.durable[slot], index)
	o.mu.Unlock()
}

// forget drops the entries of a group whose blocks nobody maps any more, and what was known of its log: it counts as
// durable up to an index.
func (o *overlay) forget(slot uint16, durable uint64) {
	o.flushMu.Lock() // a flush under way may be writing some of them
	defer o.flushMu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	for b, e := range o.blocks {
		if e.slot == slot {
			delete(o.blocks, b)
		}
	}
	o.durable[slot] = durable
	if durable == 0 {
		delete(o.durable, slot)
	}
	o.room.Broadcast()
}

// size is the number of blocks held.
func (o *overlay) size() int {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return len(o.blocks)
}

// flush writes what may be written to the image (not durably) and forgets it.
func (o *overlay) flush() error {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	type item struct {
		block uint64
		data  []byte
	}
	o.mu.RLock()
	err := o.err
	var ready []item
	for b, e := range o.blocks {
		if e.index <= o.durable[e.slot] {
			ready = append(ready, item{b, e.data})
		}
	}
	o.mu.RUnlock()
	if err != nil || len(ready) == 0 {
		return err
	}
	slices.SortFunc(ready, func(a, b item) int { return cmp.Compare(a.block, b.block) })
	const maxRun = 256 // blocks: 1 MiB a write
	for i := 0; i < len(ready); {
		n := 1
		for i+n < len(ready) && n < maxRun && ready[i+n].block == ready[i].block+uint64(n) {
			n++
		}
		data := ready[i].data
		if n > 1 {
			if o.run == nil {
				o.run = make([]byte, 0, maxRun*image.BlockSize)
			}
			data = o.run[:0]
			for _, it := range ready[i : i+n] {
				data = append(data, it.data...)
			}
		}
		if err := o.img.Write(ready[i].block, data); err != nil {
			o.mu.Lock()
			o.err = err
			o.room.Broadcast()
			o.mu.Unlock()
			return err
		}
		i += n
	}
	o.mu.Lock()
	for _, it := range ready {
		// A newer write may have come meanwhile; it stays.
		if e := o.blocks[it.block]; &e.data[0] == &it.data[0] {
			delete(o.blocks, it.block)
		}
	}
	o.room.Broadcast()
	o.mu.Unlock()
	return nil
}

// waitRoom waits until the overlay holds at most limit blocks or cannot shrink any more.
func (o *overlay) waitRoom(limit int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.blocks) > limit && o.err == nil {
		o.room.Wait()
	}
}

// isDurable tells whether a group's log is known to be durable up to an index.
func (o *overlay) isDurable(slot uint16, index uint64) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return index <= o.durable[slot]
}
