package consensus

import (
	cryptorand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// The simulator runs a cluster of several groups on one goroutine: the groups,
// logs and hard states are the real ones, on crashable memory filesystems; time,
// network and the speed of disks are decided by a random number generator, so
// that one seed replays a run exactly. After every step the invariants of Raft are
// checked, at the end that the cluster comes to rest, that nothing acknowledged is
// lost, and that the registers the clients used are linearizable.

// simConfig says what may happen.
type simConfig struct {
	seed  uint64
	steps int
	fault plantedFaults
}

type sim struct {
	cfg    simConfig
	rng    *rand.Rand
	more   *rand.Rand // for what was thought of later, so that seeds stay what they were as far as can be
	nodes  []*simNode // node i has id i+1
	groups []GroupID
	wire   []simMessage
	// blocked[from][to]: messages vanish.
	blocked map[[2]uint64]bool
	now     int64     // the step
	clock   time.Time // what leases are measured with
	clients int

	votes     map[string]uint64               // by group, voter and term
	leaders   map[string]uint64               // by group and term
	changes   map[GroupID]map[uint64]bool     // entries that changed the membership
	newest    map[GroupID]uint64              // term in which there was a leader
	leased    int                             // leaders with a lease, over all steps
	committed map[GroupID]map[uint64]simEntry // what the first to apply an index applied
	applied   map[simFirst]int64              // the step in which a command was first applied
	ops       map[GroupID][]*simOp
	values    int
	asleep    int    // times that a replica was seen asleep
	snapshots uint64 // that were sent
	resumed   int    // times that a snapshot went on behind what was there before a crash
	healing   bool
	failed    error
	trace     []string
}

type simEntry struct {
	term uint64
	cmd  string
}

// simFirst is where and when a command was first applied.
type simFirst struct {
	group GroupID
	cmd   string
}

type simMessage struct {
	from, to uint64
	group    string
	m        *pb.Message
	snapshot []byte // with a MsgSnap
	id       uint64 // of the snapshot
	begun    bool   // the receiver has crashed in the middle of it
}

// simOp is what a client asked for.
type simOp struct {
	group      GroupID
	node       uint64
	life       int
	key        string
	value      string // "" for a read
	t          *ticket
	call, done int64 // done 0: not answered
	result     string
	lost       bool // certainly not done
	client     int
}

func newSim(cfg simConfig) *sim {
	s := &sim{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.seed, 1)), more: rand.New(rand.NewPCG(cfg.seed, 2)), blocked: map[[2]uint64]bool{},
		leaders: map[string]uint64{}, newest: map[GroupID]uint64{}, changes: map[GroupID]map[uint64]bool{}, votes: map[string]uint64{}, committed: map[GroupID]map[uint64]simEntry{}, ops: map[GroupID][]*simOp{}, applied: map[simFirst]int64{},
	}
	n := 3 + 2*s.rng.IntN(2)
	for i := range n {
		s.nodes = append(s.nodes, &simNode{s: s, id: uint64(i + 1), mem: vfs.NewCrashableMem(), disk: map[GroupID]simState{}})
	}
	for _, n := range s.nodes {
		n.start()
	}
	for g := range 1 + s.rng.IntN(3) {
		s.createGroup(GroupID(fmt.Sprintf("g%d", g)))
	}
	return s
}

// createGroup makes a group of three voters; the other nodes may join later.
func (s *sim) createGroup(name GroupID) {
	for _, n := range s.nodes {
		if !n.up || n.crashIn != 0 || n.full {
			return // it is created when all are there
		}
	}
	s.groups = append(s.groups, name)
	s.committed[name] = map[uint64]simEntry{}
	for _, n := range s.nodes {
		sm := &simMachine{n: n, group: name, simState: simState{KV: map[string]string{}}}
		n.sms[name] = sm
		var err error
		if n.id <= 3 {
			_, err = n.m.CreateReplicatedGroup(name, sm, 1, 2, 3)
		} else {
			_, err = n.m.JoinGroup(name, sm)
		}
		if err != nil {
			s.fail("creating %s on node %d: %v", name, n.id, err)
		}
	}
}

func (s *sim) fail(format string, args ...any) {
	if s.failed == nil {
		s.failed = fmt.Errorf("seed %d, step %d: %s", s.cfg.seed, s.now, fmt.Sprintf(format, args...))
	}
}

func (s *sim) log(format string, args ...any) {
	if len(s.trace) > 400 {
		s.trace = s.trace[200:]
	}
	s.trace = append(s.trace, fmt.Sprintf("%d: %s", s.now, fmt.Sprintf(format, args...)))
}

