package vde

import (
	"sync"

	"vdefs/vde/alloc"
)

// What commits free waits for two things (R3): for a checkpoint, and for the snapshots that were open when it was freed.
// A snapshot's extents map the blocks as they were, so a freed block must not be given out, and a block that is not
// shared any more must not be overwritten in place, before the snapshot is closed: contents newer than the snapshot are
// harmless only as long as they are those of the same place of the same file, which the receiver writes again.

// heldBack is what a checkpoint has made durable and what snapshots that were open at its beginning still need.
type heldBack struct {
	number    uint64         // of the checkpoint
	freed     []alloc.Extent // to be given out again
	lingering []alloc.Extent // reference counts to be forgotten
	epoch     uint64         // of refs, for lingering
}

// holdBack knows the open snapshots and what waits for them.
//
// Invariant: held is in the order of number; a snapshot needs what checkpoints with a higher number than its own hold.
type holdBack struct {
	mu     sync.Mutex
	number uint64               // of the last checkpoint that has begun; guarded by mu
	open   map[*snapshot]uint64 // value of number when it was opened; guarded by mu
	held   []heldBack           // guarded by mu
	blocks uint64               // in held; guarded by mu
}

// releaseLocked takes out what no open snapshot needs.
func (h *holdBack) releaseLocked() []heldBack {
	n := 0
	for n < len(h.held) && !h.neededLocked(h.held[n].number) {
		for _, x := range h.held[n].freed {
			h.blocks -= x.Count
		}
		n++
	}
	out := h.held[:n:n]
	h.held = h.held[n:]
	return out
}

func (h *holdBack) neededLocked(number uint64) bool {
	for _, opened := range h.open {
		if opened < number {
			return true
		}
	}
	return false
}

// settled adds what a checkpoint has made durable, and returns all that may be given out now.
func (h *holdBack) settled(b heldBack) []heldBack {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = append(h.held, b)
	for _, x := range b.freed {
		h.blocks += x.Count
	}
	return h.releaseLocked()
}

// size is the number of blocks that are held back, and ready tells whether a checkpoint would give some back.
func (h *holdBack) size() (blocks uint64, ready bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.blocks, len(h.held) > 0 && !h.neededLocked(h.held[0].number)
}
