package rangelock

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestOrder(t *testing.T) {
	type request struct {
		start, count uint64
		mode         Mode
	}
	tests := []struct {
		name   string
		first  []request
		then   request
		waits  bool
		reason string
	}{
		{"free", nil, request{0, 1, Exclusive}, false, "nothing is held"},
		{"disjoint", []request{{0, 4, Exclusive}}, request{4, 4, Exclusive}, false, "ranges that touch share no block"},
		{"overlap by one", []request{{0, 5, Exclusive}}, request{4, 4, Exclusive}, true, "block 4 is held"},
		{"readers", []request{{0, 8, Shared}}, request{4, 8, Shared}, false, "both are shared"},
		{"reader then writer", []request{{0, 8, Shared}}, request{7, 1, Exclusive}, true, "block 7 is read"},
		{"reader behind a waiting writer", []request{{0, 8, Shared}, {0, 8, Exclusive}}, request{0, 8, Shared}, true, "first come, first served"},
		{"behind a waiter elsewhere", []request{{0, 8, Exclusive}, {4, 8, Exclusive}}, request{10, 1, Shared}, true, "block 10 is asked for"},
		{"beside a waiter", []request{{0, 8, Exclusive}, {4, 8, Exclusive}}, request{12, 1, Exclusive}, false, "nobody asked for block 12"},
		{"to the end", []request{{100, ToEnd, Exclusive}}, request{1 << 63, 1, Shared}, true, "the end is held"},
		{"to the end, before", []request{{100, ToEnd, Exclusive}}, request{0, 100, Exclusive}, false, "block 99 is free"},
		{"nothing", []request{{0, ToEnd, Exclusive}}, request{5, 0, Exclusive}, false, "no block is asked for"},
		{"around nothing", []request{{5, 0, Exclusive}}, request{0, 10, Exclusive}, false, "no block is held"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var l BlockRangeLock
			var tickets []*Ticket
			for _, r := range tt.first {
				tickets = append(tickets, l.Enqueue(r.start, r.count, r.mode))
			}
			last := l.Enqueue(tt.then.start, tt.then.count, tt.then.mode)
			if last.Granted() == tt.waits {
				t.Errorf("granted is %v, but %s", last.Granted(), tt.reason)
			}
			for _, r := range tickets {
				r.Release()
			}
			if err := last.Wait(context.Background()); err != nil {
				t.Error(err)
			}
			last.Release()
			if !l.Idle() {
				t.Error("not idle after all was released")
			}
		})
	}
}

// An exclusive request that is withdrawn lets the shared ones behind it join the shared one before it.
func TestWithdrawLetsOthersProceed(t *testing.T) {
	var l BlockRangeLock
	reader := l.Enqueue(0, 10, Shared)
	ctx, cancel := context.WithCancel(context.Background())
	withdrawnErr := make(chan error)
	writer := l.Enqueue(5, 10, Exclusive)
	go func() { withdrawnErr <- writer.Wait(ctx) }()
	second := l.Enqueue(8, 1, Shared)
	if second.Granted() {
		t.Fatal("a reader passed a waiting writer")
	}
	cancel()
	err := <-withdrawnErr
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "exclusive lock on blocks 5 to 14") {
		t.Fatalf("error of the withdrawn writer: %v", err)
	}
	if err := second.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	writer.Release() // allowed, does nothing
	second.Release()
	reader.Release()
	if !l.Idle() {
		t.Fatal("not idle")
	}
}

func TestReleaseWhileWaiting(t *testing.T) {
	var l BlockRangeLock
	holder := l.Enqueue(0, 1, Exclusive)
	waiter := l.Enqueue(0, 1, Exclusive)
	errs := make(chan error)
	for range 2 {
		go func() { errs <- waiter.Wait(context.Background()) }()
	}
	waiter.Release()
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrReleased) {
			t.Errorf("Wait on a released ticket: %v", err)
		}
	}
	holder.Release()
	if err := waiter.Wait(context.Background()); !errors.Is(err, ErrReleased) {
		t.Errorf("Wait after Release: %v", err)
	}
	if !l.Idle() {
		t.Error("not idle")
	}
}

func TestAcquireTimeout(t *testing.T) {
	var l BlockRangeLock
	holder, err := l.Acquire(context.Background(), 0, 1, Shared)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if ticket, err := l.Acquire(ctx, 0, 1, Exclusive); ticket != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Acquire of a held block: %v, %v", ticket, err)
	}
	holder.Release()
	// What is free is granted even to a context that has ended.
	ticket, err := l.Acquire(ctx, 0, 1, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	ticket.Release()
}

