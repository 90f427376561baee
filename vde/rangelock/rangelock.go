// Package rangelock is the fair lock over ranges of block numbers that orders reads and writes of one file.
//
// A request for [start, start+count) takes its place in the queue the moment [BlockRangeLock.Enqueue] returns, and is
// granted as soon as no earlier request that is still held or queued conflicts with it. Two requests conflict when they
// share a block and at least one is [Exclusive]. Hence:
//
//   - overlapping requests are served strictly in the order of Enqueue (a shared one behind a waiting exclusive one
//     waits, so writers never starve);
//   - requests without a common block never wait for each other, however long the queue is;
//   - shared requests never wait for shared ones.
//
// The order of Enqueue is the whole order: a dispatcher that enqueues in log order and hands the tickets to workers gets
// log order on every block, whatever the workers do. Waiting for several tickets at once cannot deadlock if all of
// them are enqueued in one agreed order (log order, or sorted by range); there is no detection of the contrary.
//
// Cost is in requests, never in blocks: with n requests in the lock of which k conflict with this one, each operation
// is O((k+1) log n) and in practice O(k + log n). A request that does not wait costs one allocation, its Ticket.
//
// Locks: BlockRangeLock.mu is a leaf. It is held for the bookkeeping only, never while waiting or calling out.
package rangelock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
)

// Mode says with whom a range may be shared.
type Mode uint8

const (
	// Shared requests overlap each other freely: reads.
	Shared Mode = iota
	// Exclusive requests overlap nothing: writes.
	Exclusive
)

