package crash

import (
	"context"
	"flag"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"

	"vdefs/fs/replica"
	"vdefs/vde"
)

var (
	points = flag.Int("crash.points", 10000, "crash points of TestCrashAnywhere; make crash runs many more")
	seed   = flag.Uint64("crash.seed", 0, "seed of the first run (0: from the clock)")
)

// shorts is how many short workloads are crashed, and have a fault, everywhere.
func shorts() uint64 { return uint64(max(2, *points/5000)) }

const storeSize = 2 << 20

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

func open(f vfs.FS, refMin int) (*replica.Volume, error) {
	return replica.Open("store", replica.Options{
		RefMin: refMin, FS: f, Logger: quiet(), SegmentSize: 64 << 10, Atime: replica.Noatime, CheckpointEvery: time.Hour, Memory: 1,
	})
}

// history is what a run has done: the state after every change, and how many changes were promised to be durable.
type history struct {
	mu     sync.Mutex
	states []string // guarded by mu; states[i]: after i changes
	did    []string // guarded by mu; the changes, syncs and checkpoints in words
	synced int      // guarded by mu
}

func (h *history) window() (states []string, base int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.states[h.synced:], h.synced
}

// TestCrashAnywhere runs random changes and cuts the power at random writes and syncs, with 0 to 100 % of what was
// not synced lost. What comes back must be a state after some change, none of those that were synced missing.
func TestCrashAnywhere(t *testing.T) { crashRuns(t, *points, 1<<30) }

// TestCrashReferences is the same with writes that go to the image before the log. Of those that nobody synced, each
// block may be there or not, so a state in between is told apart only where nothing was lost, or all was synced and nothing
// is under way; that every block is good holds always.
func TestCrashReferences(t *testing.T) { crashRuns(t, *points/4, 4096) }

func crashRuns(t *testing.T, points, refMin int) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	var done, next atomic.Int64
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			for int(done.Load()) < points && !t.Failed() {
				s := first + uint64(next.Add(1)) - 1
				n, ok := crashRun(t, s, refMin, false)
				done.Add(int64(n))
				if !ok {
					t.Errorf("a run with -crash.seed=%d failed", s)
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d crash points in %d runs", done.Load(), next.Load())
}

// shortSteps is how many changes a short workload makes.
const shortSteps = 16

// TestCrashEverywhere pulls the plug at every single write, sync, making, naming and removing of a file that short workloads
// do, closing included, each with none, half and all of what was not synced kept. The seeds are fixed.
func TestCrashEverywhere(t *testing.T) {
	t.Parallel()
	for _, refMin := range []int{1 << 30, 4096} {
		for seed := range shorts() {
			n, ok := crashRun(t, seed+1, refMin, true)
			if !ok {
				t.Errorf("seed %d, references from %d bytes", seed+1, refMin)
			}
			t.Logf("seed %d, references from %d bytes: %d crashes", seed+1, refMin, n)
		}
	}
}

// crashRun is one run from one seed; it tells how many crashes it tried. They are at random places, or everywhere.
func crashRun(t *testing.T, seed uint64, refMin int, everywhere bool) (tried int, ok bool) {
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := vfs.NewCrashableMem()
	if _, err := vde.Format("store", vde.FormatOptions{Size: storeSize, FS: mem}); err != nil {
		t.Error(err)
		return 0, false
	}
	h := &history{}
	var (
		stepping atomic.Bool // a change is under way
		mu       sync.Mutex
		failed   atomic.Bool
		// pending are recovered states that no change has led to yet; guarded by mu.
		pending []pendingState
	)
	crashRNG := rand.New(rand.NewPCG(seed, 2))
	hooked := &hookFS{FS: mem}
	crash := func(op, name string, percent int) {
		states, base := h.window()
		if len(states) == 0 || failed.Load() {
			return
		}
		clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: crashRNG})
		tried++
		// The change under way may be there too; its state is known when it is done.
		got, err := recovered(clone, refMin)
		if err != nil {
			failed.Store(true)
			h.mu.Lock()
			t.Errorf("seed %d: crash before %s of %s, %d %% kept: %v\nafter:\n%s", seed, op, name, percent, err, strings.Join(h.did, "\n"))
			h.mu.Unlock()
			return
		}
		// A write under way may have its record on disk already (the log is synced now and then) without all its blocks.
		exact := refMin > storeSize || percent == 100 || len(states) == 1 && !stepping.Load()
		if exact && !slices.Contains(states, got) {
			pending = append(pending, pendingState{got, base, len(states), op, name, percent})
		}
	}
	hooked.hook = func(op, name string) error {
		if strings.Contains(name, "LOCK") {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case everywhere:
			for _, percent := range []int{0, 50, 100} {
				crash(op, name, percent)
			}
		case crashRNG.IntN(8) == 0:
			crash(op, name, []int{0, 100, 50, crashRNG.IntN(101)}[crashRNG.IntN(4)])
		}
		return nil
	}
	v, err := open(hooked, refMin)
	if err != nil {
		t.Fatal(err)
	}
	w := &workload{v, rng}
	s, err := dump(v)
	if err != nil {
		t.Fatal(err)
	}
	h.states = append(h.states, s)
	steps := 20 + rng.IntN(60)
	if everywhere {
		steps = shortSteps
	}
	for i := 0; i < steps && !failed.Load(); i++ {
		stepping.Store(true)
		what, err := w.step()
		stepping.Store(false)
		if err != nil {
			t.Fatalf("seed %d: %s: %v", seed, what, err)
		}
		s, err := dump(v)
		if err != nil {
			t.Fatalf("seed %d: after %s: %v", seed, what, err)
		}
		h.mu.Lock()
		h.states = append(h.states, s)
		h.did = append(h.did, what)
		h.mu.Unlock()
		// States seen while this change was under way must be the one after it.
		mu.Lock()
		for _, p := range pending {
			if p.state != s {
				failed.Store(true)
				t.Errorf("seed %d: crash before %s of %s, %d %% kept, during or before %q:\nrecovered a state that never was:\n%s\nthe state after the change:\n%s\nbefore it:\n%s\nall changes:\n%s",
					seed, p.op, p.name, p.percent, what, p.state, s, h.states[len(h.states)-2], strings.Join(h.did, "\n"))
			}
		}
		pending = nil
		mu.Unlock()
		switch rng.IntN(12) {
		case 0, 1:
			n := len(h.states) - 1
			if err := v.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
			h.mu.Lock()
			h.synced = n
			h.did = append(h.did, "sync")
			h.mu.Unlock()
		case 2:
			if err := v.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			h.mu.Lock()
			h.did = append(h.did, "checkpoint")
			h.mu.Unlock()
		}
	}
	if err := v.Close(); err != nil {
		t.Fatalf("seed %d: close: %v", seed, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(pending) > 0 && !failed.Load() {
		t.Errorf("seed %d: a crash at %s of %s while closing left a state that never was:\n%s", seed, pending[0].op, pending[0].name, pending[0].state)
		failed.Store(true)
	}
	return tried, !failed.Load()
}

type pendingState struct {
	state       string
	base, known int
	op, name    string
	percent     int
}

// recovered opens what a crash left and tells its state; it closes it and opens it once more, which must change
// nothing.
func recovered(f *vfs.MemFS, refMin int) (string, error) {
	v, err := open(f, refMin)
	if err != nil {
		return "", err
	}
	s, err := dump(v)
	if err != nil {
		_ = v.Close() // the first error counts
		return "", err
	}
	return s, v.Close()
}
