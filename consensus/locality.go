package consensus

import (
	"slices"

	"go.etcd.io/raft/v3"
)

// A group works fastest where its leader is: there, reads rest on the lease and proposals need not travel. So a group that one node uses much
// more than all others is led by that node, while it does. Where nobody does, leaders are spread evenly (balance).
const (
	// localityTicks is how often a leader looks who has used it since.
	localityTicks = 10
	// localityLoad is how many proposals and reads in that time are worth moving for; localityShare is the part of them, in percent,
	// that has to come from the one node.
	localityLoad  = 50
	localityShare = 80
	// A leader stays for localityStay ticks before its group is moved for the sake of others, so that two nodes that use it in turn do not pull it to
	// and fro, and for localityRest ticks after it was last used much from its own node, before it is moved to spread leaders.
	localityStay = 60
	localityRest = 200
)

// usage counts, at a leader, who uses the group.
type usage struct {
	by   map[uint64]uint64 // proposals and reads since the last look, by node
	home uint64            // tick in which this node was last found to use the group most
	led  uint64            // tick in which it became the leader
}

// used counts proposals or reads of a node.
func (r *replica) used(by, times uint64) {
	if r.state != raft.StateLeader {
		return
	}
	if r.usage.by == nil {
		r.usage.by = map[uint64]uint64{}
	}
	r.usage.by[by] += times
}

// lookAtUsage returns the node that the group should be led by, for the use that it makes of it; 0: this one is as good as any.
func (r *replica) lookAtUsage() (to uint64) {
	total, most := uint64(0), uint64(0)
	for node, n := range r.usage.by {
		total += n
		if n > most {
			to, most = node, n
		}
	}
	clear(r.usage.by)
	switch {
	case r.state != raft.StateLeader || most < localityLoad || 100*most < localityShare*total:
		return 0
	case to == r.id:
		r.usage.home = r.ticks
		return 0
	case r.ticks-r.usage.led < localityStay:
		return 0
	}
	return to
}

// settledHere tells whether the group should stay, although this node leads more than its share.
func (r *replica) settledHere() bool {
	return r.usage.home != 0 && r.ticks-r.usage.home < localityRest || r.ticks-r.usage.led < 2*localityTicks
}

// moveToUsers hands groups that this node leads to the nodes that use them.
func (m *Manager) moveToUsers() {
	for _, g := range m.opened() {
		rep := g.rep.Load()
		if rep == nil || rep.sleep.asleep.Load() {
			continue
		}
		g.mu.Lock()
		to := rep.lookAtUsage()
		g.mu.Unlock()
		if to == 0 || rep.store.inJoint() || !slices.Contains(rep.store.membership().GetVoters(), to) || !rep.healthy(g, to) {
			continue
		}
		m.cfg.Logger.Debugf("raft: handing group %s to node %d, which uses it most", g.name, to)
		_ = g.stepReplica(rep, func() error { return rep.transfer(to) })
	}
}
