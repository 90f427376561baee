package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// recorder is a state machine that remembers what it was given. applied is where
// it starts from.
type recorder struct {
	mu       sync.Mutex
	applied  uint64
	cmds     map[uint64]string
	locals   int
	restored int    // snapshots
	inside   func() // called from within Apply
	fail     error
}

func newRecorder(applied uint64) *recorder {
	return &recorder{applied: applied, cmds: map[uint64]string{}}
}

func (r *recorder) Apply(index, term uint64, cmd []byte, local any) (any, error) {
	if r.inside != nil {
		r.inside()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return nil, r.fail
	}
	if index <= r.applied {
		return nil, fmt.Errorf("entry %d after %d", index, r.applied)
	}
	r.applied = index
	r.cmds[index] = string(cmd)
	if local != nil {
		r.locals++
	}
	return fmt.Sprintf("%s/%v", cmd, local), nil
}

func (r *recorder) AppliedIndex() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applied
}

func mustManager(t testing.TB, cfg Config) *Manager {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = "raft"
	}
	if cfg.NodeID == 0 {
		cfg.NodeID = 1
	}
	m, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func mustCreate(t testing.TB, m *Manager, name GroupID, sm StateMachine) *Group {
	t.Helper()
	g, err := m.CreateGroup(name, sm)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

var bg = context.Background()

func TestProposeAppliesInOrderAndReturnsTheResult(t *testing.T) {
	m := mustManager(t, Config{FS: vfs.NewMem()})
	r := newRecorder(0)
	g := mustCreate(t, m, "default", r)
	for i := range 10 {
		got, err := g.Propose(bg, fmt.Appendf(nil, "c%d", i), i)
		if want := fmt.Sprintf("c%d/%d", i, i); err != nil || got != want {
			t.Fatalf("Propose = %v, %v, want %s", got, err, want)
		}
	}
	// Entry 1 is the group's first voter.
	if g.LastIndex() != 11 || g.AppliedIndex() != 11 || g.DurableIndex() > 11 {
		t.Fatalf("last %d applied %d durable %d", g.LastIndex(), g.AppliedIndex(), g.DurableIndex())
	}
	if err := g.Sync(bg); err != nil || g.DurableIndex() != 11 {
		t.Fatalf("after Sync durable is %d, %v", g.DurableIndex(), err)
	}
	if err := g.ReadBarrier(bg); err != nil {
		t.Fatal(err)
	}
	st := g.Status()
	if st.Leader != 1 || st.State != "leader" || st.Commit != 11 || len(st.Voters) != 1 || st.Voters[0] != 1 {
		t.Fatalf("status %+v", st)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if _, err := g.Propose(ctx, []byte("late"), nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled proposal: %v", err)
	}
}

func TestReopenReplaysWhatTheStateDoesNotHold(t *testing.T) {
	fs := vfs.NewMem()
	m := mustManager(t, Config{FS: fs})
	g := mustCreate(t, m, "default", newRecorder(0))
	for i := 1; i <= 20; i++ {
		if _, err := g.Propose(bg, fmt.Appendf(nil, "c%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	term := g.Status().Term
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Propose(bg, []byte("x"), nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("propose after close: %v", err)
	}
	m = mustManager(t, Config{FS: fs})
	r := newRecorder(12)
	g, err := m.OpenGroup("default", r)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.cmds) != 9 || r.cmds[13] != "c12" || r.cmds[21] != "c20" || r.locals != 0 {
		t.Fatalf("replayed %v", r.cmds)
	}
	if g.Status().Term <= term {
		t.Fatalf("term %d after %d: each run has its own", g.Status().Term, term)
	}
	if _, err := m.OpenGroup("default", newRecorder(0)); !errors.Is(err, ErrGroupOpen) {
		t.Fatalf("second open: %v", err)
	}
	if _, err := m.CreateGroup("default", newRecorder(0)); !errors.Is(err, ErrGroupExists) {
		t.Fatalf("second create: %v", err)
	}
}

func TestLogAndStateMustFit(t *testing.T) {
	fs := vfs.NewMem()
	cfg := Config{FS: fs, SegmentSize: 1 << 10}
	m := mustManager(t, cfg)
	g := mustCreate(t, m, "default", newRecorder(0))
	for range 200 {
		if _, err := g.Propose(bg, bytes.Repeat([]byte("x"), 100), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if err := g.Compact(150); err != nil {
		t.Fatal(err)
	}
	first := g.Status().First
	if first < 100 || first > 151 {
		t.Fatalf("first is %d after Compact(150)", first)
	}
	_ = m.Close()
	for _, tc := range []struct {
		applied uint64
		err     error
	}{{first - 2, ErrLogGap}, {0, ErrLogGap}, {202, ErrLogGap}, {first - 1, nil}, {200, nil}} {
		m := mustManager(t, cfg)
		if _, err := m.OpenGroup("default", newRecorder(tc.applied)); !errors.Is(err, tc.err) {
			t.Fatalf("open with a state at %d: %v, want %v", tc.applied, err, tc.err)
		}
		_ = m.Close()
	}
	m = mustManager(t, cfg)
	if _, err := m.CreateGroup("g1", newRecorder(5)); !errors.Is(err, ErrLogGap) {
		t.Fatalf("new group with an old state: %v", err)
	}
	_ = m.Close()
	if m, err := Open(Config{FS: fs, Dir: "raft", NodeID: 2}); err != nil {
		t.Fatal(err)
	} else if _, err := m.OpenGroup("default", newRecorder(200)); !errors.Is(err, ErrWrongNode) {
		t.Fatalf("another node's directory: %v", err)
	} else {
		_ = m.Close()
	}
}

func TestStateMachineErrorStopsTheGroup(t *testing.T) {
	m := mustManager(t, Config{FS: vfs.NewMem()})
	r := newRecorder(0)
	g := mustCreate(t, m, "default", r)
	broken := errors.New("the disk is gone")
	r.fail = broken
	for range 2 {
		if _, err := g.Propose(bg, []byte("x"), nil); !errors.Is(err, ErrStopped) || !errors.Is(err, broken) {
			t.Fatalf("propose: %v", err)
		}
	}
	if err := g.Sync(bg); !errors.Is(err, broken) {
		t.Fatalf("sync: %v", err)
	}
	if err := g.ReadBarrier(bg); !errors.Is(err, broken) {
		t.Fatalf("barrier: %v", err)
	}
	if err := g.Compact(1); !errors.Is(err, broken) {
		t.Fatalf("compact: %v", err)
	}
	select {
	case <-g.Done():
	default:
		t.Fatal("Done is open")
	}
	if st := g.Status(); st.State != "stopped" || !errors.Is(st.Err, broken) {
		t.Fatalf("status %+v", st)
	}
}

// faults makes chosen operations on log segments fail.
type faults struct {
	sync, write, prealloc atomic.Pointer[error]
	hits                  atomic.Int32
}

func (f *faults) injector() errorfs.Injector {
	return errorfs.InjectorFunc(func(op errorfs.Op) error {
		if len(op.Path) < 4 || op.Path[len(op.Path)-4:] != ".log" {
			return nil
		}
		var p *error
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData:
			p = f.sync.Load()
		case errorfs.OpFileWriteAt:
			p = f.write.Load()
		case errorfs.OpFilePreallocate:
			p = f.prealloc.Load()
		}
		if p == nil {
			return nil
		}
		f.hits.Add(1)
		return *p
	})
}

func TestFailedSyncStopsTheGroupForGood(t *testing.T) {
	var f faults
	m := mustManager(t, Config{FS: errorfs.Wrap(vfs.NewMem(), f.injector()), SyncInterval: time.Second})
	g := mustCreate(t, m, "default", newRecorder(0))
	if _, err := g.Propose(bg, []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	eio := error(syscall.EIO)
	f.sync.Store(&eio)
	if err := g.Sync(bg); !errors.Is(err, syscall.EIO) || !errors.Is(err, ErrStopped) {
		t.Fatalf("sync: %v", err)
	}
	f.sync.Store(nil)
	// The disk works again, but what it lost is lost.
	if err := g.Sync(bg); !errors.Is(err, syscall.EIO) {
		t.Fatalf("second sync: %v", err)
	}
	if _, err := g.Propose(bg, []byte("y"), nil); !errors.Is(err, syscall.EIO) {
		t.Fatalf("propose: %v", err)
	}
	if err := m.SyncAll(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("SyncAll: %v", err)
	}
	if f.hits.Load() == 0 {
		t.Fatal("nothing was injected")
	}
}

func TestFailedWriteStopsTheGroup(t *testing.T) {
	var f faults
	m := mustManager(t, Config{FS: errorfs.Wrap(vfs.NewMem(), f.injector())})
	g := mustCreate(t, m, "default", newRecorder(0))
	eio := error(syscall.EIO)
	f.write.Store(&eio)
	if _, err := g.Propose(bg, []byte("x"), nil); !errors.Is(err, ErrStopped) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("propose: %v", err)
	}
	f.write.Store(nil)
	if _, err := g.Propose(bg, []byte("x"), nil); !errors.Is(err, syscall.EIO) {
		t.Fatalf("propose: %v", err)
	}
}

func TestFullDiskRefusesTheProposalAndGoesOn(t *testing.T) {
	for _, where := range []string{"prealloc", "write"} {
		t.Run(where, func(t *testing.T) {
			var f faults
			fs := vfs.NewMem()
			m := mustManager(t, Config{FS: errorfs.Wrap(fs, f.injector()), SegmentSize: 1 << 10, SyncInterval: time.Second})
			r := newRecorder(0)
			g := mustCreate(t, m, "default", r)
			full := error(syscall.ENOSPC)
			refused, accepted := 0, 0
			for i := range 60 {
				if i%7 >= 4 {
					f.prealloc.Store(&full)
					if where == "write" {
						f.write.Store(&full)
					}
				} else {
					f.prealloc.Store(nil)
					f.write.Store(nil)
				}
				_, err := g.Propose(bg, fmt.Appendf(nil, "command %d %s", i, bytes.Repeat([]byte("x"), 200)), nil)
				switch {
				case err == nil:
					accepted++
				case errors.Is(err, ErrNotAppended) && errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrStopped):
					refused++
				default:
					t.Fatalf("proposal %d: %v", i, err)
				}
			}
			f.prealloc.Store(nil)
			f.write.Store(nil)
			if refused == 0 || int(g.LastIndex()) != accepted+1 || g.AppliedIndex() != g.LastIndex() {
				t.Fatalf("%d refused, %d accepted, last %d", refused, accepted, g.LastIndex())
			}
			if err := g.Sync(bg); err != nil {
				t.Fatal(err)
			}
			want := r.cmds
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			m = mustManager(t, Config{FS: fs, SegmentSize: 1 << 10})
			r = newRecorder(0)
			if _, err := m.OpenGroup("default", r); err != nil {
				t.Fatal(err)
			}
			sameCmds(t, r.cmds, want)
		})
	}
}

func sameCmds(t testing.TB, got, want map[uint64]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d commands, want %d", len(got), len(want))
	}
	for i, c := range want {
		if got[i] != c {
			t.Fatalf("entry %d is %.20q, want %.20q", i, got[i], c)
		}
	}
}

func TestManyCallersShareSyncsAndKeepTheirOrder(t *testing.T) {
	var syncs atomic.Int32
	count := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			syncs.Add(1)
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	var durable atomic.Uint64
	m := mustManager(t, Config{FS: errorfs.Wrap(vfs.NewMem(), count), OnDurable: func(g GroupID, index uint64) {
		if old := durable.Swap(index); old >= index {
			t.Errorf("OnDurable(%d) after %d", index, old)
		}
	}})
	r := newRecorder(0)
	g := mustCreate(t, m, "default", r)
	const callers, each = 8, 20
	var wg sync.WaitGroup
	for c := range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range each {
				if _, err := g.Propose(bg, fmt.Appendf(nil, "%d/%d", c, i), nil); err != nil {
					t.Error(err)
				}
				at := g.LastIndex()
				if err := g.Sync(bg); err != nil {
					t.Error(err)
				}
				if g.DurableIndex() < min(at, uint64(i)) {
					t.Errorf("durable %d after a sync", g.DurableIndex())
				}
			}
		}()
	}
	wg.Wait()
	if g.LastIndex() != callers*each+1 || durable.Load() != callers*each+1 {
		t.Fatalf("last %d, durable %d", g.LastIndex(), durable.Load())
	}
	if n := syncs.Load(); n > callers*each*3/4 {
		t.Fatalf("%d syncs for %d calls: they do not share", n, callers*each)
	}
}

func TestBackgroundSync(t *testing.T) {
	m := mustManager(t, Config{FS: vfs.NewMem(), SyncInterval: 5 * time.Millisecond})
	g := mustCreate(t, m, "default", newRecorder(0))
	if _, err := g.Propose(bg, []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); g.DurableIndex() != 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not synced in the background")
		}
	}
}

