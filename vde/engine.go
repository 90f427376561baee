package vde

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/vde/alloc"
	"vdefs/vde/image"
	"vdefs/vde/meta"
)

// Logs is what the engine needs of the logs that its transactions come from.
type Logs interface {
	// SyncAll makes every record appended so far, by every group, durable. Before it returns, the engine's
	// LogDurable has been called for what became durable. It must not need a lock that is held while transactions
	// are applied.
	SyncAll() error
}

// Engine is an open store. Methods may be called concurrently, but for transactions of one group, which follow each
// other (see Begin); those of several groups run side by side.
type Engine struct {
	dir  string
	info Info
	log  logrus.FieldLogger
	lock io.Closer
	img  *image.Image
	meta *meta.Store

	alloc   *alloc.Allocator
	refs    *refs
	overlay *overlay
	limits  limits
	files   fileTable

	// settle is held for reading from the beginning of a transaction until its data is in the image or the
	// overlay; barrier takes it for writing to wait for that.
	settle sync.RWMutex
	// readGate is held for reading while blocks of a file are found and read; checkpoint takes it for writing before
	// freed blocks are given out again.
	readGate sync.RWMutex

	logsMu sync.Mutex
	logs   Logs // guarded by logsMu; nil until AttachLogs

	groupsMu sync.RWMutex
	groups   map[uint16]*meta.Group // state after the last commit; guarded by groupsMu, the pointee by its group's order

	// commitGate is held for reading while a commit changes what is in memory and what is in meta/, for writing while a
	// checkpoint or a snapshot notes which commits came before it.
	commitGate sync.RWMutex

	onCheckpoint func(slot uint16, applied uint64)
	frees        freeList
	holdBack     holdBack
	checkpointMu sync.Mutex    // one checkpoint at a time
	logged       atomic.Int64  // bytes of data that the logs have taken since the last checkpoint
	unflushed    atomic.Int64  // bytes of metadata committed since the last checkpoint began, at most
	flushRoom    chan struct{} // a token: a flush ended
	reserved     atomic.Int64  // blocks promised to writers that have not allocated yet

	refsMu      sync.Mutex    // held over a flush for SyncPrepared
	refsWritten atomic.Uint64 // PrepareWrites done
	refsSynced  atomic.Uint64 // of these, durable

	markMu sync.Mutex  // held while the store is marked as in use
	marked atomic.Bool // it has been, since it was opened

	failed         atomic.Pointer[error]
	closed         atomic.Bool
	abandoned      atomic.Bool
	checksumErrors atomic.Uint64

	wake    chan struct{} // a token: the overlay may have something to flush
	checkup chan struct{} // a token: a checkpoint is wanted
	stop    chan struct{} // closed by Close
	jobsMu  sync.Mutex    // held while a job begins, and while Close closes stop
	workers sync.WaitGroup
}

// freeList collects blocks freed by committed transactions, until a checkpoint makes that durable.
type freeList struct {
	mu      sync.Mutex
	extents []alloc.Extent // guarded by mu
	blocks  uint64         // sum; guarded by mu
}

func (l *freeList) add(x []alloc.Extent) {
	if len(x) == 0 {
		return
	}
	l.mu.Lock()
	l.extents = append(l.extents, x...)
	for _, e := range x {
		l.blocks += e.Count
	}
	l.mu.Unlock()
}

func (l *freeList) take() []alloc.Extent {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.extents
	l.extents, l.blocks = nil, 0
	return x
}

func (l *freeList) size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocks
}

// Info tells what the store is.
func (e *Engine) Info() Info { return e.info }

// Meta gives read access to the metadata.
func (e *Engine) Meta() *meta.Store { return e.meta }

// Err tells why the engine stopped, nil while it works.
func (e *Engine) Err() error {
	if p := e.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail stops the engine for good: what is in memory only is not built on.
func (e *Engine) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: the disk below the store is full; make room on it, then unmount and mount the store again", err)
	}
	if e.failed.CompareAndSwap(nil, &err) {
		e.log.WithError(err).Error("store stopped")
	}
	return e.Err()
}

// AttachLogs tells the engine which logs its transactions come from. Before, there must be none.
func (e *Engine) AttachLogs(l Logs) {
	e.logsMu.Lock()
	e.logs = l
	e.logsMu.Unlock()
}

