package consensus

import (
	"math"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// sentSnapshot is a snapshot on its way to a member, until the member has it and has
// said so.
type sentSnapshot struct {
	index uint64
	seen  uint64 // the tick in which the member was last heard of
}

// snapshotPatience is after how many ticks of silence a member that got a snapshot is
// no longer waited for.
const snapshotPatience = 400

// spare is the last index of the log that can be given up as far as the other members
// and the engine are concerned. It takes g.mu.
func (g *Group) spare(rep *replica) uint64 {
	g.mu.Lock()
	lacking, promised := rep.lacking()
	// The engine looks through the entries of a batch for changes of the membership until
	// it is told that all of them are applied, which the state machine may be ahead of.
	known := rep.applied
	g.mu.Unlock()
	// What a member lacks is kept within bounds, what it will lack after the snapshot
	// that it is getting in any case.
	within := max(lacking, g.log.Tail(g.m.cfg.LogTailMax))
	return min(g.log.Tail(g.m.cfg.LogTail), within, promised, known)
}

// lacking returns, for a leader, the index after which its slowest member needs
// entries, and the lowest index of a snapshot that is under way; the largest number
// for none.
func (r *replica) lacking() (member, snapshot uint64) {
	member, snapshot = math.MaxUint64, math.MaxUint64
	if r.state != raft.StateLeader {
		return member, snapshot
	}
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		switch sent, ok := r.sent[id]; {
		case id == r.id:
		case ok && pr.Match < sent.index:
			snapshot = min(snapshot, sent.index)
		case pr.State == tracker.StateProbe:
			member = min(member, pr.Next-1) // a guess, at least what it has
		case pr.State == tracker.StateSnapshot:
			// It has not begun, and will be of what is applied then.
		default:
			member = min(member, pr.Match)
		}
	})
	return member, snapshot
}

// snapshotBegun notes that a snapshot of index is being sent to a member.
func (r *replica) snapshotBegun(to, index uint64) {
	if r.sent == nil {
		r.sent = map[uint64]sentSnapshot{}
	}
	r.sent[to] = sentSnapshot{index, r.ticks}
}

// forgetSnapshots drops the notes of snapshots that nobody waits for any more. It is
// called every tick.
func (r *replica) forgetSnapshots() {
	if len(r.sent) == 0 {
		return
	}
	if r.state != raft.StateLeader {
		r.sent = nil
		return
	}
	waiting := map[uint64]sentSnapshot{}
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		s, ok := r.sent[id]
		if pr.RecentActive {
			s.seen = r.ticks
		}
		if ok && pr.Match < s.index && r.ticks-s.seen < snapshotPatience {
			waiting[id] = s
		}
	})
	r.sent = waiting
}
