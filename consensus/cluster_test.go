package consensus

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"vdefs/consensus/transport"
)

// Snapshot and Restore make the recorder one that can be replicated.
func (r *recorder) Snapshot() (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(r.cmds); err != nil {
		return nil, err
	}
	return io.NopCloser(&b), nil
}

func (r *recorder) Restore(index, term uint64, data io.Reader) error {
	cmds := map[uint64]string{}
	if err := gob.NewDecoder(data).Decode(&cmds); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cmds, r.applied, r.restored = cmds, index, r.restored+1
	return nil
}

func (r *recorder) snapshotOf() map[uint64]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.cmds)
}

// cluster is several nodes in one process, with the real driver.
type cluster struct {
	t     testing.TB
	net   *transport.Network
	nodes map[uint64]*clusterNode
	// change, where it is set, changes the configuration that a node is started with.
	change func(*Config)
}

type clusterNode struct {
	id uint64
	fs *vfs.MemFS
	tr *transport.Memory
	m  *Manager
	sm *recorder // of group default
	g  *Group
}

func newCluster(t testing.TB, ids ...uint64) *cluster { return newClusterWith(t, nil, ids...) }

func newClusterWith(t testing.TB, change func(*Config), ids ...uint64) *cluster {
	c := &cluster{t: t, net: transport.NewNetwork(), nodes: map[uint64]*clusterNode{}, change: change}
	for _, id := range ids {
		c.nodes[id] = &clusterNode{id: id, fs: vfs.NewMem()}
		c.start(id)
	}
	t.Cleanup(func() {
		for _, id := range ids {
			c.stop(id)
		}
	})
	return c
}