func TestSyncAlways(t *testing.T) {
	m := mustManager(t, Config{FS: vfs.NewMem(), Sync: SyncAlways})
	g := mustCreate(t, m, "default", newRecorder(0))
	for i := uint64(1); i < 10; i++ {
		if _, err := g.Propose(bg, []byte("x"), nil); err != nil || g.DurableIndex() != i+1 {
			t.Fatalf("durable %d, %v", g.DurableIndex(), err)
		}
	}
}

// TestSyncAllFromInsideApply: the metadata store flushes while a command is being
// applied, and its flush syncs the logs.
func TestSyncAllFromInsideApply(t *testing.T) {
	m := mustManager(t, Config{FS: vfs.NewMem()})
	r := newRecorder(0)
	g := mustCreate(t, m, "default", r)
	mustCreate(t, m, "g1", newRecorder(0))
	r.inside = func() {
		done := make(chan error)
		go func() { done <- m.SyncAll() }()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if g.DurableIndex() != g.LastIndex() {
			t.Errorf("durable %d, last %d", g.DurableIndex(), g.LastIndex())
		}
		if err := g.Compact(g.AppliedIndex()); err != nil {
			t.Error(err)
		}
	}
	for range 5 {
		if _, err := g.Propose(bg, []byte("x"), nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGroupsComeAndGoWhileOthersWork(t *testing.T) {
	fs := vfs.NewMem()
	m := mustManager(t, Config{FS: fs})
	g := mustCreate(t, m, "default", newRecorder(0))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := g.Propose(bg, []byte("x"), nil); err != nil {
					t.Error(err)
				}
				time.Sleep(50 * time.Microsecond)
			}
		}
	}()
	for i := range 10 {
		name := GroupID(fmt.Sprintf("g%d", i))
		h := mustCreate(t, m, name, newRecorder(0))
		if _, err := h.Propose(bg, []byte("y"), nil); err != nil {
			t.Fatal(err)
		}
		if got, ok := m.GetGroup(name); !ok || got != h {
			t.Fatal("GetGroup does not know it")
		}
		if i%2 == 0 {
			if err := m.RemoveGroup(name); err != nil {
				t.Fatal(err)
			}
			if _, ok := m.GetGroup(name); ok {
				t.Fatal("a removed group is there")
			}
			if _, err := h.Propose(bg, nil, nil); !errors.Is(err, ErrClosed) {
				t.Fatalf("propose to a removed group: %v", err)
			}
			if _, err := m.OpenGroup(name, newRecorder(0)); !errors.Is(err, ErrGroupNotFound) {
				t.Fatalf("open a removed group: %v", err)
			}
		}
	}
	close(stop)
	wg.Wait()
	groups, err := m.Groups()
	if err != nil || len(groups) != 6 || groups[0] != DefaultGroup {
		t.Fatalf("groups %v, %v", groups, err)
	}
	if err := m.RemoveGroup(DefaultGroup); err == nil {
		t.Fatal("default was removed")
	}
	for _, bad := range []GroupID{"", "A", "../x", "1a", "a/b", "state.tmp", GroupID(bytes.Repeat([]byte("a"), 33))} {
		if _, err := m.CreateGroup(bad, newRecorder(0)); err == nil {
			t.Fatalf("%q was accepted", bad)
		}
	}
	if _, err := Open(Config{FS: fs, Dir: "raft", NodeID: 1}); err == nil {
		t.Fatal("the directory was opened twice")
	}
}

