package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// slowSyncs has each sync of a log take some time, and counts them.
func slowSyncs(fs vfs.FS, d time.Duration, count *atomic.Int64) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			count.Add(1)
			time.Sleep(d)
		}
		return nil
	}))
}

// proposeEach has callers make each proposals, at once and behind each other, and gives
// what comes of each to got, which may be called at once.
func proposeEach(g *Group, callers, each int, got func(caller, i int, result any, err error)) {
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				result, err := g.Propose(bg, fmt.Appendf(nil, "%d/%d", c, i), i)
				got(c, i, result, err)
			}
		})
	}
	wg.Wait()
}

// inOrder checks that cmds hold all commands of proposeEach, each caller's in its order.
func inOrder(t *testing.T, cmds map[uint64]string, last uint64, callers, each int) {
	t.Helper()
	next := make([]int, callers)
	for index := uint64(1); index <= last; index++ {
		cmd, ok := cmds[index]
		if !ok {
			continue // not a command
		}
		var c, i int
		if _, err := fmt.Sscanf(cmd, "%d/%d", &c, &i); err != nil || i != next[c] {
			t.Fatalf("entry %d is %q, caller %d had made %d", index, cmd, c, next[c])
		}
		next[c]++
	}
	for c, n := range next {
		if n != each {
			t.Fatalf("%d commands of caller %d are applied, want %d", n, c, each)
		}
	}
}

// TestTogether: every caller gets its own result when its proposal is durable, in its
// order, and the callers share writes and syncs.
func TestTogether(t *testing.T) {
	const callers, each = 32, 30
	var syncs, writes atomic.Int64
	fs := errorfs.Wrap(slowSyncs(vfs.NewMem(), time.Millisecond, &syncs), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWriteAt {
			writes.Add(1)
		}
		return nil
	}))
	m := mustManager(t, Config{FS: fs, Sync: SyncAlways})
	r := newRecorder(0)
	g := mustCreate(t, m, "default", r)
	syncs.Store(0)
	proposeEach(g, callers, each, func(c, i int, result any, err error) {
		want := fmt.Sprintf("%d/%d", c, i)
		if err != nil || result != want+fmt.Sprintf("/%d", i) {
			t.Errorf("%s: %v, %v", want, result, err)
		}
		durable := g.DurableIndex()
		r.mu.Lock()
		defer r.mu.Unlock()
		for index, cmd := range r.cmds {
			if cmd == want && index > durable {
				t.Errorf("entry %d is acknowledged and not durable: %d", index, durable)
			}
		}
	})
	if g.AppliedIndex() != g.LastIndex() || g.DurableIndex() != g.LastIndex() {
		t.Errorf("%+v", g.Status())
	}
	inOrder(t, r.cmds, g.LastIndex(), callers, each)
	if n := syncs.Load(); n > callers*each/4 {
		t.Errorf("%d syncs for %d proposals", n, callers*each)
	}
	if n := writes.Load(); n > callers*each { // the marks and zeros of the log among them
		t.Errorf("%d writes for %d proposals", n, callers*each)
	}
	if w, n := g.together.waiting.Load(), g.together.written.Load(); w != 0 || n != 0 || g.together.syncing || len(g.together.unsynced) > 0 {
		t.Errorf("%d proposals wait, %d of them written, when all are answered", w, n)
	}
}

// TestTogetherLarge: a command that fills a batch by itself.
func TestTogetherLarge(t *testing.T) {
	m := mustManager(t, Config{FS: vfs.NewMem(), Sync: SyncAlways})
	r := newRecorder(0)
	g := mustCreate(t, m, "default", r)
	var wg sync.WaitGroup
	for c := range 12 {
		wg.Go(func() {
			cmd := bytes.Repeat([]byte{byte('a' + c)}, []int{10, maxJoinedBytes / 2, 3 * maxJoinedBytes}[c%3])
			for range 4 {
				if got, err := g.Propose(bg, cmd, c); err != nil || got != fmt.Sprintf("%s/%d", cmd, c) {
					t.Errorf("%d bytes: %v", len(cmd), err)
				}
			}
		})
	}
	wg.Wait()
	if len(r.cmds) != 48 || r.locals != 48 {
		t.Errorf("%d commands, %d of them with what is local", len(r.cmds), r.locals)
	}
}