func (s *sim) node(id uint64) *simNode { return s.nodes[id-1] }

// on runs f on a node that is up, and lets it crash if the plug was pulled.
func (s *sim) on(n *simNode, f func()) {
	if !n.up {
		return
	}
	f()
	for _, g := range n.m.opened() {
		if err := g.Err(); err != nil && n.crashed == nil {
			s.fail("node %d: %v", n.id, err)
		}
	}
	s.answers(n)
	if n.crashed != nil {
		n.down()
	}
}

// replicas returns the node's groups, in order.
func (n *simNode) replicas() []*Group {
	gs := n.m.opened()
	slices.SortFunc(gs, func(a, b *Group) int { return strings.Compare(string(a.name), string(b.name)) })
	return gs
}

func (n *simNode) pick(rng *rand.Rand) *Group {
	gs := n.replicas()
	if len(gs) == 0 {
		return nil
	}
	return gs[rng.IntN(len(gs))]
}

func (s *sim) run() error {
	for s.now = 1; s.now <= int64(s.cfg.steps) && s.failed == nil; s.now++ {
		s.step()
		s.check()
	}
	if s.failed == nil {
		s.comeToRest()
	}
	if s.failed == nil {
		s.checkClients()
	}
	return s.failed
}

func (s *sim) step() {
	if s.more.IntN(25) == 0 {
		s.persist(s.nodes[s.more.IntN(len(s.nodes))]) // often, so that followers need snapshots
	}
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	switch p := s.rng.IntN(1000); {
	case p < 470:
		s.deliver()
	case p < 530:
		s.on(n, func() {
			s.tick(n)
		})
	case p < 800:
		s.work(n)
	case p < 920:
		s.client(n)
	case p < 930:
		s.persist(n)
	case p < 933:
		s.on(n, n.pull)
	case p < 937:
		if n.up {
			n.crashIn = 1 + s.rng.IntN(8) // in the middle of what it does next
		}
	case p < 957:
		if !n.up {
			n.start()
		}
	case p < 961:
		s.cut()
	case p < 972:
		s.blocked = map[[2]uint64]bool{}
	case p < 979:
		s.changeMembers(n)
	case p < 982:
		if len(s.groups) < 4 {
			s.createGroup(GroupID(fmt.Sprintf("g%d", len(s.groups))))
		}
	case p < 986:
		s.on(n, func() {
			if g := n.pick(s.rng); g != nil {
				to := uint64(1 + s.rng.IntN(len(s.nodes)))
				_ = g.stepReplica(g.rep.Load(), func() error { return g.rep.Load().transfer(to) })
			}
		})
	case p < 990:
		n.full = n.up && s.rng.IntN(4) == 0
	default:
		s.on(n, func() { // a burst of time for one node: somebody's patience ends
			for range s.rng.IntN(15) {
				s.tick(n)
			}
		})
	}
}

// tick lets time pass for one node. The clock that leases are measured with goes on as little as it may: no node's ticks are faster.
func (s *sim) tick(n *simNode) {
	if least := n.ticked.Add(time.Second); s.clock.Before(least) {
		s.clock = least
	}
	n.ticked = s.clock
	for _, g := range n.replicas() {
		_ = g.stepReplica(g.rep.Load(), g.rep.Load().tick)
	}
}

// comeToRest heals everything and waits until all groups have a leader and all
// voters have applied the same.
func (s *sim) comeToRest() {
	s.healing = true
	s.blocked = map[[2]uint64]bool{}
	for _, n := range s.nodes {
		n.crashIn, n.full = 0, false
		if !n.up {
			n.start()
		}
	}
	for round := range 4000 {
		if s.failed != nil {
			return
		}
		s.now++
		s.clock = s.clock.Add(time.Second)
		for range 20 {
			s.deliver()
		}
		for _, n := range s.nodes {
			s.on(n, func() {
				for _, g := range n.replicas() {
					rep := g.rep.Load()
					if round%3 == 0 {
						_ = g.stepReplica(rep, rep.tick)
					}
					g.appendOnce(rep)
					g.applyOnce(rep)
					if len(g.drive.snapOut) > 0 {
						m := g.drive.snapOut[0]
						g.drive.snapOut = g.drive.snapOut[1:]
						g.sendSnapshot(rep, m)
					}
				}
			})
		}
		s.check()
		if round%10 == 9 && s.atRest() {
			return
		}
	}
	s.fail("the cluster does not come to rest: %s", s.describe())
}