// LogDurable tells that the log of a group is durable up to an index.
func (e *Engine) LogDurable(slot uint16, index uint64) {
	e.overlay.setDurable(slot, index)
	poke(e.wake)
}

// poke leaves a token for a goroutine that is or will be waiting.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// barrier is R1. It runs on Pebble's flush goroutine before every write to the MANIFEST.
func (e *Engine) barrier() error {
	if err := e.Err(); err != nil {
		return err
	}
	// What is about to become durable was committed by transactions that have begun: wait until their data is where
	// the steps below find it. A commit never waits for a flush, so this ends.
	e.settle.Lock()
	//lint:ignore SA2001 the lock is taken to wait for those who hold it
	e.settle.Unlock()
	e.logsMu.Lock()
	logs := e.logs
	e.logsMu.Unlock()
	if logs != nil {
		if err := logs.SyncAll(); err != nil {
			return e.fail(err)
		}
	}
	if err := e.overlay.flush(); err != nil {
		return e.fail(err)
	}
	if err := e.img.Sync(); err != nil {
		return e.fail(err)
	}
	return nil
}

// What may wait for a checkpoint.
const (
	freesHigh  = 64 << 20 / image.BlockSize // freed blocks: a checkpoint is asked for
	loggedHigh = 256 << 20                  // bytes of data in the logs: a checkpoint is asked for
)

// WaitRoom holds a writer back while too much is waiting in memory to go to disk. It must be called outside of every
// lock, before a change is proposed. sync makes the group's log durable.
func (e *Engine) WaitRoom(sync func() error) error {
	if err := e.Err(); err != nil {
		return err
	}
	if n := e.overlay.size(); n > e.limits.overlayHigh {
		if err := sync(); err != nil {
			return err
		}
		if n > e.limits.overlayFull {
			e.overlay.waitRoom(e.limits.overlayFull)
		}
	}
	for e.unflushed.Load() > e.limits.unflushed {
		if err := e.Err(); err != nil {
			return err
		}
		// Pebble flushes full tables by itself, which the counter does not see.
		n, err := e.meta.Unflushed()
		if err != nil {
			if e.Err() == nil {
				return e.fail(err)
			}
			return e.Err()
		}
		if n < e.limits.unflushed/2 {
			e.unflushed.Store(max(n, 1))
			break
		}
		poke(e.checkup)
		select {
		case <-e.flushRoom:
		case <-time.After(100 * time.Millisecond): // another waiter took the token
		}
	}
	return e.Err()
}

// Reserve promises blocks to a writer, so that applying its change cannot run out of space. It makes a checkpoint
// when only blocks that wait for one are left. Undo with Unreserve when the change has been applied or given up.
func (e *Engine) Reserve(blocks uint64) error {
	for try := 0; ; try++ {
		r := e.reserved.Add(int64(blocks))
		if uint64(r) <= e.alloc.FreeBlocks() {
			return nil
		}
		e.reserved.Add(-int64(blocks))
		if try == 2 || e.frees.size() == 0 && try > 0 {
			if held, _ := e.holdBack.size(); held > 0 {
				return fmt.Errorf("%w: %d blocks asked for, %d free, %d are free when snapshots that are being sent have ended",
					ErrNoSpace, blocks, e.alloc.FreeBlocks(), held)
			}
			return fmt.Errorf("%w: %d blocks asked for, %d free", ErrNoSpace, blocks, e.alloc.FreeBlocks())
		}
		if err := e.Checkpoint(); err != nil {
			return err
		}
	}
}

// Unreserve takes a promise back.
func (e *Engine) Unreserve(blocks uint64) { e.reserved.Add(-int64(blocks)) }

