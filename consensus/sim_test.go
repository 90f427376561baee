package consensus

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/transport"
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
	nodes  []*simNode // node i has id i+1
	groups []GroupID
	wire   []simMessage
	// blocked[from][to]: messages vanish.
	blocked map[[2]uint64]bool
	now     int64 // the step
	clients int

	votes     map[string]uint64               // by group, voter and term
	leaders   map[string]uint64               // by group and term
	committed map[GroupID]map[uint64]simEntry // what the first to apply an index applied
	applied   map[simFirst]int64              // the step in which a command was first applied
	ops       map[GroupID][]*simOp
	values    int
	asleep    int // times that a replica was seen asleep
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

type simNode struct {
	s    *sim
	id   uint64
	mem  *vfs.MemFS
	m    *Manager
	sms  map[GroupID]*simMachine
	disk map[GroupID]simState // what the state machines hold durably
	up   bool
	life int

	// crashIn counts file operations to a crash; 0: none is planned.
	crashIn   int
	crashed   *vfs.MemFS // what is left after it
	crashDisk map[GroupID]simState
}

// simState is a state machine's state: registers.
type simState struct {
	Applied uint64
	KV      map[string]string
}

func (s simState) clone() simState { return simState{s.Applied, maps.Clone(s.KV)} }

// simMachine is the state machine of one group on one node.
type simMachine struct {
	n     *simNode
	group GroupID
	simState
}

func (m *simMachine) AppliedIndex() uint64 { return m.Applied }

func (m *simMachine) Apply(index, term uint64, cmd []byte, local any) (any, error) {
	s := m.n.s
	if index <= m.Applied {
		s.fail("group %s node %d: entry %d is applied after entry %d", m.group, m.n.id, index, m.Applied)
	}
	m.Applied = index
	s.checkApply(m, index, simEntry{term, string(cmd)})
	key, value, _ := strings.Cut(string(cmd), "=")
	m.KV[key] = value
	return value, nil
}

func (m *simMachine) Snapshot() (io.ReadCloser, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(m.simState)
	return io.NopCloser(&b), err
}

func (m *simMachine) Restore(index, term uint64, data io.Reader) error {
	var st simState
	if err := gob.NewDecoder(data).Decode(&st); err != nil {
		return err
	}
	if st.KV == nil {
		st.KV = map[string]string{}
	}
	st.Applied = index
	m.simState = st
	if m.n.crashed == nil {
		m.n.disk[m.group] = st.clone()
	}
	return nil
}

func newSim(cfg simConfig) *sim {
	s := &sim{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.seed, 1)), blocked: map[[2]uint64]bool{},
		leaders: map[string]uint64{}, votes: map[string]uint64{}, committed: map[GroupID]map[uint64]simEntry{}, ops: map[GroupID][]*simOp{}, applied: map[simFirst]int64{},
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
		if !n.up || n.crashIn != 0 {
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

// MaybeError pulls the plug of the node before one of its file operations.
func (n *simNode) MaybeError(op errorfs.Op) error {
	if n.crashIn == 0 || op.Kind.ReadOrWrite() == errorfs.OpIsRead {
		return nil
	}
	if n.crashIn--; n.crashIn == 0 && n.crashed == nil {
		n.pull()
	}
	return nil
}

func (n *simNode) String() string { return fmt.Sprintf("node %d", n.id) }

// pull keeps what a crash at this moment leaves: everything that was synced, and
// of the rest all or nothing.
func (n *simNode) pull() {
	n.crashed = n.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100 * n.s.rng.IntN(2), RNG: n.s.rng})
	n.crashDisk = map[GroupID]simState{}
	for g, st := range n.disk {
		n.crashDisk[g] = st.clone()
	}
}

// down ends the node's life, with what pull kept.
func (n *simNode) down() {
	if n.crashed == nil {
		n.pull()
	}
	n.mem, n.disk = n.crashed, n.crashDisk
	n.crashed, n.crashDisk, n.crashIn = nil, nil, 0
	n.m, n.up = nil, false
	n.life++
	n.s.log("node %d is down", n.id)
}

