package consensus

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// MemberProgress is how far another member of a group is, as its leader knows.
type MemberProgress struct {
	Match   uint64 // everything up to here is on its disk
	Active  bool   // it was heard of lately
	Learner bool
}

// Leads reports whether this node leads the group, as far as it knows.
func (g *Group) Leads() bool {
	rep := g.rep.Load()
	if rep == nil {
		return g.Err() == nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return rep.state == raft.StateLeader
}

// Progress returns how far the members are, this node included; nil where this
// node does not lead.
func (g *Group) Progress() map[uint64]MemberProgress {
	rep := g.rep.Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	if rep == nil {
		return map[uint64]MemberProgress{g.m.cfg.NodeID: {Match: g.last.Load(), Active: true}}
	}
	if rep.state != raft.StateLeader {
		return nil
	}
	all := map[uint64]MemberProgress{}
	rep.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		all[id] = MemberProgress{Match: pr.Match, Active: pr.RecentActive || id == rep.id, Learner: typ == raft.ProgressTypeLearner}
	})
	return all
}