func TestDoubleReleaseReported(t *testing.T) {
	var reports []*DoubleReleaseError
	SetDebug(func(e *DoubleReleaseError) { reports = append(reports, e) })
	defer SetDebug(nil)

	var l BlockRangeLock
	ticket := l.Enqueue(7, 3, Exclusive)
	releaseOnce(ticket)
	if len(reports) != 0 {
		t.Fatalf("the first release was reported: %v", reports[0])
	}
	other := l.Enqueue(7, 3, Exclusive) // must survive the mistake of the first owner
	releaseAgain(ticket)
	if len(reports) != 1 {
		t.Fatalf("%d reports of one double release", len(reports))
	}
	e := reports[0]
	if e.Start != 7 || e.Last != 9 || e.Mode != Exclusive ||
		!strings.Contains(e.First, "releaseOnce") || !strings.Contains(e.Second, "releaseAgain") {
		t.Errorf("report: %v", e)
	}
	if l.Enqueue(9, 1, Shared).Granted() {
		t.Error("the double release took the lock from its new owner")
	}
	other.Release()

	SetDebug(nil)
	late := l.Enqueue(0, 1, Exclusive)
	late.Release()
	late.Release() // unseen and harmless
	SetDebug(func(e *DoubleReleaseError) { reports = append(reports, e) })
	late.Release()
	if len(reports) != 2 || !strings.Contains(reports[1].First, "not recorded") {
		t.Errorf("report of a release from before the debug mode: %v", reports)
	}
}

//go:noinline
func releaseOnce(t *Ticket) { t.Release() }

//go:noinline
func releaseAgain(t *Ticket) { t.Release() }

// Many goroutines take random ranges, some giving up early. Plain integers stand for the blocks: the race detector
// finds any two that should have excluded each other, and the sums find lost updates without it.
func TestConcurrent(t *testing.T) {
	const blocks, workers, rounds = 32, 16, 400
	var l BlockRangeLock
	var data [blocks]int
	var want [blocks]atomic.Int64
	var timeouts atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for range rounds {
				start := rnd.Uint64N(blocks)
				count := 1 + rnd.Uint64N(min(8, blocks-start))
				mode := Mode(rnd.IntN(2))
				ctx, cancel := context.Background(), func() {}
				if rnd.IntN(4) == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(rnd.IntN(50))*time.Microsecond)
				}
				ticket, err := l.Acquire(ctx, start, count, mode)
				cancel()
				if err != nil {
					timeouts.Add(1)
					continue
				}
				sum := 0
				for b := start; b < start+count; b++ {
					if mode == Exclusive {
						data[b]++
						want[b].Add(1)
					}
					sum += data[b]
				}
				_ = sum
				ticket.Release()
			}
		})
	}
	wg.Wait()
	for b := range data {
		if int64(data[b]) != want[b].Load() {
			t.Errorf("block %d was written %d times, holds %d", b, want[b].Load(), data[b])
		}
	}
	if !l.Idle() {
		t.Error("not idle after all was released")
	}
	t.Logf("%d of %d gave up", timeouts.Load(), workers*rounds)
}

// The grants of one block come in the order of Enqueue, whoever waits first.
func TestGrantOrder(t *testing.T) {
	var l BlockRangeLock
	const n = 64
	var order []int
	var wg sync.WaitGroup
	first := l.Enqueue(0, 1, Exclusive)
	for i := range n {
		ticket := l.Enqueue(0, 1, Exclusive)
		wg.Go(func() {
			if err := ticket.Wait(context.Background()); err != nil {
				t.Error(err)
			}
			order = append(order, i) // guarded by block 0
			ticket.Release()
		})
	}
	first.Release()
	wg.Wait()
	for i, got := range order {
		if got != i {
			t.Fatalf("grant %d went to request %d", i, got)
		}
	}
}

func TestUncontendedAllocatesOneTicket(t *testing.T) {
	var l BlockRangeLock
	ctx := context.Background()
	allocs := testing.AllocsPerRun(100, func() {
		ticket, err := l.Acquire(ctx, 5, 10, Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		ticket.Release()
	})
	if allocs > 1 {
		t.Errorf("%v allocations per uncontended lock, should be 1", allocs)
	}
}

func TestOvertaken(t *testing.T) {
	var l BlockRangeLock
	a := l.Enqueue(10, 10, Shared)
	b := l.Enqueue(0, 11, Shared)
	if a.Overtaken() || b.Overtaken() {
		t.Error("readers overtake nobody")
	}
	w := l.Enqueue(5, 5, Exclusive) // only b is in its way
	if a.Overtaken() || !b.Overtaken() || w.Overtaken() {
		t.Errorf("one writer: %v, %v, %v", a.Overtaken(), b.Overtaken(), w.Overtaken())
	}
	b.Release()
	v := l.Enqueue(9, 1, Exclusive)
	if !w.Granted() || !w.Overtaken() {
		t.Error("a second writer is behind the first")
	}
	v.Release()
	if e := l.Enqueue(0, 0, Shared); w.Overtaken() || e.Overtaken() {
		t.Error("nobody is behind")
	}
}
