package consensus

import (
	"slices"

	"go.etcd.io/raft/v3"
)

// balanceTicks is how often a node looks whether it leads more groups than its
// share. Leadership moves one group at a time and node, so that it settles.
const balanceTicks = 40

// balance hands one group to another node if this one leads more than its share
// by at least two groups. The share of a group's node is one over the number of
// the group's voters, summed over the groups it votes in.
//
// Groups that this node itself uses most stay; see moveToUsers.
//
// It knows only what its own groups tell: who leads them. The node that gets the
// group is the one of its voters that leads the fewest of these.
func (m *Manager) balance() {
	me := m.cfg.NodeID
	lead := map[uint64]int{}
	share := 0.0
	type candidate struct {
		g      *Group
		rep    *replica
		voters []uint64
	}
	var mine []candidate
	for _, g := range m.opened() {
		rep := g.rep.Load()
		if rep == nil {
			continue
		}
		g.mu.Lock()
		leader, state, settled := rep.leader, rep.state, rep.settledHere()
		g.mu.Unlock()
		voters := rep.store.membership().GetVoters()
		if !slices.Contains(voters, me) || rep.store.inJoint() {
			continue
		}
		share += 1 / float64(len(voters))
		lead[leader]++
		if state == raft.StateLeader && !settled {
			mine = append(mine, candidate{g, rep, voters})
		}
	}
	if float64(lead[me]) < share+1 {
		return
	}
	for _, c := range mine {
		to := me
		for _, v := range c.voters {
			if lead[v] < lead[to]-1 && c.rep.healthy(c.g, v) {
				to = v
			}
		}
		if to != me {
			m.cfg.Logger.Debugf("raft: handing group %s to node %d, which leads %d groups, this one %d", c.g.name, to, lead[to], lead[me])
			_ = c.g.stepReplica(c.rep, func() error { return c.rep.transfer(to) })
			return
		}
	}
}

// healthy reports whether the follower has everything and was heard of lately.
func (r *replica) healthy(g *Group, id uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	pr, ok := r.rn.Status().Progress[id]
	return ok && pr.RecentActive && pr.Match+16 >= g.last.Load()
}