// TestTogetherCrash pulls the plug at every write and sync: what was acknowledged by
// then is there when the group is opened again.
func TestTogetherCrash(t *testing.T) {
	const callers, each = 6, 12
	for _, percent := range []int{0, 50} {
		t.Run(fmt.Sprint(percent), func(t *testing.T) {
			mem := vfs.NewCrashableMem()
			type crash struct {
				fs    *vfs.MemFS
				acked [callers]int
			}
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(uint64(percent), 8))
			var crashes []crash
			var acked [callers]atomic.Int64
			var created atomic.Bool
			pull := errorfs.InjectorFunc(func(op errorfs.Op) error {
				if created.Load() && (op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpFileSyncData) {
					mu.Lock()
					defer mu.Unlock()
					var c crash
					for i := range acked {
						c.acked[i] = int(acked[i].Load())
					}
					c.fs = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
					crashes = append(crashes, c)
				}
				return nil
			})
			m := mustManager(t, Config{FS: errorfs.Wrap(mem, pull), Sync: SyncAlways, SegmentSize: 2 << 10})
			g := mustCreate(t, m, "default", newRecorder(0))
			created.Store(true)
			proposeEach(g, callers, each, func(c, i int, _ any, err error) {
				if err != nil {
					t.Error(err)
				}
				acked[c].Store(int64(i + 1))
			})
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			if len(crashes) < each {
				t.Fatalf("%d crashes", len(crashes))
			}
			for n, c := range crashes {
				r := newRecorder(0)
				m := mustManager(t, Config{FS: c.fs, SegmentSize: 2 << 10})
				if _, err := m.OpenGroup("default", r); err != nil {
					t.Fatalf("crash %d: %v", n, err)
				}
				have := map[string]bool{}
				for _, cmd := range r.cmds {
					have[cmd] = true
				}
				for caller, k := range c.acked {
					for i := range k {
						if cmd := fmt.Sprintf("%d/%d", caller, i); !have[cmd] {
							t.Fatalf("crash %d: %s was acknowledged and is lost", n, cmd)
						}
					}
				}
				_ = m.Close()
			}
		})
	}
}

// TestTogetherFailures: all that wait hear of a failure, and none is acknowledged by it.
func TestTogetherFailures(t *testing.T) {
	for what, wants := range map[string]error{"sync": ErrStopped, "write": ErrStopped, "apply": ErrStopped, "full": ErrNotAppended, "closed": ErrClosed} {
		t.Run(what, func(t *testing.T) {
			var f faults
			var syncs atomic.Int64
			m := mustManager(t, Config{FS: slowSyncs(errorfs.Wrap(vfs.NewMem(), f.injector()), time.Millisecond, &syncs), Sync: SyncAlways})
			r := newRecorder(0)
			g := mustCreate(t, m, "default", r)
			eio, full := error(syscall.EIO), error(syscall.ENOSPC)
			var failed atomic.Bool
			var before, refused atomic.Int64
			breakIt := func() {
				switch what {
				case "sync":
					f.sync.Store(&eio)
				case "write":
					f.write.Store(&eio)
				case "apply":
					r.mu.Lock()
					r.fail = eio
					r.mu.Unlock()
				case "full":
					f.prealloc.Store(&full)
					f.write.Store(&full)
				case "closed":
					if err := g.Close(); err != nil {
						t.Error(err)
					}
				}
			}
			proposeEach(g, 16, 40, func(c, i int, result any, err error) {
				if before.Add(1) == 160 {
					breakIt()
					failed.Store(true)
				}
				switch {
				case err != nil && (!failed.Load() && before.Load() < 160 || !errors.Is(err, wants)):
					t.Errorf("%d/%d: %v", c, i, err)
				case err != nil:
					refused.Add(1)
				}
			})
			if refused.Load() < 160 {
				t.Fatalf("%d were refused", refused.Load())
			}
			if what != "full" {
				return
			}
			f.prealloc.Store(nil)
			f.write.Store(nil)
			if _, err := g.Propose(bg, []byte("y"), nil); err != nil {
				t.Fatalf("with room again: %v", err)
			}
			if want := 640 - int(refused.Load()) + 1; len(r.cmds) != want {
				t.Errorf("%d commands are applied, want %d", len(r.cmds), want)
			}
		})
	}
}

