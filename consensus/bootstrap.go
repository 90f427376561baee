package consensus

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// bootstrapTerm is the term of the entries that a new group's log begins with.
const bootstrapTerm = 1

// bootstrapEntries are what the log of a new group begins with on each of its
// voters: one entry per voter that adds it. A node that joins later and reads the
// log from its start so learns who the others are: it would else take the first
// change of membership for the whole of it, and elect itself.
func bootstrapEntries(voters []uint64) ([]logstore.Entry, error) {
	var es []logstore.Entry
	for i, id := range voters {
		data, err := proto.Marshal(&pb.ConfChange{Type: pb.ConfChangeAddNode.Enum(), NodeId: new(id)})
		if err != nil {
			return nil, fmt.Errorf("consensus: encoding the membership: %w", err)
		}
		es = append(es, logstore.Entry{Index: uint64(i + 1), Term: bootstrapTerm, Type: logstore.EntryConfChange, Data: data})
	}
	return es, nil
}

// bootstrap makes log and hard state of a new group in dir. With the hard state,
// which comes last, the group exists. Without voters it is one that waits to be
// taken in.
func (m *Manager) bootstrap(dir string, voters []uint64) error {
	entries, err := bootstrapEntries(voters)
	if err != nil {
		return err
	}
	log, err := logstore.OpenFile(logstore.FileOptions{FS: m.cfg.FS, Dir: dir, SegmentSize: m.cfg.SegmentSize, Logger: m.cfg.Logger})
	if err != nil {
		return err
	}
	if err := errors.Join(log.Append(entries), log.Close()); err != nil {
		return err
	}
	conf, err := proto.Marshal(&pb.ConfState{Voters: voters})
	if err != nil {
		return fmt.Errorf("consensus: encoding the membership: %w", err)
	}
	hard := logstore.HardState{NodeID: m.cfg.NodeID, Conf: conf}
	if n := uint64(len(voters)); n > 0 {
		hard.Term, hard.Commit, hard.ConfIndex = bootstrapTerm, n, n
	}
	return logstore.WriteState(m.cfg.FS, dir, hard)
}

// checkConfChange says whether the engine would accept the change: it panics on
// what it would not, on all nodes.
func checkConfChange(conf *pb.ConfState, cc *pb.ConfChangeV2) error {
	changer := confchange.Changer{Tracker: tracker.MakeProgressTracker(1, 1), LastIndex: 1}
	cfg, progress, err := confchange.Restore(changer, conf)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadMembership, err)
	}
	changer.Tracker.Config, changer.Tracker.Progress = cfg, progress
	if cc.LeaveJoint() {
		_, _, err = changer.LeaveJoint()
	} else if autoLeave, ok := cc.EnterJoint(); ok {
		_, _, err = changer.EnterJoint(autoLeave, cc.Changes...)
	} else {
		_, _, err = changer.Simple(cc.Changes...)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadMembership, err)
	}
	return nil
}
