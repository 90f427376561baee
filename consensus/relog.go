package consensus

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// NewLog makes the directory of a group whose only voter is node, to take the place of one that is damaged: with a log that begins
// behind entry applied, of term appliedTerm, and holds next. term is the highest that the group may have had. A log in dir is
// replaced. What it holds is durable when it returns, but for the name of dir itself. It must not be used for a group with other members: what node
// promised them was in the log and the hard state that are lost.
func NewLog(fs vfs.FS, dir string, node, applied, appliedTerm, term uint64, next []logstore.Entry) error {
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	l, err := logstore.OpenFile(logstore.FileOptions{FS: fs, Dir: dir, Logger: log})
	if err != nil {
		return err
	}
	err = l.Reset(applied, appliedTerm)
	for i := range next {
		term = max(term, next[i].Term)
	}
	// Each on its own: an append has a limit.
	for i := 0; err == nil && i < len(next); i++ {
		err = l.Append(next[i : i+1])
	}
	if err == nil {
		err = l.Sync()
	}
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("consensus: making the log %s: %w", dir, err)
	}
	conf, err := proto.Marshal(&pb.ConfState{Voters: []uint64{node}})
	if err != nil {
		return fmt.Errorf("consensus: encoding the membership: %w", err)
	}
	// What next tells of the membership is in conf: a group that was never opened again has the entry that made node its voter there.
	return logstore.WriteState(fs, dir, logstore.HardState{
		NodeID: node, Term: max(term, appliedTerm), Commit: applied, Conf: conf, ConfIndex: applied + uint64(len(next)),
	})
}

// OnlyVoter tells whether nobody but node takes part in the group in dir, voting or not, as far as its hard state can be read: one that is
// damaged or missing speaks of nobody else.
func OnlyVoter(fs vfs.FS, dir string, node uint64) bool {
	_, conf, err := readMembership(fs, dir, node)
	if err != nil {
		return errors.Is(err, ErrCorrupt) || errors.Is(err, logstore.ErrNoState)
	}
	return slices.Equal(conf.GetVoters(), []uint64{node}) && len(conf.GetLearners())+len(conf.GetVotersOutgoing())+len(conf.GetLearnersNext()) == 0
}
