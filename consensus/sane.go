package consensus

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"vdefs/consensus/logstore"
)

// remoteTypes are the messages that one node sends to another. true: they carry no
// term. To the engine a message of term 0 is one of its own.
var remoteTypes = map[pb.MessageType]bool{
	pb.MsgProp: true, pb.MsgReadIndex: true,
	pb.MsgApp: false, pb.MsgAppResp: false, pb.MsgVote: false, pb.MsgVoteResp: false, pb.MsgPreVote: false, pb.MsgPreVoteResp: false,
	pb.MsgSnap: false, pb.MsgHeartbeat: false, pb.MsgHeartbeatResp: false, pb.MsgTransferLeader: false, pb.MsgTimeoutNow: false,
	pb.MsgReadIndexResp: false,
}

// checkMessage says what is wrong with a message of another node that would make the
// engine or the log give up. That the sender follows the protocol is not checked: Raft
// trusts its members.
func checkMessage(m *pb.Message) error {
	timeless, ok := remoteTypes[m.GetType()]
	switch {
	case !ok:
		return fmt.Errorf("a %s does not come from another node", m.GetType())
	case m.GetFrom() == 0 || raft.IsLocalMsgTarget(m.GetFrom()):
		return fmt.Errorf("a %s comes from node %d, which is none", m.GetType(), m.GetFrom())
	case timeless != (m.GetTerm() == 0):
		return fmt.Errorf("a %s has term %d", m.GetType(), m.GetTerm())
	}
	switch m.GetType() {
	case pb.MsgProp:
		if len(m.GetEntries()) == 0 {
			return errors.New("a proposal of nothing")
		}
		return checkEntries(m, func(int, *pb.Entry) bool { return true })
	case pb.MsgApp:
		return checkEntries(m, func(i int, e *pb.Entry) bool {
			return e.GetIndex() == m.GetIndex()+1+uint64(i) && e.GetTerm() > 0 && e.GetTerm() <= m.GetTerm()
		})
	case pb.MsgSnap:
		meta := m.GetSnapshot().GetMetadata()
		if meta.GetIndex() == 0 || meta.GetTerm() == 0 || len(meta.GetConfState().GetVoters()) == 0 {
			return fmt.Errorf("a snapshot of entry %d of term %d with the voters %d", meta.GetIndex(), meta.GetTerm(), meta.GetConfState().GetVoters())
		}
	}
	return nil
}

// checkEntries checks what entries contain, and with placed where they stand.
func checkEntries(m *pb.Message, placed func(i int, e *pb.Entry) bool) error {
	for i, e := range m.GetEntries() {
		switch {
		case e == nil || !placed(i, e):
			return fmt.Errorf("a %s behind entry %d has entry %d of term %d in place %d", m.GetType(), m.GetIndex(), e.GetIndex(), e.GetTerm(), i)
		case len(e.GetData()) > logstore.MaxDataSize:
			return fmt.Errorf("%w: a %s has one with %d", ErrTooLarge, m.GetType(), len(e.GetData()))
		}
		switch e.GetType() {
		case pb.EntryNormal:
		case pb.EntryConfChange, pb.EntryConfChangeV2:
			if _, err := decodeConfChange(e); err != nil {
				return err
			}
		default:
			return fmt.Errorf("a %s has an entry of type %d", m.GetType(), e.GetType())
		}
	}
	return nil
}