// Checkpoint makes everything committed before the call durable in meta/, and gives the blocks freed by it back.
// It returns when that is done. The caller may then forget the log up to what each group had applied before the call.
func (e *Engine) Checkpoint() error {
	e.checkpointMu.Lock()
	defer e.checkpointMu.Unlock()
	if err := e.Err(); err != nil {
		return err
	}
	e.groupsMu.RLock()
	applied := make(map[uint16]uint64, len(e.groups))
	for slot, g := range e.groups {
		applied[slot] = g.Applied
	}
	e.groupsMu.RUnlock()
	// What has been freed in memory must have been committed, or the flush would not make it durable.
	e.commitGate.Lock()
	b := heldBack{freed: e.frees.take()}
	b.lingering, b.epoch = e.refs.beginEpoch()
	e.holdBack.mu.Lock()
	e.holdBack.number++
	b.number = e.holdBack.number
	e.holdBack.mu.Unlock()
	e.commitGate.Unlock()
	e.unflushed.Store(0)
	e.logged.Store(0)
	if err := e.meta.Flush(); err != nil {
		if e.Err() == nil {
			return e.fail(err)
		}
		return e.Err()
	}
	if e.onCheckpoint != nil {
		for slot, index := range applied {
			e.onCheckpoint(slot, index)
		}
	}
	var freed []alloc.Extent
	for _, b := range e.holdBack.settled(b) {
		e.refs.forget(b.lingering, b.epoch)
		freed = append(freed, b.freed...)
	}
	if len(freed) == 0 {
		return nil
	}
	// A reader that found these blocks before they were freed may still be reading them.
	e.readGate.Lock()
	//lint:ignore SA2001 the lock is taken to wait for those who hold it
	e.readGate.Unlock()
	freed = coalesce(freed)
	e.discard(freed)
	for _, x := range freed {
		if err := e.alloc.Free(x); err != nil {
			return e.fail(fmt.Errorf("free blocks %d+%d: %w", x.Start, x.Count, err))
		}
	}
	return nil
}

// Usage tells how many blocks there are, and how many are free, those included that wait for a checkpoint or for the
// end of a snapshot.
func (e *Engine) Usage() (total, free uint64) {
	s := e.img.Super()
	held, _ := e.holdBack.size()
	return s.DataEnd() - s.DataStart, e.alloc.FreeBlocks() + e.frees.size() + held
}

// ChecksumErrors counts reads that met a bad block since the store was opened.
func (e *Engine) ChecksumErrors() uint64 { return e.checksumErrors.Load() }

// Group returns the state of a group after its last commit.
func (e *Engine) Group(slot uint16) (meta.Group, bool) {
	e.groupsMu.RLock()
	defer e.groupsMu.RUnlock()
	g, ok := e.groups[slot]
	if !ok {
		return meta.Group{}, false
	}
	return *g, true
}

// startWorkers starts the goroutines of the engine.
func (e *Engine) startWorkers(checkpointEvery time.Duration) {
	e.workers.Go(func() {
		for {
			select {
			case <-e.stop:
				return
			case <-e.wake:
			}
			if err := e.overlay.flush(); err != nil {
				e.fail(err)
				return
			}
		}
	})
	e.workers.Go(func() {
		tick := time.NewTicker(checkpointEvery)
		defer tick.Stop()
		for {
			select {
			case <-e.stop:
				return
			case <-tick.C:
			case <-e.checkup:
			}
			if _, ready := e.holdBack.size(); e.unflushed.Load() == 0 && e.frees.size() == 0 && !ready {
				continue
			}
			if err := e.Checkpoint(); err != nil {
				return // fail has logged it
			}
		}
	})
}

// beginJob keeps Close waiting for a long piece of work of a caller until end is called. The job ends soon when stop is
// closed.
func (e *Engine) beginJob() (end func(), err error) {
	e.jobsMu.Lock()
	defer e.jobsMu.Unlock()
	if e.closed.Load() {
		return nil, ErrClosed
	}
	e.workers.Add(1)
	return e.workers.Done, nil
}

// Close makes everything durable, marks the store clean and closes it. Nothing may use the engine meanwhile or after.
// Scrubs, digests and snapshots under way are ended, with ErrClosed.
func (e *Engine) Close() error {
	e.jobsMu.Lock()
	if e.closed.Swap(true) {
		e.jobsMu.Unlock()
		return ErrClosed
	}
	close(e.stop)
	e.jobsMu.Unlock()
	e.workers.Wait()
	e.endSnapshots(nil, ErrClosed)
	err := e.Err()
	if err == nil && !e.abandoned.Load() {
		err = e.closeClean()
	}
	return errors.Join(err, e.meta.Close(), e.img.Close(), e.lock.Close())
}

// Abandon makes Close leave the store as after a crash: nothing more is written. For when opening it failed half-way.
func (e *Engine) Abandon() { e.abandoned.Store(true) }