func (m Mode) String() string {
	switch m {
	case Shared:
		return "shared"
	case Exclusive:
		return "exclusive"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// ToEnd as a count takes every block from start on, up to the highest block number there is.
const ToEnd = math.MaxUint64

// ErrReleased is what Wait answers when the ticket was given up, by Release or by another Wait whose context
// ended, before this Wait was done. Nothing is held.
var ErrReleased = errors.New("rangelock: the ticket was given up")

// BlockRangeLock is a fair lock over ranges of block numbers; see the package comment for what fair means. The zero
// value is ready for use. It must not be copied after first use. All methods may be called from any goroutine.
type BlockRangeLock struct {
	mu sync.Mutex
	// Every ticket that is queued or granted and covers at least one block is in exactly one of the two trees, by
	// its mode. Guarded by mu.
	shared, exclusive tree
	// lastSeq is the place in the queue that was given last. Guarded by mu.
	lastSeq uint64
}

// state is where a ticket is in its life: queued → granted → released, or queued → released, or queued → withdrawn.
type state uint32

const (
	queued    state = iota // some earlier request conflicts
	granted                // held
	released               // given up by Release
	withdrawn              // given up because the context of a Wait ended
)

// Ticket is a place in the queue of a [BlockRangeLock], and once granted the right to its range. Its methods may
// be called from any goroutine.
type Ticket struct {
	lock        *BlockRangeLock
	start, last uint64 // first and last block; meaningless if empty
	seq         uint64 // place in the queue: unique and rising within a lock
	mode        Mode
	empty       bool // covers no block, is in no tree

	state atomic.Uint32 // a state; written under lock.mu, read without it

	// Guarded by lock.mu.

	// blockers is the number of tickets in the lock that conflict with this one and have a lower seq. It is 0
	// exactly when the ticket is granted.
	blockers int
	ready    chan struct{} // made by the first Wait that has to wait; closed when the ticket leaves queued
	node     node          // place in the tree of its mode
	trace    []uintptr     // debug mode: where it was released
}

// Enqueue takes the next place in the queue for count blocks from start on. It never waits: the ticket may come back
// granted already (see [Ticket.Granted]) or still queued (see [Ticket.Wait]). The caller must call
// [Ticket.Release] once in either case, unless a Wait on it returned an error.
//
// A range that would pass the highest block number ends there, and [ToEnd] always reaches it. A count of 0 covers
// nothing, conflicts with nothing and is granted at once. Any mode but Shared is taken as Exclusive.
func (l *BlockRangeLock) Enqueue(start, count uint64, mode Mode) *Ticket {
	t := &Ticket{lock: l, start: start, mode: mode}
	if count == 0 {
		t.empty = true
		t.state.Store(uint32(granted))
		return t
	}
	t.last = start + (count - 1)
	if t.last < start || count == ToEnd {
		t.last = math.MaxUint64
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastSeq++
	t.seq = l.lastSeq
	t.blockers = l.exclusive.countOverlaps(t.start, t.last)
	if mode == Shared {
		l.shared.insert(t)
	} else {
		t.blockers += l.shared.countOverlaps(t.start, t.last)
		l.exclusive.insert(t)
	}
	if t.blockers == 0 {
		t.state.Store(uint32(granted))
	}
	return t
}

// Acquire is Enqueue and Wait in one. On an error nothing is held and there is nothing to release.
func (l *BlockRangeLock) Acquire(ctx context.Context, start, count uint64, mode Mode) (*Ticket, error) {
	t := l.Enqueue(start, count, mode)
	if err := t.Wait(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// Idle reports that nothing is held nor queued (requests of no blocks aside), so that an owner who also keeps others
// from calling Enqueue may drop the lock.
func (l *BlockRangeLock) Idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shared.root == nil && l.exclusive.root == nil
}

// Granted reports whether the range is held now. It neither waits nor locks.
func (t *Ticket) Granted() bool { return state(t.state.Load()) == granted }

// Overtaken reports, of a ticket that is held, whether an exclusive request for some of its blocks waits behind it. One that
// looks at what a request changes when it is enqueued or later, and then is not overtaken, has seen nothing of requests
// behind it.
func (t *Ticket) Overtaken() bool {
	if t.empty {
		return false
	}
	t.lock.mu.Lock()
	defer t.lock.mu.Unlock()
	n := t.lock.exclusive.countOverlaps(t.start, t.last)
	if t.mode != Shared {
		n-- // itself
	}
	return n > 0
}

// Wait returns nil once the range is held; at once, and whatever ctx says, if it is held already.
//
// If ctx ends first the ticket is withdrawn as if it had never been in the queue, those behind it move up, and the
// error wraps ctx.Err(). If the ticket was given up already or meanwhile, the error is [ErrReleased]. After any error
// nothing is held, and a Release is allowed but not needed.
func (t *Ticket) Wait(ctx context.Context) error {
	if t.Granted() {
		return nil
	}
	l := t.lock
	l.mu.Lock()
	if state(t.state.Load()) == queued {
		if t.ready == nil {
			t.ready = make(chan struct{})
		}
		ready := t.ready
		l.mu.Unlock()
		select {
		case <-ready:
		case <-ctx.Done():
		}
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	switch state(t.state.Load()) {
	case granted: // even if ctx ended at the same moment: a grant is never lost
		return nil
	case queued:
		l.giveUpLocked(t, withdrawn)
		return fmt.Errorf("rangelock: gave up waiting for a %v lock on blocks %d to %d: %w", t.mode, t.start, t.last, ctx.Err())
	default:
		return ErrReleased
	}
}

// Release gives the range up, or the place in the queue if it is not granted yet, and lets those proceed who waited
// only for it. It is to be called exactly once. A further call does nothing, but is reported in the debug mode (see
// [SetDebug]). A call after Wait returned an error does nothing.
func (t *Ticket) Release() {
	report := debugReport.Load()
	var here []uintptr
	if report != nil {
		here = callers()
	}

	l := t.lock
	l.mu.Lock()
	before := state(t.state.Load())
	var first []uintptr
	switch before {
	case queued, granted:
		t.trace = here
		l.giveUpLocked(t, released)
	case released:
		first = t.trace
	}
	l.mu.Unlock()

	if before == released && report != nil {
		(*report)(&DoubleReleaseError{
			Start: t.start, Last: t.last, Mode: t.mode,
			First: formatStack(first), Second: formatStack(here),
		})
	}
}

// giveUpLocked takes a queued or granted ticket out of the lock, leaves it in the given end state, and grants what it
// alone held up.
func (l *BlockRangeLock) giveUpLocked(t *Ticket, end state) {
	t.state.Store(uint32(end))
	if t.ready != nil {
		// Granting closed the channel already, so it is closed here only if that never happened.
		select {
		case <-t.ready:
		default:
			close(t.ready)
		}
	}
	if t.empty {
		return
	}
	if t.mode == Shared {
		l.shared.remove(t)
	} else {
		l.exclusive.remove(t)
		l.shared.unblockOverlaps(t)
	}
	l.exclusive.unblockOverlaps(t)
}

// unblockLocked takes note that one of the blockers of t is gone.
func (t *Ticket) unblockLocked() {
	t.blockers--
	if t.blockers > 0 {
		return
	}
	t.state.Store(uint32(granted))
	if t.ready != nil {
		close(t.ready)
	}
}
