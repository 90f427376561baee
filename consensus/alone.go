package consensus

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// Remains is what a node has of a group.
type Remains struct {
	Group  GroupID  `json:"group"`
	Voters []uint64 `json:"voters"` // as this node knows them, itself included
	Last   uint64   `json:"last"`   // index of the last entry of its log
	Term   uint64   `json:"term"`   // of that entry. Of two nodes the one with the higher term has more, and with the same term the one with the higher Last
	Commit uint64   `json:"commit"` // what it knows to be committed; the rest may never have been acknowledged
}

// ErrNoVote refuses to go on alone with a group in which this node has no vote: it may have any part of it.
var ErrNoVote = errors.New("this node has no vote in the group")

// LookAlone tells what ForceAlone would go on with. It changes nothing.
func LookAlone(fs vfs.FS, dir string, node uint64) ([]Remains, error) {
	return look(fs, dir, node, true)
}

// look is LookAlone; without vote this node need not have one.
func look(fs vfs.FS, dir string, node uint64, vote bool) ([]Remains, error) {
	m := &Manager{cfg: Config{FS: fs, Dir: dir, NodeID: node}}
	names, err := m.Groups()
	if err != nil {
		return nil, err
	}
	var list []Remains
	for _, name := range names {
		hard, conf, err := readMembership(fs, m.groupDir(name), node)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", name, err)
		}
		if vote && !slices.Contains(conf.GetVoters(), node) {
			return nil, fmt.Errorf("group %s: %w: it has those of nodes %d", name, ErrNoVote, conf.GetVoters())
		}
		left, err := logstore.Look(fs, m.groupDir(name), math.MaxUint64)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", name, err)
		}
		list = append(list, Remains{Group: name, Voters: conf.GetVoters(), Last: left.Last, Term: left.LastTerm, Commit: hard.Commit})
	}
	return list, nil
}

func readMembership(fs vfs.FS, dir string, node uint64) (logstore.HardState, *pb.ConfState, error) {
	hard, err := logstore.ReadState(fs, dir)
	if err != nil {
		return hard, nil, err
	}
	if hard.NodeID != node {
		return hard, nil, fmt.Errorf("%w: %s is of node %d, this is node %d", ErrWrongNode, dir, hard.NodeID, node)
	}
	conf := &pb.ConfState{}
	if err := proto.Unmarshal(hard.Conf, conf); err != nil {
		return hard, nil, fmt.Errorf("%w: the membership in the hard state of %s: %w", ErrCorrupt, dir, err)
	}
	return hard, conf, nil
}

// ForceAlone makes this node the only voter of every group below dir, with all that its logs hold: whether an entry was committed
// nobody is left to tell. It is for the survivor of a cluster whose majority is lost for good, which must never run again: it
// would go on without what happens here. No manager may have dir open. It can be done again after a crash, which leaves each
// group as it was or alone.
func ForceAlone(fs vfs.FS, dir string, node uint64, segmentSize int64, logger logrus.FieldLogger) ([]Remains, error) {
	return force(fs, dir, node, segmentSize, logger, true)
}

// PretendAlone is ForceAlone for a copy of the groups that is thrown away when it has been looked at. This node need not have a vote in them.
func PretendAlone(fs vfs.FS, dir string, node uint64, segmentSize int64, logger logrus.FieldLogger) ([]Remains, error) {
	return force(fs, dir, node, segmentSize, logger, false)
}

func force(fs vfs.FS, dir string, node uint64, segmentSize int64, logger logrus.FieldLogger, vote bool) ([]Remains, error) {
	list, err := look(fs, dir, node, vote)
	if err != nil {
		return nil, err
	}
	conf, err := proto.Marshal(&pb.ConfState{Voters: []uint64{node}})
	if err != nil {
		return nil, fmt.Errorf("consensus: encoding the membership: %w", err)
	}
	for i := range list {
		r := &list[i]
		groupDir := fs.PathJoin(dir, string(r.Group))
		log, err := logstore.OpenFile(logstore.FileOptions{FS: fs, Dir: groupDir, SegmentSize: segmentSize, Logger: logger})
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", r.Group, err)
		}
		r.Last, r.Term = log.LastIndex(), log.LastTerm()
		// Durable before anybody is told that it counts.
		if err := errors.Join(log.Sync(), log.Close()); err != nil {
			return nil, fmt.Errorf("group %s: %w", r.Group, err)
		}
		hard, err := logstore.ReadState(fs, groupDir)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", r.Group, err)
		}
		// Changes of membership in the log are of the past.
		hard.Conf, hard.ConfIndex = conf, max(hard.ConfIndex, r.Last)
		if err := logstore.WriteState(fs, groupDir, hard); err != nil {
			return nil, fmt.Errorf("group %s: %w", r.Group, err)
		}
	}
	return list, nil
}
