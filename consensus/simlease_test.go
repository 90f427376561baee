package consensus

import (
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3"
)

// leaseSim is a simulation of three nodes at rest, with a leader that has a lease.
func leaseSim(t *testing.T, fault plantedFaults) (s *sim, leader *simNode) {
	t.Helper()
	for seed := uint64(1); ; seed++ {
		s = newSim(simConfig{seed: seed, fault: fault})
		if len(s.nodes) != 3 {
			continue
		}
		s.comeToRest()
		if s.failed != nil {
			t.Fatal(s.failed)
		}
		for _, n := range s.nodes {
			if rep := rep0(n); rep.state == raft.StateLeader && !rep.exactRead {
				leader = n
			}
		}
		if leader != nil {
			break
		}
	}
	s.renew(t, leader)
	return s, leader
}

// rep0 is the replica of the first group.
func rep0(n *simNode) *replica { return n.replicas()[0].rep.Load() }

// turn delivers everything between some nodes and lets them work; nobody's time passes.
func (s *sim) turn(nodes ...*simNode) {
	for range 30 {
		for range 10 {
			s.deliver()
		}
		for _, n := range nodes {
			s.on(n, func() {
				for _, g := range n.replicas() {
					g.appendOnce(g.rep.Load())
					g.applyOnce(g.rep.Load())
				}
			})
		}
	}
	s.check()
}

// read reads on a node and tells whether it is answered at once.
func (s *sim) read(n *simNode) bool {
	t := newTicket(nil)
	s.on(n, func() {
		g := n.replicas()[0]
		_ = g.stepReplica(rep0(n), func() error { return rep0(n).read(t) })
	})
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

// renew has a leader ask for a lease, and get it.
func (s *sim) renew(t *testing.T, leader *simNode) {
	t.Helper()
	for range 20 {
		s.read(leader)
		s.turn(s.nodes...)
		if st := rep0(leader).rn.BasicStatus(); rep0(leader).lease.holds(&st) {
			return
		}
	}
	t.Fatal("a leader that was answered by a majority has no lease")
}

// cutOff cuts a node off from another one, both ways.
func (s *sim) cutOff(a, b *simNode) {
	s.healing = false
	s.blocked[[2]uint64{a.id, b.id}], s.blocked[[2]uint64{b.id, a.id}] = true, true
}

// TestLeaseServesReads: a leader with a lease answers at once, and one whose lease is over does not.
func TestLeaseServesReads(t *testing.T) {
	defer seeded(1)()
	s, leader := leaseSim(t, plantedFaults{})
	if !s.read(leader) {
		t.Error("a read on a leader with a lease waits")
	}
	for range 6 {
		s.tick(leader)
	}
	if s.read(leader) {
		t.Error("a read on a leader whose lease is over is answered at once")
	}
	s.renew(t, leader)
	s.on(leader, func() {
		g := leader.replicas()[0]
		_ = g.stepReplica(rep0(leader), func() error { return rep0(leader).transfer(leader.id%3 + 1) })
	})
	if s.read(leader) {
		t.Error("a read on a leader that hands over is answered at once")
	}
}

// electedBeside cuts a leader with a lease off and lets time pass for the others only, until one of them leads. It returns what the
// check says: that a leader still has a lease while another one was elected.
func electedBeside(t *testing.T, fault plantedFaults) error {
	s, leader := leaseSim(t, fault)
	var others []*simNode
	for _, n := range s.nodes {
		if n != leader {
			s.cutOff(leader, n)
			others = append(others, n)
		}
	}
	for range 200 {
		for _, n := range others {
			s.tick(n)
		}
		s.turn(others...)
		for _, n := range others {
			if rep0(n).state == raft.StateLeader {
				return s.failed
			}
		}
	}
	t.Fatal("nobody was elected without the leader")
	return nil
}

// TestLeaseEndsBeforeAnElection: when another leader is elected, the lease of the one before is over, although its own time stands still. A
// lease that is too long is noticed.
func TestLeaseEndsBeforeAnElection(t *testing.T) {
	defer seeded(1)()
	if err := electedBeside(t, plantedFaults{}); err != nil {
		t.Error(err)
	}
	if err := electedBeside(t, plantedFaults{longLease: true}); err == nil || !strings.Contains(err.Error(), "lease") {
		t.Errorf("a lease that outlives its promise is not noticed: %v", err)
	}
}

// votedAfterCrash has one follower out of the leader's reach stand for election while the other one, on which the lease rests, is started
// again. It returns what the check says.
func votedAfterCrash(t *testing.T, fault plantedFaults) error {
	s, leader := leaseSim(t, fault)
	follower, away := s.nodes[leader.id%3], s.nodes[(leader.id+1)%3]
	s.cutOff(leader, away)
	s.turn(s.nodes...)
	// The one that is away loses its patience; its request for votes is slow.
	for range 25 {
		s.tick(away)
	}
	var slow []simMessage
	s.wire = slices.DeleteFunc(s.wire, func(m simMessage) bool {
		if m.from == away.id {
			slow = append(slow, m)
		}
		return m.from == away.id
	})
	s.renew(t, leader)
	s.on(follower, follower.pull)
	follower.start()
	s.wire = append(slow, s.wire...)
	s.turn(away, follower)
	return s.failed
}

// TestPromiseSurvivesACrash: a node that was started again does not vote while a lease may rest on what it has forgotten.
func TestPromiseSurvivesACrash(t *testing.T) {
	defer seeded(1)()
	if err := votedAfterCrash(t, plantedFaults{}); err != nil {
		t.Error(err)
	}
	if err := votedAfterCrash(t, plantedFaults{forgetPromise: true}); err == nil || !strings.Contains(err.Error(), "lease") {
		t.Errorf("a vote against a promise is not noticed: %v", err)
	}
}