// TestCrash pulls the plug at every write and sync of a run, with more or less of
// what was not synced lost: the log always comes back as what was applied, up to
// some entry that is at least the durable one.
func TestCrash(t *testing.T) {
	for _, percent := range []int{0, 30, 70, 100} {
		t.Run(fmt.Sprint(percent), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(percent), 5))
			mem := vfs.NewCrashableMem()
			type crash struct {
				fs      *vfs.MemFS
				durable uint64
				held    uint64 // what the state machine holds durably
				created bool
			}
			var mu sync.Mutex // the background sync pulls the plug too; guards crashes and plug
			plug := rand.New(rand.NewPCG(uint64(percent), 6))
			var crashes []crash
			var durable, held atomic.Uint64
			var created atomic.Bool
			pull := errorfs.InjectorFunc(func(op errorfs.Op) error {
				switch op.Kind {
				case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData,
					errorfs.OpRename, errorfs.OpCreate, errorfs.OpRemove:
					mu.Lock()
					defer mu.Unlock()
					c := crash{durable: durable.Load(), held: held.Load(), created: created.Load()}
					c.fs = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: plug})
					crashes = append(crashes, c)
				}
				return nil
			})
			m := mustManager(t, Config{FS: errorfs.Wrap(mem, pull), SegmentSize: 2 << 10, SyncInterval: time.Second})
			r := newRecorder(0)
			g := mustCreate(t, m, "default", r)
			created.Store(true)
			for i := range 60 {
				cmd := fmt.Appendf(nil, "%d %s", i, bytes.Repeat([]byte{byte('a' + i%26)}, rng.IntN(900)))
				if _, err := g.Propose(bg, cmd, nil); err != nil {
					t.Fatal(err)
				}
				if rng.IntN(4) == 0 {
					at := g.LastIndex()
					if err := g.Sync(bg); err != nil {
						t.Fatal(err)
					}
					durable.Store(at)
				}
				if rng.IntN(10) == 0 {
					held.Store(g.DurableIndex() / 2)
					if err := g.Compact(held.Load()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			for i, c := range crashes {
				m, err := Open(Config{FS: c.fs, Dir: "raft", NodeID: 1, SegmentSize: 2 << 10})
				if err != nil {
					t.Fatal(err)
				}
				got := newRecorder(c.held)
				g, err := m.OpenGroup("default", got)
				if errors.Is(err, ErrGroupNotFound) && !c.created {
					_ = m.Close()
					continue
				}
				if err != nil {
					t.Fatalf("crash %d of %d (durable %d): %v", i, len(crashes), c.durable, err)
				}
				if g.LastIndex() < c.durable {
					t.Fatalf("crash %d: entry %d was durable, the log ends at %d", i, c.durable, g.LastIndex())
				}
				for index, cmd := range got.cmds {
					if r.cmds[index] != cmd {
						t.Fatalf("crash %d: entry %d is %.20q, want %.20q", i, index, cmd, r.cmds[index])
					}
				}
				if _, err := g.Propose(bg, []byte("after"), nil); err != nil {
					t.Fatal(err)
				}
				_ = m.Close()
			}
			if len(crashes) < 100 {
				t.Fatalf("only %d crashes", len(crashes))
			}
		})
	}
}

