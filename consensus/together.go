package consensus

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vdefs/consensus/logstore"
)

// together is how a group that is alone takes proposals that are durable before
// they are answered (SyncAlways): those that come together are one batch, which
// the caller of its first carries out for all of them.
//
//	join    the batch takes further proposals until Group.mu is had
//	write   one Append, then Apply for each, with Group.mu held
//	sync    one batch's caller syncs for all that are written by then; meanwhile
//	        the next batch is joined and written
//
// Lock order: Group.mu, then together.mu; neither is held during a sync.
type together struct {
	// How many proposals are not answered, and how many of these are written. They
	// change with mu held.
	waiting, written atomic.Int64
	// How many were not answered when the last sync ended, and until when gather waits
	// for as many again, by since.
	crowd, until atomic.Int64

	entries []logstore.Entry // buffer of write, guarded by Group.mu; empty between writes

	mu       sync.Mutex
	open     *batch   // takes proposals; nil: the next one begins a batch
	unsynced []*batch // written, and not yet answered
	syncing  bool     // somebody syncs, or was told to
	size     int      // of the last batch
}

// batch is the proposals that share a write and a sync.
type batch struct {
	joined []joined // not changed by others once the batch is not open any more
	bytes  int

	// The outcome, for all of them; it is there when done is closed.
	refused bool // nothing was done, as the group is not alone any more
	err     error

	last uint64        // index of the last entry, once it is written
	turn chan struct{} // tells the caller of the first to sync; has room for that
	done chan struct{}
}

// joined is one proposal of a batch.
type joined struct {
	cmd           []byte
	local, result any
}

const (
	// maxJoinedBytes bounds the commands of a batch, in bytes, so that small ones do
	// not wait for large ones to be written; a larger command is a batch by itself.
	maxJoinedBytes = 1 << 20

	// gatherFrom is from how many proposals under way a batch waits for those that the
	// last sync let go: at most a quarter of what that sync took, or gatherEach for each
	// of them if that is more, and never longer than gatherLimit.
	gatherFrom  = 8
	gatherEach  = time.Microsecond
	gatherLimit = 500 * time.Microsecond
)

var startTime = time.Now()

// since is a clock that never goes back, in nanoseconds.
func since() int64 { return int64(time.Since(startTime)) }

// proposeTogether is proposeSolo with SyncAlways.
func (g *Group) proposeTogether(cmd []byte, local any) (result any, alone bool, err error) {
	b, i, _ := g.together.join([][]byte{cmd}, []any{local})
	if i == 0 {
		g.carryOut(b)
	} else {
		<-b.done
	}
	return b.joined[i].result, !b.refused, b.err
}

func newBatch(size int) *batch {
	return &batch{joined: make([]joined, 0, max(size, 1)), turn: make(chan struct{}, 1), done: make(chan struct{})}
}

// add adds commands, at least one and as many as a batch may have, and returns how many.
func (b *batch) add(cmds [][]byte, locals []any) (n int) {
	for n < len(cmds) && (n == 0 || b.bytes+len(cmds[n]) <= maxJoinedBytes) {
		b.joined = append(b.joined, joined{cmd: cmds[n], local: locals[n]})
		b.bytes += len(cmds[n])
		n++
	}
	return n
}

// join adds proposals of one caller to the batch that is open, as many as it may have, and returns the number of the first in it. The
// caller of number 0 carries the batch out.
func (t *together) join(cmds [][]byte, locals []any) (b *batch, first, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b = t.open
	if b == nil || b.bytes+len(cmds[0]) > maxJoinedBytes {
		b = newBatch(max(t.size, len(cmds)))
		t.open = b
	}
	first = len(b.joined)
	n = b.add(cmds, locals)
	t.waiting.Add(int64(n))
	return b, first, n
}

// closeBatch has b take no more proposals.
func (t *together) closeBatch(b *batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == b {
		t.open = nil
	}
	t.size = len(b.joined)
}

