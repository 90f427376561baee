package consensus

import (
	"bytes"
	"encoding/binary"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
)

// lease lets a leader answer reads without asking the others each time (Ongaro, Consensus: Bridging Theory and Practice, 6.4.1). The
// engine's own kind is not used: it counts from when the leader noticed something, not from when the others promised it.
//
// A request for a read index is confirmed by a majority, each of which has heard from this leader after the request was made. From
// then on it neither stands for election nor votes for another node for ElectionTicks of its own. Any later leader
// needs a vote out of that majority. So for half of that time, counted on this node's clock from before the request
// was made, no other leader can commit anything, and this one's commit index is current.
//
// What would break the promise:
//   - a node that was started again has forgotten it: it gives no vote for ElectionTicks (refusesVote);
//   - a leader that hands over (MsgTimeoutNow) asks for votes that ignore it: it never has a lease again in that term;
//   - a change of membership moves the majority: the lease ends with each;
//   - clocks: that of a leader must not stand still, nor run at less than half the speed of the others', while the others' go on. Ticks of a
//     node are never faster than its clock. Where that cannot be relied on (a virtual machine that is paused and does not notice),
//     Config.LeaseReads is left off, and every read asks.
type lease struct {
	length time.Duration
	now    func() time.Time

	// The newest request of this node, if it led in term when it was made.
	seq  uint64
	at   time.Time
	term uint64

	until     time.Time // the lease, in untilTerm
	untilTerm uint64
	never     uint64 // term in which there is none any more
}

// exact is the bit of a request's number that says that only a majority may answer.
const exact = 1 << 63

// requested notes a request for a read index that is about to be made.
func (l *lease) requested(seq uint64, leading bool, term uint64) {
	l.seq, l.at, l.term = seq, l.now(), 0
	if leading {
		l.term = term
	}
}

// confirmed takes what the engine says; leading in term.
func (l *lease) confirmed(states []raft.ReadState, leading bool, term uint64) {
	for _, s := range states {
		if leading && l.term == term && term != l.never && len(s.RequestCtx) == 8 && binary.LittleEndian.Uint64(s.RequestCtx) == l.seq {
			l.until, l.untilTerm = l.at.Add(l.length), term
		}
	}
}

// end gives the lease up, and what a request under way would bring.
func (l *lease) end() { l.untilTerm, l.term = 0, 0 }

// forbid is end for all of a term.
func (l *lease) forbid(term uint64) {
	l.end()
	l.never = term
}

// leased returns the commit index if this node leads and nobody else can. It renews a lease that is half over.
func (r *replica) leased() (commit uint64, ok bool) {
	if r.state != raft.StateLeader || r.lease.untilTerm == 0 {
		return 0, false
	}
	st := r.rn.BasicStatus()
	if !r.lease.holds(&st) {
		return 0, false
	}
	if r.lease.now().Sub(r.lease.at) > r.lease.length/2 {
		r.requestRead(nil)
	}
	return st.HardState.GetCommit(), true
}

// holds tells whether a node of this status has a lease now.
func (l *lease) holds(st *raft.BasicStatus) bool {
	return st.RaftState == raft.StateLeader && st.HardState.GetTerm() == l.untilTerm && st.LeadTransferee == 0 && l.now().Before(l.until)
}

// answerLeased answers another node's request for a read index, if it may be and can.
func (r *replica) answerLeased(m *pb.Message) bool {
	if m.GetType() != pb.MsgReadIndex || len(m.GetEntries()) != 1 {
		return false
	}
	ctx := m.GetEntries()[0].GetData()
	if len(ctx) != 8 || binary.LittleEndian.Uint64(ctx)&exact != 0 {
		return false
	}
	commit, ok := r.leased()
	if ok {
		r.out = append(r.out, &pb.Message{
			Type: pb.MsgReadIndexResp.Enum(), From: new(r.id), To: new(m.GetFrom()), Term: new(r.lease.untilTerm), Index: new(commit), Entries: m.GetEntries(),
		})
	}
	return ok
}

// campaignTransfer is the context of requests for a vote by a node that the leader has handed over to.
var campaignTransfer = []byte("CampaignTransfer")

// refusesVote tells whether a request for a vote may break a promise that this node has given before it was started.
func (r *replica) refusesVote(m *pb.Message) bool {
	t := m.GetType()
	return (t == pb.MsgVote || t == pb.MsgPreVote) && r.ticks < r.voteAfter && !bytes.Equal(m.GetContext(), campaignTransfer)
}

// leaseClock is a clock that goes on while the machine is suspended, unlike that of package time, which stands in for it where the kernel has
// none. It is one or the other for good: times of two clocks cannot be compared.
func leaseClock() func() time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return time.Now
	}
	return func() time.Time {
		var ts unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // a clock that is there cannot fail
		return time.Unix(ts.Unix())
	}
}