func (c *cluster) start(id uint64) {
	c.t.Helper()
	n := c.nodes[id]
	n.tr = c.net.Join(id)
	for other := range uint64(9) {
		n.tr.SetPeer(other, "memory")
	}
	cfg := Config{FS: n.fs, Dir: "raft", NodeID: id, Transport: n.tr, TickInterval: 10 * time.Millisecond, SegmentSize: 4 << 10}
	if c.change != nil {
		c.change(&cfg)
	}
	m, err := Open(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	n.m = m
}

func (c *cluster) stop(id uint64) {
	n := c.nodes[id]
	if n.m == nil {
		return
	}
	if err := n.m.Close(); err != nil {
		c.t.Error(err)
	}
	_ = n.tr.Close()
	n.m, n.g = nil, nil
}

func (c *cluster) create(voters ...uint64) {
	c.t.Helper()
	for _, id := range voters {
		n := c.nodes[id]
		n.sm = newRecorder(0)
		g, err := n.m.CreateReplicatedGroup(DefaultGroup, n.sm, voters...)
		if err != nil {
			c.t.Fatal(err)
		}
		n.g = g
	}
}

func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

func (c *cluster) leader(ids ...uint64) (id uint64) {
	c.t.Helper()
	within(c.t, 20*time.Second, "a leader", func() bool {
		for _, i := range ids {
			if g := c.nodes[i].g; g != nil && g.Status().State == "leader" && g.Err() == nil {
				id = i
				return true
			}
		}
		return false
	})
	return id
}

func (c *cluster) propose(id uint64, cmd string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(bg, 20*time.Second)
	defer cancel()
	for {
		got, err := c.nodes[id].g.Propose(ctx, []byte(cmd), id)
		if errors.Is(err, ErrUnknownOutcome) && ctx.Err() == nil {
			continue
		}
		if want := fmt.Sprintf("%s/%d", cmd, id); err != nil || got != want {
			c.t.Fatalf("Propose on %d = %v, %v, want %s", id, got, err, want)
		}
		return
	}
}

// converged waits until the nodes have applied the same, and checks it.
func (c *cluster) converged(ids ...uint64) map[uint64]string {
	c.t.Helper()
	within(c.t, 20*time.Second, "all nodes have applied the same", func() bool {
		first := c.nodes[ids[0]].g.AppliedIndex()
		for _, id := range ids {
			if c.nodes[id].g.AppliedIndex() != first || c.nodes[id].g.Err() != nil {
				return false
			}
		}
		return true
	})
	want := c.nodes[ids[0]].sm.snapshotOf()
	for _, id := range ids[1:] {
		sameCmds(c.t, c.nodes[id].sm.snapshotOf(), want)
	}
	return want
}

func TestThreeNodesReplicate(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	var wg sync.WaitGroup
	for id := uint64(1); id <= 3; id++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 50 {
				c.propose(id, fmt.Sprintf("%d from %d", i, id))
			}
		}()
	}
	wg.Wait()
	if got := c.converged(1, 2, 3); len(got) < 150 {
		t.Fatalf("%d commands, 150 were acknowledged", len(got))
	}
	for id := uint64(1); id <= 3; id++ {
		if err := c.nodes[id].g.ReadBarrier(bg); err != nil {
			t.Fatal(err)
		}
		if err := c.nodes[id].g.Sync(bg); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadBarrierSeesWhatOthersAcknowledged(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	for i := range 60 {
		from, at := uint64(i%3+1), uint64((i+1)%3+1)
		cmd := fmt.Sprintf("value %d", i)
		c.propose(from, cmd)
		ctx, cancel := context.WithTimeout(bg, 10*time.Second)
		if err := c.nodes[at].g.ReadBarrier(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if !slices.Contains(slices.Collect(maps.Values(c.nodes[at].sm.snapshotOf())), cmd) {
			t.Fatalf("node %d does not see %q after a barrier", at, cmd)
		}
	}
}

func TestFailover(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	all := []uint64{1, 2, 3}
	for round := range 3 {
		leader := c.leader(all...)
		c.propose(leader, fmt.Sprintf("before %d", round))
		c.net.Isolate(leader, true)
		rest := slices.DeleteFunc(slices.Clone(all), func(id uint64) bool { return id == leader })
		next := c.leader(rest...)
		c.propose(next, fmt.Sprintf("during %d", round))
		c.propose(rest[0], fmt.Sprintf("during %d, maybe on a follower", round))
		// The one that is cut off neither acknowledges nor vouches for anything.
		ctx, cancel := context.WithTimeout(bg, 200*time.Millisecond)
		if _, err := c.nodes[leader].g.Propose(ctx, []byte("alone"), nil); err == nil {
			t.Fatal("a node that is cut off acknowledged a proposal")
		}
		if err := c.nodes[leader].g.ReadBarrier(ctx); err == nil {
			t.Fatal("a node that is cut off vouched for a read")
		}
		cancel()
		c.net.Isolate(leader, false)
		c.converged(all...)
	}
}

func TestRestartOfAll(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	for i := range 30 {
		c.propose(1, fmt.Sprint(i))
	}
	want := c.converged(1, 2, 3)
	for id := uint64(1); id <= 3; id++ {
		c.stop(id)
		c.start(id)
		n := c.nodes[id]
		n.sm = newRecorder(0)
		g, err := n.m.OpenGroup(DefaultGroup, n.sm)
		if err != nil {
			t.Fatal(err)
		}
		n.g = g
	}
	c.propose(2, "after")
	got := c.converged(1, 2, 3)
	for i, cmd := range want {
		if got[i] != cmd {
			t.Fatalf("entry %d is %q, was %q", i, got[i], cmd)
		}
	}
}

// TestOneBecomesThreeBecomesOther: a group that was alone takes in two nodes by a
// snapshot, then replaces its first node.
func TestOneBecomesThreeBecomesOther(t *testing.T) {
	c := newCluster(t, 1, 2, 3, 4)
	n := c.nodes[1]
	n.sm = newRecorder(0)
	g, err := n.m.CreateGroup(DefaultGroup, n.sm)
	if err != nil {
		t.Fatal(err)
	}
	n.g = g
	for i := range 200 {
		c.propose(1, fmt.Sprintf("alone %d %s", i, bytes.Repeat([]byte("x"), 100)))
	}
	if err := g.Sync(bg); err != nil {
		t.Fatal(err)
	}
	if err := g.Compact(g.AppliedIndex()); err != nil {
		t.Fatal(err)
	}
	if g.Status().First < 100 {
		t.Fatalf("the log still starts at %d: nothing forces a snapshot", g.Status().First)
	}
	ctx, cancel := context.WithTimeout(bg, 30*time.Second)
	defer cancel()
	join := func(id uint64) {
		t.Helper()
		n := c.nodes[id]
		n.sm = newRecorder(0)
		if n.g, err = n.m.JoinGroup(DefaultGroup, n.sm); err != nil {
			t.Fatal(err)
		}
	}
	join(2)
	join(3)
	if err := g.ChangeMembers(ctx, MemberChange{2, Learner}, MemberChange{3, Learner}); err != nil {
		t.Fatal(err)
	}
	c.propose(1, "with learners")
	c.converged(1, 2, 3)
	if c.nodes[2].sm.restored == 0 {
		t.Fatal("node 2 got no snapshot")
	}
	if err := g.ChangeMembers(ctx, MemberChange{2, Voter}, MemberChange{3, Voter}); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "joint consensus is over", func() bool { return len(g.Status().Voters) == 3 })
	c.propose(3, "with three voters")
	c.converged(1, 2, 3)
	// Node 1 dies and is replaced by node 4.
	if err := g.TransferLeader(ctx, 2); err != nil {
		t.Fatal(err)
	}
	c.stop(1)
	c.propose(2, "without node 1")
	join(4)
	if err := c.nodes[2].g.ChangeMembers(ctx, MemberChange{4, Voter}, MemberChange{1, Removed}); err != nil {
		t.Fatal(err)
	}
	c.propose(4, "from node 4")
	c.converged(2, 3, 4)
	within(t, 10*time.Second, "the membership is 2, 3, 4", func() bool {
		return slices.Equal(c.nodes[4].g.Status().Voters, []uint64{2, 3, 4})
	})
}

// TestLeadersSpread: when all groups are led by one node, they move by themselves.
func TestLeadersSpread(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	const groups = 9
	for i := range groups {
		for id := uint64(1); id <= 3; id++ {
			if _, err := c.nodes[id].m.CreateReplicatedGroup(GroupID(fmt.Sprintf("g%d", i)), newRecorder(0), 1, 2, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(bg, 60*time.Second)
	defer cancel()
	for i := range groups {
		g, _ := c.nodes[1].m.GetGroup(GroupID(fmt.Sprintf("g%d", i)))
		if _, err := g.Propose(ctx, []byte("x"), nil); err != nil && !errors.Is(err, ErrUnknownOutcome) {
			t.Fatal(err)
		}
		if err := g.TransferLeader(ctx, 1); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 60*time.Second, "every node leads three groups, more or less", func() bool {
		for id := uint64(1); id <= 3; id++ {
			n := 0
			for _, g := range c.nodes[id].m.opened() {
				if g.Status().State == "leader" {
					n++
				}
			}
			if n < 2 || n > 4 {
				return false
			}
		}
		return true
	})
}

// TestQuietGroupsSleep: without anything to do no messages flow; a group that
// sleeps answers, and notices that its leader is gone.
func TestQuietGroupsSleep(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	c.propose(1, "x")
	asleep := func(ids ...uint64) bool {
		for _, id := range ids {
			g := c.nodes[id].g
			g.mu.Lock()
			sleeps := g.rep.Load().sleep.asleep.Load()
			g.mu.Unlock()
			if !sleeps {
				return false
			}
		}
		return true
	}
	within(t, 20*time.Second, "all replicas sleep", func() bool { return asleep(1, 2, 3) })
	c.propose(2, "y")
	if err := c.nodes[3].g.ReadBarrier(bg); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "all replicas sleep again", func() bool { return asleep(1, 2, 3) })
	leader := c.leader(1, 2, 3)
	c.stop(leader)
	c.propose(leader%3+1, "z")
	rest := []uint64{leader%3 + 1, (leader+1)%3 + 1}
	c.converged(rest...)
}

func TestMetrics(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	c.propose(1, "x")
	if err := c.nodes[c.leader(1, 2, 3)].g.TransferLeader(bg, 1); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c.nodes[1].m.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for _, name := range []string{"vde_raft_term", "vde_raft_leader", "vde_raft_commit_index", "vde_raft_applied_index", "vde_raft_sync_seconds", "vde_raft_leader_changes_total", "vde_raft_elections_total"} {
		if values[name] < 1 {
			t.Errorf("%s is %v", name, values[name])
		}
	}
	for _, name := range []string{"vde_raft_member_lag", "vde_raft_disk_full", "vde_raft_bad_messages_total", "vde_raft_waiting_reads"} {
		if _, ok := values[name]; !ok {
			t.Errorf("%s is not there", name)
		}
	}
}

func TestManyGroupsElectLeaders(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	const groups = 40
	for i := range groups {
		for id := uint64(1); id <= 3; id++ {
			if _, err := c.nodes[id].m.CreateReplicatedGroup(GroupID(fmt.Sprintf("g%d", i)), newRecorder(0), 1, 2, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(bg, 30*time.Second)
	defer cancel()
	for i := range groups {
		g, _ := c.nodes[uint64(i%3+1)].m.GetGroup(GroupID(fmt.Sprintf("g%d", i)))
		for {
			_, err := g.Propose(ctx, []byte("x"), nil)
			if err == nil {
				break
			}
			if !errors.Is(err, ErrUnknownOutcome) || ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
}
