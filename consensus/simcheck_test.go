package consensus

import (
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

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
			s.noteChange(g, rep.store.confIndex)
			if rep.state != raft.StateLeader {
				continue
			}
			st := rep.rn.BasicStatus()
			key := fmt.Sprintf("%s/%d", g.name, st.HardState.GetTerm())
			who, known := s.leaders[key]
			if known && who != n.id {
				s.fail("group %s has two leaders in term %d: %d and %d", g.name, st.HardState.GetTerm(), who, n.id)
			}
			if saved := rep.hard.Term; saved < st.HardState.GetTerm() && !s.cfg.fault.skipStateSync {
				s.fail("group %s: node %d leads in term %d, and has saved term %d", g.name, n.id, st.HardState.GetTerm(), saved)
			}
			if !known {
				s.leaders[key] = n.id
				s.checkCompleteness(n, g)
			}
			s.newest[g.name] = max(s.newest[g.name], st.HardState.GetTerm())
		}
	}
	s.checkLeases()
	if s.now%25 == 0 {
		s.checkLogs()
	}
}

// noteChange takes note of an entry that changed the membership; it may also be the last one of a snapshot, and is then of any kind.
func (s *sim) noteChange(g *Group, index uint64) {
	if s.changes[g.name] == nil {
		s.changes[g.name] = map[uint64]bool{}
	}
	if s.changes[g.name][index] {
		return
	}
	if es, err := g.log.Entries(nil, index, index+1, 1); err == nil && len(es) == 1 && es[0].Type.IsConfChange() {
		s.changes[g.name][index] = true
	}
}

// checkMembership: a node that was started again has the membership of the last change that is part of its state. What came
// with a snapshot is left out.
func (s *sim) checkMembership(n *simNode, g *Group) {
	rep := g.rep.Load()
	for at := range s.changes[g.name] {
		if at > rep.hard.SnapIndex && at <= g.AppliedIndex() && at > rep.store.confIndex {
			s.fail("group %s: node %d has applied entry %d and has the membership of entry %d, not that of %d", g.name, n.id, g.AppliedIndex(), rep.store.confIndex, at)
			return
		}
	}
}

// checkLeases: while a leader has a lease nobody else is elected.
func (s *sim) checkLeases() {
	for _, n := range s.nodes {
		if !n.up {
			continue
		}
		for _, g := range n.replicas() {
			rep := g.rep.Load()
			if rep.state != raft.StateLeader || rep.lease.untilTerm == 0 {
				continue
			}
			st := rep.rn.BasicStatus()
			if !rep.lease.holds(&st) {
				continue
			}
			s.leased++
			if newest := s.newest[g.name]; newest > st.HardState.GetTerm() {
				s.fail("group %s: node %d has a lease in term %d, there was a leader in term %d", g.name, n.id, st.HardState.GetTerm(), newest)
			}
		}
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
	waiting := g.rep.Load().appendQ
	if w := g.drive.unfinished; w != nil { // for a disk that is full
		waiting = slices.Concat(w.msgs, waiting)
	}
	for _, m := range waiting {
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