// start opens the node's groups.
func (n *simNode) start() {
	s := n.s
	n.sms = map[GroupID]*simMachine{}
	m, err := Open(Config{
		FS: errorfs.Wrap(n.mem, n), Dir: "raft", NodeID: n.id, Transport: &simTransport{n: n, life: n.life},
		SegmentSize: 1 << 10, ElectionTicks: 10, HeartbeatTicks: 2, sleepTicks: 5, manual: true, fault: s.cfg.fault,
	})
	if err != nil {
		s.fail("node %d does not open: %v", n.id, err)
		return
	}
	n.m, n.up = m, true
	for _, g := range s.groups {
		st, ok := n.disk[g]
		if !ok {
			st = simState{KV: map[string]string{}}
		}
		sm := &simMachine{n: n, group: g, simState: st.clone()}
		n.sms[g] = sm
		group, err := m.OpenGroup(g, sm)
		if err != nil {
			s.fail("node %d does not open group %s: %v", n.id, g, err)
			continue
		}
		// A group of which this node is the only voter opens as one that is alone.
		if _, err := group.ensureReplica(); err != nil {
			s.fail("node %d group %s: %v", n.id, g, err)
		}
	}
	s.log("node %d is up", n.id)
}

// simTransport puts messages on the wire.
type simTransport struct {
	n    *simNode
	life int
}

func (t *simTransport) Start(transport.Handler) error { return nil }
func (t *simTransport) SetPeer(uint64, string)        {}
func (t *simTransport) Close() error                  { return nil }

// alive: what a node sends after its crash never leaves it.
func (t *simTransport) alive() bool { return t.n.life == t.life && t.n.crashed == nil }

func (t *simTransport) Send(group string, m *pb.Message) bool {
	if t.alive() {
		t.n.s.checkVote(t.n.id, group, m)
		t.n.s.wire = append(t.n.s.wire, simMessage{from: t.n.id, to: m.GetTo(), group: group, m: proto.Clone(m).(*pb.Message)})
	}
	return true
}

