package consensus

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	return clusterOf(t, clusterOptions{tick: tick})
}

type clusterOptions struct {
	tick time.Duration // 0: the default
	rate int           // of snapshots, in bytes per second; 0: no limit
	tls  []*tls.Config // of the nodes 1 to 3; nil: no TLS
}

// clusterOf is realCluster with more to choose.
func clusterOf(t testing.TB, o clusterOptions) []*Manager {
	var trs []*transport.TCP
	for id := uint64(1); id <= 3; id++ {
		c := transport.TCPConfig{ID: id, Listen: "127.0.0.1:0", SnapshotRate: o.rate}
		if o.tls != nil {
			c.TLS = o.tls[id-1]
		}
		tr, err := transport.ListenTCP(c)
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
		m, err := Open(Config{FS: vfs.Default, Dir: t.TempDir(), NodeID: uint64(i + 1), Transport: tr, TickInterval: o.tick})
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

// syncRate is how many times per second n bytes can be written behind each other and
// made durable, in a file whose space is there.
func syncRate(b *testing.B, n int) float64 {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, n)
	for at := 0; at < 32<<20; at += n {
		if _, err := f.WriteAt(data, int64(at)); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	count, begin := 0, time.Now()
	for ; time.Since(begin) < time.Second; count++ {
		if _, err := f.WriteAt(data, int64(count*n%(32<<20))); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	return float64(count) / time.Since(begin).Seconds()
}

// propose64 makes b.N proposals, 64 of them under way at once.
func propose64(b *testing.B, g *Group, cmd []byte) {
	var wg sync.WaitGroup
	next := make(chan struct{}, 64)
	for range 64 {
		wg.Go(func() {
			for range next {
				if _, err := g.Propose(bg, cmd, nil); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for range b.N {
		next <- struct{}{}
	}
	close(next)
	wg.Wait()
}

// BenchmarkShareOfSyncRate has 64 durable proposals of 128 bytes under way, and reports
// them as a share of what the disk would do with 64 in each sync.
func BenchmarkShareOfSyncRate(b *testing.B) {
	const size, batch = 128, 64
	share := func(b *testing.B, g *Group) {
		rate := syncRate(b, size*batch)
		b.ResetTimer()
		begin := time.Now()
		propose64(b, g, make([]byte, size))
		per := float64(b.N) / time.Since(begin).Seconds()
		b.ReportMetric(per, "proposals/s")
		b.ReportMetric(rate, "syncs/s")
		b.ReportMetric(100*per/(rate*batch), "%")
	}
	b.Run("one", func(b *testing.B) {
		m := mustManager(b, Config{FS: vfs.Default, Dir: b.TempDir(), Sync: SyncAlways})
		share(b, mustCreate(b, m, "default", discard{}))
	})
	b.Run("three", func(b *testing.B) {
		share(b, leaderOf(b, replicated(b, realCluster(b, 50*time.Millisecond), DefaultGroup)))
	})
}

// BenchmarkShareOfDisk has proposals of 1 MiB on a node that is alone, synced at the
// end, and reports them as a share of writing a file of the same size.
func BenchmarkShareOfDisk(b *testing.B) {
	m := mustManager(b, Config{FS: vfs.Default, Dir: b.TempDir()})
	g := mustCreate(b, m, "default", discard{})
	cmd := make([]byte, 1<<20)
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	begin := time.Now()
	for range b.N {
		if _, err := f.Write(cmd); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	file := time.Since(begin)
	b.SetBytes(int64(len(cmd)))
	b.ResetTimer()
	begin = time.Now()
	for range b.N {
		if _, err := g.Propose(bg, cmd, nil); err != nil {
			b.Fatal(err)
		}
	}
	if err := g.Sync(bg); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(100*file.Seconds()/time.Since(begin).Seconds(), "%")
	b.ReportMetric(float64(b.N)/file.Seconds()*float64(len(cmd))/1e6, "fileMB/s")
}

// BenchmarkReplicated has 64 proposals under way at once.
func BenchmarkReplicated(b *testing.B) {
	for _, size := range []int{128, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			g := leaderOf(b, replicated(b, realCluster(b, 50*time.Millisecond), DefaultGroup))
			b.SetBytes(int64(size))
			b.ResetTimer()
			propose64(b, g, make([]byte, size))
		})
	}
}

// bulky is a state machine of which a snapshot is n bytes.
type bulky struct {
	discard
	n        int64
	restored chan struct{}
}

func (s bulky) Snapshot() (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(zeroReader{}, s.n)), nil
}

func (s bulky) Restore(_, _ uint64, data io.Reader) error {
	if n, err := io.Copy(io.Discard, data); err != nil || n != s.n {
		return fmt.Errorf("%d bytes, want %d: %w", n, s.n, err)
	}
	s.restored <- struct{}{}
	return nil
}

// BenchmarkSnapshot adds a node to a group whose snapshot has 1 GiB, while proposals go
// on: how long until it is installed, and how long the slowest proposal took meanwhile.
// RAFT_SNAPSHOT_RATE limits it, in bytes per second.
func BenchmarkSnapshot(b *testing.B) {
	rate := 0
	_, _ = fmt.Sscan(os.Getenv("RAFT_SNAPSHOT_RATE"), &rate)
	const size = 1 << 30
	for range b.N {
		ms := clusterOf(b, clusterOptions{tick: 50 * time.Millisecond, rate: rate})
		sm := bulky{n: size, restored: make(chan struct{}, 9)}
		var gs []*Group
		for i, m := range ms {
			g, err := (*Group)(nil), error(nil)
			if i < 2 {
				g, err = m.CreateReplicatedGroup(DefaultGroup, sm, 1, 2)
			} else {
				g, err = m.JoinGroup(DefaultGroup, sm)
			}
			if err != nil {
				b.Fatal(err)
			}
			gs = append(gs, g)
		}
		leader := leaderOf(b, gs[:2])
		for range 10 {
			if _, err := leader.Propose(bg, make([]byte, 128), nil); err != nil {
				b.Fatal(err)
			}
		}
		if err := leader.log.Reset(leader.LastIndex(), leader.log.LastTerm()); err != nil { // nothing but a snapshot will do
			b.Fatal(err)
		}
		begin := time.Now()
		if err := leader.ChangeMembers(bg, MemberChange{3, Learner}); err != nil {
			b.Fatal(err)
		}
		var worst time.Duration
		count := 0
		for done := false; !done; count++ {
			at := time.Now()
			if _, err := leader.Propose(bg, make([]byte, 128), nil); err != nil {
				b.Fatal(err)
			}
			worst = max(worst, time.Since(at))
			select {
			case <-sm.restored:
				done = true
			default:
			}
		}
		took := time.Since(begin)
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric(size/took.Seconds()/1e6, "MB/s")
		b.ReportMetric(float64(worst.Milliseconds()), "ms-slowest-proposal")
		b.ReportMetric(float64(count)/took.Seconds(), "proposals/s")
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
	used, begin := cpuTime(), time.Now()
	time.Sleep(10 * time.Second)
	t.Logf("idle CPU of a node: %.2f %% of a core", 100*float64(cpuTime()-used)/float64(time.Since(begin))/3)
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
