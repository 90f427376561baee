package consensus

import (
	"maps"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// news is what a leader knows of messages that carry no entry and tell a follower only how far the group has come. The engine sends one to
// each follower whenever something has been committed, and gets an answer to each: half of all messages where one change
// follows the other. Most followers can wait: the next entries tell it as well, if they come soon. So such a message is
// held back until
//
//   - a message to the same follower says as much: entries, a heartbeat;
//   - somebody on the follower waits for it: a proposal that came from there is committed, or a read index goes there;
//   - newsDelay is over, or a tick.
//
// Messages may be lost and late in Raft, so nothing depends on it for safety.
type news struct {
	held map[uint64]*pb.Message // by follower
	told map[uint64]uint64      // by follower: the commit index of the last message that went there
	// asked is, by follower, an index that no proposal of that node which this leader has taken is above.
	asked    map[uint64]uint64
	appended uint64 // the last index that the engine has given out
	released []*pb.Message
}

// newsDelay is how long news are held back at most. Blocked callers of locks on other nodes wait for them.
const newsDelay = 4 * time.Millisecond

func (n *news) reset() { *n = news{} }

// proposed notes that the leader has taken a proposal of a node.
func (n *news) proposed(from uint64) {
	if n.asked == nil {
		n.asked = map[uint64]uint64{}
	}
	n.asked[from] = n.appended
}

// tell notes what a message that is sent to a follower tells it.
func (n *news) tell(to, commit uint64) {
	if n.told == nil {
		n.told = map[uint64]uint64{}
	}
	n.told[to] = max(n.told[to], commit)
}

// takeOut returns the messages that are to be sent now.
func (r *replica) takeOut() []*pb.Message {
	n, out := &r.news, r.out
	kept := n.released
	r.out, n.released = nil, nil
	for _, m := range out {
		to := m.GetTo()
		held := n.held[to]
		switch m.GetType() {
		case pb.MsgApp:
			if r.canWait(m) {
				if n.held == nil {
					n.held = map[uint64]*pb.Message{}
				}
				n.held[to] = m
				continue
			}
			held = nil // m says more
			delete(n.held, to)
			n.tell(to, m.GetCommit())
		case pb.MsgHeartbeat:
			if held != nil && m.GetCommit() >= held.GetCommit() {
				held = nil
				delete(n.held, to)
			}
		}
		if held != nil {
			delete(n.held, to)
			n.tell(to, held.GetCommit())
			kept = append(kept, held)
		}
		kept = append(kept, m)
	}
	return kept
}

// canWait tells whether m is only news, and nobody waits for it.
func (r *replica) canWait(m *pb.Message) bool {
	if len(m.GetEntries()) > 0 || r.state != raft.StateLeader {
		return false
	}
	to := m.GetTo()
	if told := r.news.told[to]; r.news.asked[to] > told && m.GetCommit() > told {
		return false
	}
	replicating := false
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		// In any other state a message without entries asks what the follower has.
		replicating = replicating || id == to && pr.State == tracker.StateReplicate
	})
	return replicating
}

// releaseNews has takeOut return what is held back.
func (r *replica) releaseNews() {
	for _, to := range slices.Sorted(maps.Keys(r.news.held)) {
		m := r.news.held[to]
		delete(r.news.held, to)
		if r.state == raft.StateLeader {
			r.news.tell(to, m.GetCommit())
			r.news.released = append(r.news.released, m)
		}
	}
}