func (t *simTransport) SendSnapshot(_ context.Context, group string, m *pb.Message, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	if t.alive() {
		t.n.s.wire = append(t.n.s.wire, simMessage{from: t.n.id, to: m.GetTo(), group: group, m: proto.Clone(m).(*pb.Message), snapshot: b})
	}
	return nil
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
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	switch p := s.rng.IntN(1000); {
	case p < 470:
		s.deliver()
	case p < 530:
		s.on(n, func() {
			for _, g := range n.replicas() {
				_ = g.stepReplica(g.rep.Load(), g.rep.Load().tick)
			}
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
	default:
		s.on(n, func() { // a burst of time for one node: somebody's patience ends
			for range s.rng.IntN(15) {
				for _, g := range n.replicas() {
					_ = g.stepReplica(g.rep.Load(), g.rep.Load().tick)
				}
			}
		})
	}
}

// work lets a node's disk or state machine get on.
func (s *sim) work(n *simNode) {
	s.on(n, func() {
		g := n.pick(s.rng)
		if g == nil {
			return
		}
		rep := g.rep.Load()
		switch s.rng.IntN(5) {
		case 0, 1:
			g.appendOnce(rep)
		case 2, 3:
			g.applyOnce(rep)
		default:
			if len(g.drive.snapOut) > 0 {
				m := g.drive.snapOut[0]
				g.drive.snapOut = g.drive.snapOut[1:]
				g.sendSnapshot(rep, m)
			}
		}
	})
}

// deliver takes a message off the wire: any one, most often an old one.
func (s *sim) deliver() {
	if len(s.wire) == 0 {
		return
	}
	i := 0
	if s.rng.IntN(4) == 0 {
		i = s.rng.IntN(len(s.wire))
	}
	msg := s.wire[i]
	chance := s.rng.IntN(100)
	// No transport doubles a message; the engine copes with it all the same, apart
	// from proposals on their way to the leader.
	if s.healing || chance >= 4 || msg.m.GetType() == pb.MsgProp {
		s.wire = slices.Delete(s.wire, i, i+1) // else it stays, and comes again
	}
	if !s.healing && (chance > 94 || s.blocked[[2]uint64{msg.from, msg.to}]) {
		return // lost
	}
	if msg.to < 1 || int(msg.to) > len(s.nodes) {
		return
	}
	n := s.node(msg.to)
	s.on(n, func() {
		g, ok := n.m.GetGroup(GroupID(msg.group))
		if !ok {
			return
		}
		m := proto.Clone(msg.m).(*pb.Message)
		if msg.snapshot != nil {
			_ = g.receiveSnapshot(g.rep.Load(), m, bytes.NewReader(msg.snapshot))
			return
		}
		_ = g.stepReplica(g.rep.Load(), func() error { return g.rep.Load().step(m) })
	})
}

// client makes a client ask a node for something.
func (s *sim) client(n *simNode) {
	s.on(n, func() {
		g := n.pick(s.rng)
		if g == nil {
			return
		}
		rep := g.rep.Load()
		op := &simOp{group: g.name, node: n.id, life: n.life, key: string(rune('a' + s.rng.IntN(3))), t: newTicket(nil), call: s.now, client: s.clients}
		var err error
		if s.rng.IntN(3) > 0 {
			s.values++
			op.value = strconv.Itoa(s.values)
			err = g.stepReplica(rep, func() error { return rep.propose([]byte(op.key+"="+op.value), op.t) })
		} else {
			err = g.stepReplica(rep, func() error { return rep.read(op.t) })
		}
		if errors.Is(err, raft.ErrProposalDropped) {
			return
		}
		s.clients++
		s.ops[g.name] = append(s.ops[g.name], op)
	})
}

// answers collects what a node has to say to its clients.
func (s *sim) answers(n *simNode) {
	for _, name := range s.groups {
		for _, op := range s.ops[name] {
			if op.node != n.id || op.life != n.life || op.done != 0 || op.t == nil {
				continue
			}
			select {
			case o := <-op.t.done:
				op.t = nil
				if errors.Is(o.err, ErrDropped) {
					op.lost = true
				}
				if o.err != nil || n.crashed != nil {
					continue // nobody knows
				}
				op.done = s.now
				if op.value == "" {
					op.result = n.sms[name].KV[op.key]
				}
			default:
			}
		}
	}
}

// persist makes a node's state machines durable, log first, and lets it compact.
func (s *sim) persist(n *simNode) {
	s.on(n, func() {
		if err := n.m.SyncAll(); err != nil {
			s.fail("node %d: SyncAll: %v", n.id, err)
		}
		if n.crashed != nil {
			return
		}
		for name, sm := range n.sms {
			n.disk[name] = sm.clone()
		}
		for _, g := range n.replicas() {
			if err := g.Compact(n.disk[g.name].Applied); err != nil {
				s.fail("node %d: Compact: %v", n.id, err)
			}
		}
	})
}

// cut makes a partition, in one direction or both.
func (s *sim) cut() {
	one := uint64(1 + s.rng.IntN(len(s.nodes)))
	in, out := s.rng.IntN(3) > 0, s.rng.IntN(3) > 0
	for _, n := range s.nodes {
		if n.id != one {
			s.blocked[[2]uint64{one, n.id}] = out
			s.blocked[[2]uint64{n.id, one}] = in
		}
	}
	s.log("node %d is cut off, in %v out %v", one, in, out)
}

func (s *sim) changeMembers(n *simNode) {
	s.on(n, func() {
		g := n.pick(s.rng)
		if g == nil || len(s.nodes) == 3 && s.rng.IntN(4) > 0 {
			return
		}
		cc := &pb.ConfChangeV2{}
		voters := g.rep.Load().store.membership().GetVoters()
		for range 1 + s.rng.IntN(2) {
			id := uint64(1 + s.rng.IntN(len(s.nodes)))
			kind := pb.ConfChangeAddNode
			if len(voters) > 2 && s.rng.IntN(2) == 0 {
				kind = []pb.ConfChangeType{pb.ConfChangeRemoveNode, pb.ConfChangeAddLearnerNode}[s.rng.IntN(2)]
			}
			cc.Changes = append(cc.Changes, &pb.ConfChangeSingle{Type: kind.Enum(), NodeId: new(id)})
		}
		rep := g.rep.Load()
		_ = g.stepReplica(rep, func() error { return rep.proposeConf(cc, newTicket(nil)) })
	})
}

// checkApply: no two nodes apply different things at one index.
func (s *sim) checkApply(m *simMachine, index uint64, e simEntry) {
	if first, ok := s.committed[m.group][index]; ok && first != e {
		s.fail("group %s: node %d applied %q (term %d) as entry %d, another one %q (term %d)",
			m.group, m.n.id, e.cmd, e.term, index, first.cmd, first.term)
	}
	s.committed[m.group][index] = e
	if key := (simFirst{m.group, e.cmd}); s.applied[key] == 0 {
		s.applied[key] = s.now
	}
}

// checkVote: a node votes for one candidate in a term, however often it crashes.
func (s *sim) checkVote(from uint64, group string, m *pb.Message) {
	if m.GetType() != pb.MsgVoteResp || m.GetReject() {
		return
	}
	key := fmt.Sprintf("%s/%d/%d", group, from, m.GetTerm())
	if who, voted := s.votes[key]; voted && who != m.GetTo() {
		s.fail("group %s: node %d votes for node %d and for node %d in term %d", group, from, who, m.GetTo(), m.GetTerm())
	}
	s.votes[key] = m.GetTo()
}

// check verifies the invariants that hold at every moment.
func (s *sim) check() {
	for _, n := range s.nodes {
		if !n.up {
			continue
		}
		for _, g := range n.replicas() {
			rep := g.rep.Load()
			if rep.sleep.asleep.Load() {
				s.asleep++
			}
			if rep.state != raft.StateLeader {
				continue
			}
			st := rep.rn.BasicStatus()
			key := fmt.Sprintf("%s/%d", g.name, st.HardState.GetTerm())
			who, known := s.leaders[key]
			if known && who != n.id {
				s.fail("group %s has two leaders in term %d: %d and %d", g.name, st.HardState.GetTerm(), who, n.id)
			}
			if !known {
				s.leaders[key] = n.id
				s.checkCompleteness(n, g)
			}
		}
	}
	if s.now%25 == 0 {
		s.checkLogs()
	}
}

// logTerms returns the terms of a node's log, the entries included that are still
// on their way to it.
func logTerms(g *Group) (first uint64, terms []uint64) {
	first = g.log.FirstIndex()
	for i := first; i <= g.log.LastIndex(); i++ {
		term, err := g.log.Term(i)
		if err != nil {
			break
		}
		terms = append(terms, term)
	}
	for _, m := range g.rep.Load().appendQ {
		for _, e := range m.GetEntries() {
			if e.GetIndex() >= first && e.GetIndex()-first <= uint64(len(terms)) {
				terms = append(terms[:e.GetIndex()-first], e.GetTerm())
			}
		}
	}
	return first, terms
}

// checkCompleteness: a new leader has every committed entry.
func (s *sim) checkCompleteness(n *simNode, g *Group) {
	first, terms := logTerms(g)
	for index, e := range s.committed[g.name] {
		if index < first {
			continue
		}
		if i := index - first; i >= uint64(len(terms)) || terms[i] != e.term {
			s.fail("group %s: the new leader %d does not have entry %d of term %d, which is committed", g.name, n.id, index, e.term)
		}
	}
}

// checkLogs: where two logs have an entry of the same index and term, they are the
// same up to there.
func (s *sim) checkLogs() {
	for _, name := range s.groups {
		var logs []map[uint64]simEntry
		for _, n := range s.nodes {
			if !n.up {
				continue
			}
			g, ok := n.m.GetGroup(name)
			if !ok {
				continue
			}
			l := map[uint64]simEntry{}
			es, err := g.log.Entries(nil, g.log.FirstIndex(), g.log.LastIndex()+1, 1<<30)
			if err != nil && g.log.LastIndex() >= g.log.FirstIndex() {
				s.fail("node %d group %s: %v", n.id, name, err)
			}
			for _, e := range es {
				l[e.Index] = simEntry{e.Term, string(e.Data)}
			}
			logs = append(logs, l)
		}
		for i, a := range logs {
			for _, b := range logs[:i] {
				match := uint64(0)
				for index, e := range a {
					if o, ok := b[index]; ok && o.term == e.term {
						match = max(match, index)
					}
				}
				for index, e := range a {
					if o, ok := b[index]; ok && index <= match && o != e {
						s.fail("group %s: two logs have the same entry %d and different entries %d (%q, %q)", name, match, index, e.cmd, o.cmd)
					}
				}
			}
		}
	}
}

// comeToRest heals everything and waits until all groups have a leader and all
// voters have applied the same.
func (s *sim) comeToRest() {
	s.healing = true
	s.blocked = map[[2]uint64]bool{}
	for _, n := range s.nodes {
		n.crashIn = 0
		if !n.up {
			n.start()
		}
	}
	for round := range 4000 {
		if s.failed != nil {
			return
		}
		s.now++
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

// checkClients: what was acknowledged is there, and the registers were
// linearizable.
func (s *sim) checkClients() {
	for _, name := range s.groups {
		count := map[string]int{}
		for _, e := range s.committed[name] {
			count[e.cmd]++
		}
		history := map[string][]porcupine.Operation{}
		for _, op := range s.ops[name] {
			cmd := op.key + "=" + op.value
			switch {
			case op.value != "" && op.done != 0 && count[cmd] == 0:
				s.fail("group %s: %q was acknowledged by node %d at step %d and is lost", name, cmd, op.node, op.done)
			case op.value != "" && count[cmd] > 1:
				s.fail("group %s: %q is there %d times", name, cmd, count[cmd])
			case op.lost && count[cmd] > 0:
				s.fail("group %s: %q was said to be dropped and is there", name, cmd)
			}
			if op.value == "" && op.done == 0 || op.value != "" && count[cmd] == 0 {
				continue // a read without an answer, a write that never was
			}
			// A write has happened when the first node applied it, whether its client was
			// told or not.
			end := op.done
			if op.value != "" {
				end = s.applied[simFirst{name, cmd}]
			}
			// Two points in time per step: asked before answered.
			history[op.key] = append(history[op.key], porcupine.Operation{
				ClientId: op.client, Input: *op, Output: op.result, Call: 2 * op.call, Return: 2*end + 1,
			})
		}
		for key, ops := range history {
			if porcupine.CheckOperationsTimeout(register, ops, 10*time.Second) == porcupine.Illegal {
				s.fail("group %s: register %s is not linearizable", name, key)
			}
		}
	}
}

var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		op := input.(simOp)
		if op.value != "" {
			return true, op.value
		}
		return output == state, state
	},
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
	var done, acked, leaders, asleep int
	for seed := from; endless && time.Now().Before(until) || !endless && seed < from+seeds; seed++ {
		s, err := simulate(simConfig{seed: uint64(seed), steps: simSteps})
		if err != nil {
			t.Fatalf("%v\n%s", err, strings.Join(s.trace, "\n"))
		}
		done++
		leaders += len(s.leaders)
		asleep += s.asleep
		for _, ops := range s.ops {
			for _, op := range ops {
				if op.done != 0 {
					acked++
				}
			}
		}
	}
	t.Logf("%d seeds: %d answers, %d terms with a leader, %d times asleep", done, acked, leaders, asleep)
	if acked < 10*done || leaders < 2*done || asleep < done {
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
		from  uint64 // a seed that is known to notice, to save time; any range will do
	}{
		{"the vote is not synced", plantedFaults{skipStateSync: true}, 1},
		{"an append is acknowledged too early", plantedFaults{ackBeforeSync: true}, 4},
		{"an entry is applied twice", plantedFaults{applyTwice: true}, 1},
		{"conflicting entries are not removed", plantedFaults{skipTruncate: true}, 45},
		{"reads ask nobody", plantedFaults{staleReads: true}, 3},
		{"a change of membership is not saved", plantedFaults{forgetConfState: true}, 40},
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
