package consensus

import (
	"bytes"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// How far a group is committed a node may forget in a crash: that is not synced by itself.
// Where the membership was shrunk that can leave nobody to lead. The node that is left has
// the entry that shrank it, does not know that it is committed, and asks the old members for
// their votes; these have longer logs and refuse, and as they know that they are members no
// more they do not stand for election themselves. So who refuses its vote for that reason
// says how far it knows the group to be committed. What is committed stays so, whoever says
// it; and of two logs with the same term at an index, all before it is the same.
//
// The message is a heartbeat with a context of its own, which nodes of before it ignore:
//
//	index    the last entry that the sender knows to be committed and the candidate may have
//	logTerm  its term
//
// (TiKV's raft-rs has the same in its vote messages, "fast forward commit index by vote request".)

// tidings is the context of that heartbeat.
var tidings = []byte("committed")

func isTidings(m *pb.Message) bool {
	return m.GetType() == pb.MsgHeartbeat && bytes.Equal(m.GetContext(), tidings)
}

// refuteWithTidings sends tidings to a candidate whose log is behind this node's.
func (r *replica) refuteWithTidings(m *pb.Message) {
	if t := m.GetType(); t != pb.MsgVote && t != pb.MsgPreVote {
		return
	}
	st := r.rn.BasicStatus()
	last := r.log.LastIndex()
	lastTerm, err := r.log.Term(last)
	if err != nil || st.HardState.GetTerm() == 0 || lastTerm < m.GetLogTerm() || lastTerm == m.GetLogTerm() && last <= m.GetIndex() {
		return
	}
	index := min(st.HardState.GetCommit(), m.GetIndex())
	term, err := r.log.Term(index)
	if err != nil || index == 0 {
		return // given up: the candidate needs a snapshot of a leader
	}
	r.out = append(r.out, &pb.Message{
		Type: pb.MsgHeartbeat.Enum(), From: new(r.id), To: new(m.GetFrom()), Term: new(st.HardState.GetTerm()),
		Index: &index, LogTerm: &term, Context: tidings,
	})
}

// hearTidings lets the engine know what another node has said, unless there is a leader, who
// will. To the engine it comes from a leader of its term that has nothing else to say, which
// it is then made to forget.
func (r *replica) hearTidings(m *pb.Message) error {
	st := r.rn.BasicStatus()
	if st.Lead != raft.None || st.RaftState == raft.StateLeader || m.GetIndex() <= st.HardState.GetCommit() {
		return nil
	}
	if term, err := r.log.Term(m.GetIndex()); err != nil || term != m.GetLogTerm() {
		return nil
	}
	index, logTerm := m.GetIndex(), m.GetLogTerm()
	if err := r.stepRaft(&pb.Message{
		Type: pb.MsgApp.Enum(), From: new(m.GetFrom()), To: new(r.id), Term: new(st.HardState.GetTerm()),
		Index: &index, LogTerm: &logTerm, Commit: &index,
	}); err != nil {
		return err
	}
	return r.rn.ForgetLeader()
}
