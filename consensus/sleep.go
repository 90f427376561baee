package consensus

import (
	"bytes"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// sleeper says whether a replica sleeps. A thousand groups that have nothing to do
// should cost nothing: so a leader whose followers all have everything tells them
// to sleep, with its last heartbeat, and sleeps too. A sleeping replica gets no
// ticks, so it sends no heartbeats and misses none. It wakes for a proposal, a
// read or a message of another kind, or when the transport has lost its leader;
// whoever missed the last heartbeat starts a pre-vote, which wakes the others.
//
// Nothing depends on it for safety: to the engine, sleep is time that stands
// still, as if the process had been stopped. A promise that a lease rests on only
// lasts longer for it.
type sleeper struct {
	after uint64 // ticks without anything to do
	// asleep is written with the group's lock held, and read by the clock without it.
	asleep atomic.Bool
	quiet  uint64 // ticks since there was something
}

// lullaby is the context of the heartbeat that sends followers to sleep.
var lullaby = []byte("sleep")

func isLullaby(m *pb.Message) bool {
	return m.GetType() == pb.MsgHeartbeat && bytes.Equal(m.GetContext(), lullaby)
}

func (r *replica) wake() {
	r.sleep.asleep.Store(false)
	r.sleep.quiet = 0
}

// wakeFor wakes the replica for a message that is more than a sign of life.
func (r *replica) wakeFor(m *pb.Message) {
	switch {
	case isLullaby(m), m.GetType() == pb.MsgHeartbeatResp:
	case m.GetType() == pb.MsgHeartbeat && !r.sleep.asleep.Load():
	default:
		r.wake()
	}
}

// idle reports whether nothing waits on this node.
func (r *replica) idle() bool {
	last := r.log.LastIndex()
	return len(r.proposals) == 0 && r.reads.len() == 0 && len(r.appendQ) == 0 && len(r.applyQ) == 0 && r.working == 0 &&
		r.applied == last && r.rn.BasicStatus().HardState.GetCommit() == last && !r.store.inJoint()
}

// maybeSleep is called every tick of a replica that is awake.
func (r *replica) maybeSleep() {
	r.sleep.quiet++
	if r.state != raft.StateLeader || r.sleep.quiet < r.sleep.after || !r.idle() {
		return
	}
	last, term := r.log.LastIndex(), r.rn.BasicStatus().HardState.GetTerm()
	all := true
	var others []uint64
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == r.id {
			return
		}
		others = append(others, id)
		all = all && pr.Match == last && pr.RecentActive
	})
	if !all || r.rn.BasicStatus().LeadTransferee != 0 {
		return
	}
	for _, id := range others {
		r.out = append(r.out, &pb.Message{
			Type: pb.MsgHeartbeat.Enum(), From: new(r.id), To: new(id), Term: new(term), Commit: new(last), Context: lullaby,
		})
	}
	r.sleep.asleep.Store(true)
}

// followToSleep sleeps if the leader that says so is right.
func (r *replica) followToSleep(m *pb.Message) {
	st := r.rn.BasicStatus()
	if r.state == raft.StateFollower && r.leader == m.GetFrom() && st.HardState.GetTerm() == m.GetTerm() &&
		m.GetCommit() == r.log.LastIndex() && r.idle() {
		r.sleep.asleep.Store(true)
	}
}