func (s *sim) atRest() bool {
	for _, name := range s.groups {
		leader := (*Group)(nil)
		for _, n := range s.nodes {
			g, ok := n.m.GetGroup(name)
			if ok && g.rep.Load().state == raft.StateLeader {
				if leader != nil {
					return false
				}
				leader = g
			}
		}
		if leader == nil || len(leader.rep.Load().store.membership().GetVotersOutgoing()) > 0 {
			return false
		}
		last := leader.log.LastIndex()
		for _, id := range leader.rep.Load().store.membership().GetVoters() {
			g, _ := s.node(id).m.GetGroup(name)
			if g.AppliedIndex() != last {
				return false
			}
		}
	}
	return true
}

func (s *sim) describe() string {
	var b strings.Builder
	for _, n := range s.nodes {
		for _, g := range n.replicas() {
			fmt.Fprintf(&b, "\n  node %d %+v", n.id, g.Status())
		}
	}
	return b.String()
}

// seeded makes the engine's random numbers, which it takes from crypto/rand, those
// of a seed, until the returned function is called.
func seeded(seed uint64) (restore func()) {
	old := cryptorand.Reader
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	cryptorand.Reader = rand.NewChaCha8(key)
	return func() { cryptorand.Reader = old }
}

func simulate(cfg simConfig) (*sim, error) {
	defer seeded(cfg.seed)()
	s := newSim(cfg)
	return s, s.run()
}

const simSteps = 2000

// TestSim runs SIM_SEEDS seeds (500, fewer under the race detector) from SIM_FROM (1); SIM_FOR is a duration to go
// on for instead.
func TestSim(t *testing.T) {
	seeds, from := 500, 1
	if raceEnabled {
		seeds = 40 // there is one goroutine: nothing can race, it only takes longer
	}
	_, _ = fmt.Sscan(os.Getenv("SIM_SEEDS"), &seeds)
	_, _ = fmt.Sscan(os.Getenv("SIM_FROM"), &from)
	until, endless := time.Time{}, false
	if d, err := time.ParseDuration(os.Getenv("SIM_FOR")); err == nil {
		until, endless = time.Now().Add(d), true
	}
	var done, acked, leaders, asleep, leased, resumed int
	var snapshots uint64
	for seed := from; endless && time.Now().Before(until) || !endless && seed < from+seeds; seed++ {
		s, err := simulate(simConfig{seed: uint64(seed), steps: simSteps})
		if err != nil {
			t.Fatalf("%v\n%s", err, strings.Join(s.trace, "\n"))
		}
		done++
		leaders += len(s.leaders)
		asleep += s.asleep
		leased += s.leased
		resumed += s.resumed
		snapshots += s.snapshots
		for _, ops := range s.ops {
			for _, op := range ops {
				if op.done != 0 {
					acked++
				}
			}
		}
	}
	t.Logf("%d seeds: %d answers, %d terms with a leader, %d times asleep, %d steps with a lease, %d snapshots, %d gone on with", done, acked, leaders, asleep, leased, snapshots, resumed)
	if acked < 10*done || leaders < 2*done || asleep < done || leased < done || snapshots < uint64(done)/10 || done >= 500 && resumed == 0 {
		t.Fatal("so little happened that the checks mean nothing")
	}
}

func TestSimReplaysASeedExactly(t *testing.T) {
	for seed := range uint64(5) {
		a, errA := simulate(simConfig{seed: seed, steps: simSteps})
		b, errB := simulate(simConfig{seed: seed, steps: simSteps})
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if a.now != b.now || !slices.Equal(a.trace, b.trace) || a.describe() != b.describe() {
			t.Fatalf("seed %d ran in two ways", seed)
		}
	}
}

// TestPlantedFaultsAreCaught: each way to break the replica is noticed by the
// simulator's checks.
func TestPlantedFaultsAreCaught(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault plantedFaults
		from  uint64 // a seed that is known to notice soon, to save time
	}{
		{"the vote is not synced", plantedFaults{skipStateSync: true}, 1},
		{"others are asked for votes too early", plantedFaults{voteLate: true}, 1},
		{"an append is acknowledged too early", plantedFaults{ackBeforeSync: true}, 20},
		{"an entry is applied twice", plantedFaults{applyTwice: true}, 1},
		{"conflicting entries are not removed", plantedFaults{skipTruncate: true}, 10},
		{"reads ask nobody", plantedFaults{staleReads: true}, 3},
		{"a change of membership is not saved", plantedFaults{forgetConfState: true}, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			const seeds = 300
			for seed := c.from; seed < c.from+seeds; seed++ {
				if _, err := simulate(simConfig{seed: seed, steps: simSteps, fault: c.fault}); err != nil {
					t.Logf("caught: %.300s", err.Error())
					return
				}
			}
			t.Fatalf("%d seeds did not notice", seeds)
		})
	}
}