// TestNoEntryComesBack: what a crash took from the log's end does not come back
// when other entries have taken its place, whatever the disk had kept of it.
func TestNoEntryComesBack(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		fs := vfs.NewCrashableMem()
		want := map[uint64]string{}
		durable := uint64(0)
		for life := range 6 {
			m, err := Open(Config{FS: fs, Dir: "raft", NodeID: 1, SegmentSize: 16 << 10, SyncInterval: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			r := newRecorder(0)
			var g *Group
			if life == 0 {
				g, err = m.CreateGroup("default", r)
			} else {
				g, err = m.OpenGroup("default", r)
			}
			if err != nil {
				t.Fatalf("seed %d life %d: %v", seed, life, err)
			}
			if g.LastIndex() < durable {
				t.Fatalf("seed %d life %d: durable was %d, last is %d", seed, life, durable, g.LastIndex())
			}
			for i, c := range r.cmds {
				if want[i] != c {
					t.Fatalf("seed %d life %d: entry %d is %.12q, want %.12q", seed, life, i, c, want[i])
				}
			}
			for i := range rng.IntN(12) {
				// The same size each time: an old record could fit behind a new one exactly.
				cmd := fmt.Sprintf("life %d number %2d %s", life, i, bytes.Repeat([]byte("x"), 3000))
				if _, err := g.Propose(bg, []byte(cmd), nil); err != nil {
					t.Fatal(err)
				}
				want[g.LastIndex()] = cmd
				if rng.IntN(5) == 0 {
					if err := g.Sync(bg); err != nil {
						t.Fatal(err)
					}
				}
			}
			durable = g.DurableIndex()
			fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
			_ = m.Close()
		}
	}
}

func BenchmarkPropose(b *testing.B) {
	for _, size := range []int{200, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			m := mustManager(b, Config{FS: vfs.Default, Dir: b.TempDir()})
			g := mustCreate(b, m, "default", discard{})
			cmd := make([]byte, size)
			_, _ = io.ReadFull(zeroReader{}, cmd)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := g.Propose(bg, cmd, nil); err != nil {
					b.Fatal(err)
				}
				if g.LastIndex()%1024 == 0 {
					_ = g.Compact(g.LastIndex())
				}
			}
		})
	}
}

func BenchmarkProposeSync(b *testing.B) {
	for _, callers := range []int{1, 16} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			m := mustManager(b, Config{FS: vfs.Default, Dir: b.TempDir()})
			g := mustCreate(b, m, "default", discard{})
			cmd := make([]byte, 200)
			b.SetParallelism(callers)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := g.Propose(bg, cmd, nil); err != nil {
						b.Fatal(err)
					}
					if err := g.Sync(bg); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

type discard struct{}

func (discard) Apply(index, term uint64, cmd []byte, local any) (any, error) { return nil, nil }
func (discard) AppliedIndex() uint64                                         { return 0 }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
