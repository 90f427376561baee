package consensus

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

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
	if msg.snapshot != nil {
		s.deliverSnapshot(n, msg)
		return
	}
	s.on(n, func() {
		g, ok := n.m.GetGroup(GroupID(msg.group))
		if !ok {
			return
		}
		m := proto.Clone(msg.m).(*pb.Message)
		_ = g.stepReplica(g.rep.Load(), func() error { return g.rep.Load().step(m) })
	})
}

// deliverSnapshot delivers a snapshot, in the middle of which the node may crash: then its
// sender has it still and goes on.
func (s *sim) deliverSnapshot(n *simNode, msg simMessage) {
	if n.up && n.crashIn == 0 && !s.healing && s.more.IntN(4) > 0 {
		n.crashIn = 1 + s.more.IntN(8)
		defer func() { n.crashIn = 0 }()
	}
	life := n.life
	s.on(n, func() {
		g, ok := n.m.GetGroup(GroupID(msg.group))
		if !ok {
			return
		}
		_ = g.receiveSnapshot(g.rep.Load(), proto.Clone(msg.m).(*pb.Message), &simSnapshot{s: s, id: msg.id, all: msg.snapshot, rest: msg.snapshot})
	})
	if n.life != life {
		msg.begun = true
	}
	if msg.begun && (n.life != life || !n.up) {
		s.wire = append(s.wire, msg)
	}
}

// padding makes a few commands fill a segment of the log: else nothing is ever given up, and nobody needs a snapshot.
var padding = strings.Repeat(".", 500)

// client makes a client ask a node for something.
func (s *sim) client(n *simNode) {
	s.on(n, func() {
		g := n.pick(s.rng)
		if g == nil {
			return
		}
		rep := g.rep.Load()
		key := string(rune('a' + s.rng.IntN(3)))
		writes, asking := 0, 1
		if s.rng.IntN(3) > 0 {
			writes = 1
			if s.more.IntN(4) == 0 {
				writes += 1 + s.more.IntN(3) // that come together
			}
			asking = writes
		}
		var ops []*simOp
		var tickets []*ticket
		for i := range asking {
			op := &simOp{group: g.name, node: n.id, life: n.life, key: key, t: newTicket(nil), call: s.now, client: s.clients + i}
			if writes > 0 {
				s.values++
				op.value = strconv.Itoa(s.values) + padding
				op.t.cmd = []byte(op.key + "=" + op.value)
			}
			ops, tickets = append(ops, op), append(tickets, op.t)
		}
		var err error
		if writes > 0 {
			err = g.stepReplica(rep, func() error { return rep.proposeTogether(tickets) })
		} else {
			err = g.stepReplica(rep, func() error { return rep.read(tickets[0]) })
		}
		if errors.Is(err, raft.ErrProposalDropped) {
			return
		}
		s.clients += asking
		s.ops[g.name] = append(s.ops[g.name], ops...)
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
