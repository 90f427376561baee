package consensus

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/consensus/transport"
)

// realCluster is three nodes on real files, connected over loopback TCP.
func realCluster(t testing.TB, tick time.Duration) []*Manager {
	var trs []*transport.TCP
	for id := uint64(1); id <= 3; id++ {
		tr, err := transport.ListenTCP(transport.TCPConfig{ID: id, Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		trs = append(trs, tr)
	}
	var ms []*Manager
	for i, tr := range trs {
		for j, other := range trs {
			tr.SetPeer(uint64(j+1), other.Addr())
		}
		m, err := Open(Config{FS: vfs.Default, Dir: t.TempDir(), NodeID: uint64(i + 1), Transport: tr, TickInterval: tick})
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
		t.Cleanup(func() { _ = m.Close(); _ = tr.Close() })
	}
	return ms
}

func replicated(t testing.TB, ms []*Manager, name GroupID) []*Group {
	var gs []*Group
	for _, m := range ms {
		g, err := m.CreateReplicatedGroup(name, discard{}, 1, 2, 3)
		if err != nil {
			t.Fatal(err)
		}
		gs = append(gs, g)
	}
	return gs
}

func leaderOf(t testing.TB, gs []*Group) *Group {
	var leader *Group
	within(t, 30*time.Second, "a leader", func() bool {
		for _, g := range gs {
			if g.Err() == nil && g.Status().State == "leader" {
				leader = g
				return true
			}
		}
		return false
	})
	return leader
}

func TestClusterOverTCP(t *testing.T) {
	ms := realCluster(t, 10*time.Millisecond)
	gs := replicated(t, ms, DefaultGroup)
	for i := range 30 {
		if _, err := gs[i%3].Propose(bg, fmt.Appendf(nil, "%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 20*time.Second, "all have applied all", func() bool {
		return gs[0].AppliedIndex() == gs[1].AppliedIndex() && gs[1].AppliedIndex() == gs[2].AppliedIndex()
	})
}

// BenchmarkReplicated has 64 proposals under way at once.
func BenchmarkReplicated(b *testing.B) {
	for _, size := range []int{128, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			g := leaderOf(b, replicated(b, realCluster(b, 50*time.Millisecond), DefaultGroup))
			cmd := make([]byte, size)
			b.SetBytes(int64(size))
			b.ResetTimer()
			var wg sync.WaitGroup
			next := make(chan struct{}, 64)
			for range 64 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range next {
						if _, err := g.Propose(bg, cmd, nil); err != nil {
							b.Error(err)
						}
					}
				}()
			}
			for range b.N {
				next <- struct{}{}
			}
			close(next)
			wg.Wait()
		})
	}
}

// TestThousandGroups measures what RAFT_GROUPS groups of three cost when idle; not
// run without it.
func TestThousandGroups(t *testing.T) {
	var n int
	if _, err := fmt.Sscan(os.Getenv("RAFT_GROUPS"), &n); err != nil {
		t.Skip("RAFT_GROUPS is not set to a number of groups")
	}
	ms := realCluster(t, 50*time.Millisecond)
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapInuse + s.StackInuse
	}
	before, begin := heap(), time.Now()
	var all [][]*Group
	for i := range n {
		all = append(all, replicated(t, ms, GroupID(fmt.Sprintf("g%d", i))))
	}
	t.Logf("created in %v", time.Since(begin))
	begin = time.Now()
	for _, gs := range all {
		leaderOf(t, gs)
	}
	t.Logf("all led %v after", time.Since(begin))
	asleep := func() (count int) {
		for _, gs := range all {
			for _, g := range gs {
				g.mu.Lock()
				if g.rep.Load().sleep.asleep.Load() {
					count++
				}
				g.mu.Unlock()
			}
		}
		return count
	}
	begin = time.Now()
	for time.Since(begin) < 90*time.Second && asleep() < 3*n {
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("%d of %d replicas asleep after %v", asleep(), 3*n, time.Since(begin))
	t.Logf("memory per replica: %d bytes", (heap()-before)/uint64(3*n))
	cpu := func() time.Duration {
		var r syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	used, begin := cpu(), time.Now()
	time.Sleep(10 * time.Second)
	t.Logf("idle CPU of a node: %.2f %% of a core", 100*float64(cpu()-used)/float64(time.Since(begin))/3)
}

// TestFailoverTime kills the leader RAFT_FAILOVERS times, at the default timing,
// and measures until a write succeeds; not run without it.
func TestFailoverTime(t *testing.T) {
	var n int
	if _, err := fmt.Sscan(os.Getenv("RAFT_FAILOVERS"), &n); err != nil {
		t.Skip("RAFT_FAILOVERS is not set to a number")
	}
	var took []time.Duration
	for range n {
		ms := realCluster(t, 0)
		gs := replicated(t, ms, DefaultGroup)
		leader := leaderOf(t, gs)
		if _, err := leader.Propose(bg, []byte("x"), nil); err != nil {
			t.Fatal(err)
		}
		i := slices.Index(gs, leader)
		_ = ms[i].cfg.Transport.Close()
		begin := time.Now()
		for {
			if _, err := gs[(i+1)%3].Propose(bg, []byte("y"), nil); err == nil {
				break
			}
		}
		took = append(took, time.Since(begin))
		for _, m := range ms {
			_ = m.Close()
			_ = m.cfg.Transport.Close()
		}
	}
	slices.Sort(took)
	t.Logf("median %v, worst %v", took[len(took)/2], took[len(took)-1])
}