// TestTogetherPanic: a panic in Apply leaves nobody waiting.
func TestTogetherPanic(t *testing.T) {
	m := mustManager(t, Config{FS: vfs.NewMem(), Sync: SyncAlways})
	r := newRecorder(0)
	g := mustCreate(t, m, "default", r)
	var applied atomic.Int64
	r.inside = func() {
		if applied.Add(1) == 100 {
			panic("planted")
		}
	}
	var panicked, unknown atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			defer func() {
				if recover() != nil {
					panicked.Add(1)
				}
			}()
			for range 20 {
				if _, err := g.Propose(bg, []byte("x"), nil); errors.Is(err, ErrUnknownOutcome) {
					unknown.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if panicked.Load() != 1 {
		t.Errorf("%d callers have panicked, %d others heard of it", panicked.Load(), unknown.Load())
	}
}

// TestTogetherBecomesThree: proposals go on while the group gets other members.
func TestTogetherBecomesThree(t *testing.T) {
	const callers, each = 16, 60
	var syncs atomic.Int64
	c := newClusterWith(t, func(cfg *Config) {
		cfg.Sync = SyncAlways
		cfg.TickInterval = 50 * time.Millisecond
		cfg.FS = slowSyncs(cfg.FS, time.Millisecond, &syncs)
	}, 1, 2, 3)
	n := c.nodes[1]
	n.sm = newRecorder(0)
	g, err := n.m.CreateGroup(DefaultGroup, n.sm)
	if err != nil {
		t.Fatal(err)
	}
	n.g = g
	for _, id := range []uint64{2, 3} {
		n := c.nodes[id]
		n.sm = newRecorder(0)
		if n.g, err = n.m.JoinGroup(DefaultGroup, n.sm); err != nil {
			t.Fatal(err)
		}
	}
	var made atomic.Int64
	var unknown sync.Map // as in TestTogetherInThree
	grown := make(chan error, 1)
	proposeEach(g, callers, each, func(c, i int, result any, err error) {
		switch want := fmt.Sprintf("%d/%d", c, i); {
		case errors.Is(err, ErrUnknownOutcome):
			unknown.Store(want, true)
		case err != nil || result != want+fmt.Sprintf("/%d", i):
			t.Errorf("%s: %v, %v", want, result, err)
		}
		if made.Add(1) == 200 {
			go func() {
				err := ErrUnknownOutcome
				for errors.Is(err, ErrUnknownOutcome) {
					err = g.ChangeMembers(bg, MemberChange{2, Voter}, MemberChange{3, Voter})
				}
				grown <- err
			}()
		}
	})
	if err := <-grown; err != nil {
		t.Fatal(err)
	}
	times := appliedTimes(c)
	for caller := range callers {
		for i := range each {
			cmd := fmt.Sprintf("%d/%d", caller, i)
			if _, ok := unknown.Load(cmd); times[cmd] != 1 && !(ok && times[cmd] == 0) {
				t.Errorf("%s is applied %d times", cmd, times[cmd])
			}
		}
	}
}

// TestTogetherInThree: proposals that are one step of the engine each get their own
// result, on the leader and on a follower, small and large, and each is applied once.
func TestTogetherInThree(t *testing.T) {
	const callers, each = 16, 20
	c := newClusterWith(t, func(cfg *Config) { cfg.TickInterval = 50 * time.Millisecond }, 1, 2, 3)
	c.create(1, 2, 3)
	leader := c.leader(1, 2, 3)
	var unknown sync.Map // what became of them nobody could say: on a busy machine leaders change
	for n, id := range []uint64{leader, leader%3 + 1} {
		g := c.nodes[id].g
		var wg sync.WaitGroup
		for caller := range callers {
			wg.Go(func() {
				for i := range each {
					cmd := fmt.Sprintf("%d %d/%d", n, caller, i)
					if i == each-1 {
						cmd += strings.Repeat("x", maxJoinedBytes/3)
					}
					switch result, err := g.Propose(bg, []byte(cmd), i); {
					case errors.Is(err, ErrUnknownOutcome):
						unknown.Store(cmd, true)
					case err != nil || result != fmt.Sprintf("%s/%d", cmd, i):
						t.Errorf("node %d, %.20q: %.30v, %v", id, cmd, result, err)
					}
				}
			})
		}
		wg.Wait()
	}
	times := appliedTimes(c)
	for n := range 2 {
		for caller := range callers {
			for i := range each {
				cmd := fmt.Sprintf("%d %d/%d", n, caller, i)
				if i == each-1 {
					cmd += strings.Repeat("x", maxJoinedBytes/3)
				}
				if _, ok := unknown.Load(cmd); times[cmd] != 1 && !(ok && times[cmd] == 0) {
					t.Errorf("%.20q is applied %d times", cmd, times[cmd])
				}
			}
		}
	}
}

// appliedTimes is how often each command is applied once all three nodes have the same.
func appliedTimes(c *cluster) map[string]int {
	c.t.Helper()
	times := map[string]int{}
	for _, cmd := range c.converged(1, 2, 3) {
		times[cmd]++
	}
	return times
}

// TestTogetherWithoutMajority: those who give up get away, the others get through when
// there is a majority again.
func TestTogetherWithoutMajority(t *testing.T) {
	const callers = 8
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	leader := c.leader(1, 2, 3)
	c.propose(leader, "before")
	c.net.Isolate(leader, true)
	g := c.nodes[leader].g
	ctx, cancel := context.WithTimeout(bg, 300*time.Millisecond)
	defer cancel()
	var patient, impatient sync.WaitGroup
	for i := range callers {
		impatient.Go(func() {
			if _, err := g.Propose(ctx, fmt.Appendf(nil, "impatient %d", i), nil); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrUnknownOutcome) {
				t.Errorf("without a majority: %v", err)
			}
		})
		patient.Go(func() {
			// What the old leader had taken, nobody can tell once another leads.
			if _, err := g.Propose(bg, fmt.Appendf(nil, "patient %d", i), nil); err != nil && !errors.Is(err, ErrUnknownOutcome) {
				t.Errorf("with a majority again: %v", err)
			}
		})
	}
	impatient.Wait()
	c.net.Isolate(leader, false)
	patient.Wait()
	c.converged(1, 2, 3)
	if n := len(g.drive.queue.take()); n > 0 {
		t.Errorf("%d proposals are left in the queue", n)
	}
}
