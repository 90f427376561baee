package consensus

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// TestSnapshotOfOneMoment: no snapshot tells of a membership that is of a later entry than its state.
func TestSnapshotOfOneMoment(t *testing.T) {
	log := logstore.NewMemory()
	for i := range uint64(9) {
		if err := log.Append([]logstore.Entry{{Index: i + 1, Term: 1, Type: logstore.EntryNoop}}); err != nil {
			t.Fatal(err)
		}
	}
	s := &raftStorage{log: log, conf: &pb.ConfState{Voters: []uint64{1}}, confIndex: 3, canSnapshot: true, applied: 5}
	if got, err := s.Snapshot(); err != nil || got.GetMetadata().GetIndex() != 5 {
		t.Fatalf("%v, %v", got, err)
	}
	s.setConf(&pb.ConfState{Voters: []uint64{1, 2}}, 6) // entry 6 has been made known to the engine, and is not saved yet
	if got, err := s.Snapshot(); !errors.Is(err, raft.ErrSnapshotTemporarilyUnavailable) {
		t.Fatalf("%v, %v", got, err)
	}
	s.setApplied(6)
	if got, err := s.Snapshot(); err != nil || got.GetMetadata().GetIndex() != 6 || len(got.GetMetadata().GetConfState().GetVoters()) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
}

// TestMembershipWaitsForSnapshot: a change before a snapshot that the engine has accepted is not made again, and not passed over.
func TestMembershipWaitsForSnapshot(t *testing.T) {
	change, err := proto.Marshal(&pb.ConfChange{Type: pb.ConfChangeAddNode.Enum(), NodeId: new(uint64(2))})
	if err != nil {
		t.Fatal(err)
	}
	e := &pb.Entry{Index: new(uint64(5)), Type: pb.EntryConfChange.Enum(), Data: change}
	r := &replica{restoring: 5}
	if _, _, err := r.applyConf(e); !errors.Is(err, errRestoring) {
		t.Fatal(err)
	}
	r.restoring = 4
	r.store = &raftStorage{conf: &pb.ConfState{Voters: []uint64{1, 2}}, confIndex: 5}
	r.rn, err = raft.NewRawNode(&raft.Config{ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: raft.NewMemoryStorage(), MaxInflightMsgs: 1})
	if err != nil {
		t.Fatal(err)
	}
	if conf, _, err := r.applyConf(e); err != nil || conf != nil {
		t.Fatalf("one that is saved already: %v, %v", conf, err)
	}
}