// gather waits a moment until count is what it was when the last sync ended: that let
// many proposals go at once, and the first one back would sync alone while all others
// wait for that.
func (t *together) gather(count *atomic.Int64) {
	crowd := t.crowd.Load()
	if crowd < gatherFrom {
		return
	}
	for until := t.until.Load(); count.Load() < crowd && since() < until; {
		runtime.Gosched()
	}
}

// carryOut writes, applies and syncs a batch, and answers it.
func (g *Group) carryOut(b *batch) {
	t := &g.together
	if crowd := t.crowd.Load(); crowd < gatherFrom || t.waiting.Load() < crowd {
		runtime.Gosched() // whoever can run and proposes comes along
		t.gather(&t.waiting)
	}
	if !g.writeBatch(b) || !t.takeTurn(b) {
		return // it is answered
	}
	t.gather(&t.written)
	begin := since()
	err := g.syncLog()
	t.synced(g.log.DurableIndex(), err, since()-begin)
}

// writeBatch appends a batch and applies it. False: that failed or was refused, and
// the batch is answered.
func (g *Group) writeBatch(b *batch) (ok bool) {
	defer func() {
		if !ok { // also if Apply has panicked
			g.together.answer(b)
		}
	}()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.together.closeBatch(b)
	if g.rep.Load() != nil {
		b.refused = true
		return false
	}
	b.err = errUnfinished
	b.err = g.writeBatchLocked(b)
	return b.err == nil
}

// errUnfinished is told to those who wait beside a proposal whose Apply never returned.
var errUnfinished = fmt.Errorf("%w: applying a proposal beside it was not finished", ErrUnknownOutcome)

func (g *Group) writeBatchLocked(b *batch) error {
	if err := g.usableLocked(); err != nil {
		return err
	}
	t := &g.together
	first := g.last.Load() + 1
	for i := range b.joined {
		t.entries = append(t.entries, logstore.Entry{Index: first + uint64(i), Term: g.hard.Term, Type: logstore.EntryCommand, Data: b.joined[i].cmd})
	}
	err := g.appendLocked(t.entries)
	clear(t.entries)
	t.entries = t.entries[:0]
	if err != nil {
		return err
	}
	b.last = g.last.Load()
	for i := range b.joined {
		j := &b.joined[i]
		if j.result, err = g.applyLocked(first+uint64(i), g.hard.Term, j.cmd, j.local); err != nil {
			return err
		}
	}
	return nil
}

// takeTurn returns when b, which is written, is either answered (false) or the one
// whose caller syncs (true).
func (t *together) takeTurn(b *batch) bool {
	t.mu.Lock()
	t.written.Add(int64(len(b.joined)))
	t.unsynced = append(t.unsynced, b)
	mine := !t.syncing
	t.syncing = true
	t.mu.Unlock()
	if mine {
		return true
	}
	select {
	case <-b.done:
		return false
	case <-b.turn:
		return true
	}
}

// synced answers the batches that a sync, which took so many nanoseconds, made
// durable up to an index; if it failed, all that are written. One of those that are
// left syncs next.
func (t *together) synced(durable uint64, err error, took int64) {
	t.mu.Lock()
	crowd := t.waiting.Load()
	t.crowd.Store(crowd)
	t.until.Store(since() + min(max(took/4, crowd*int64(gatherEach)), int64(gatherLimit)))
	var answered []*batch
	t.unsynced = slices.DeleteFunc(t.unsynced, func(b *batch) bool {
		if b.last > durable && err == nil {
			return false
		}
		if b.last > durable {
			b.err = err
		}
		answered = append(answered, b)
		t.waiting.Add(-int64(len(b.joined)))
		t.written.Add(-int64(len(b.joined)))
		return true
	})
	if len(t.unsynced) > 0 {
		t.unsynced[0].turn <- struct{}{}
	} else {
		t.syncing = false
	}
	t.mu.Unlock()
	for _, b := range answered {
		close(b.done)
	}
}

// answer answers a batch that was not written.
func (t *together) answer(b *batch) {
	t.mu.Lock()
	t.waiting.Add(-int64(len(b.joined)))
	t.mu.Unlock()
	close(b.done)
}
