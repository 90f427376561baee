package consensus

import (
	"encoding/binary"
	"errors"
	"sync"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// raftStorage shows a group's log to the engine.
type raftStorage struct {
	log         LogStore
	hard        *pb.HardState // as of the start, constant
	canSnapshot bool          // constant

	mu        sync.Mutex // guards what follows
	conf      *pb.ConfState
	confIndex uint64 // conf is that of this entry
	applied   uint64
}

var _ raft.Storage = (*raftStorage)(nil)

func (s *raftStorage) setConf(conf *pb.ConfState, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conf, s.confIndex = conf, index
}

// inJoint reports whether the membership is between an old and a new one.
func (s *raftStorage) inJoint() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conf.GetVotersOutgoing()) > 0
}

func (s *raftStorage) setApplied(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = index
}

// membershipAt returns a copy of the membership as of an entry that is applied. It is false while the membership is that of a
// later one: it is known before the entry counts as applied, and after a restart it may be ahead of the state machine. A snapshot
// that said both would have the change made twice.
func (s *raftStorage) membershipAt(index uint64) (*pb.ConfState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.Clone(s.conf).(*pb.ConfState), s.confIndex <= index
}

// membership returns a copy of the membership.
func (s *raftStorage) membership() *pb.ConfState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.Clone(s.conf).(*pb.ConfState)
}

func (s *raftStorage) InitialState() (*pb.HardState, *pb.ConfState, error) {
	return s.hard, s.membership(), nil
}

func (s *raftStorage) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	es, err := s.log.Entries(nil, lo, hi, maxSize)
	if err != nil {
		return nil, raftError(err)
	}
	return toRaft(es), nil
}

func (s *raftStorage) Term(i uint64) (uint64, error) {
	term, err := s.log.Term(i)
	return term, raftError(err)
}

func (s *raftStorage) LastIndex() (uint64, error)  { return s.log.LastIndex(), nil }
func (s *raftStorage) FirstIndex() (uint64, error) { return s.log.FirstIndex(), nil }

// Snapshot returns the metadata of the snapshot that the driver would send now.
func (s *raftStorage) Snapshot() (*pb.Snapshot, error) {
	s.mu.Lock()
	applied := s.applied
	s.mu.Unlock()
	conf, ok := s.membershipAt(applied)
	term, err := s.log.Term(applied)
	if err != nil || !s.canSnapshot || applied == 0 || !ok {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(applied), Term: new(term), ConfState: conf}}, nil
}

// raftError maps an error of the log to the one that the engine knows.
func raftError(err error) error {
	switch {
	case errors.Is(err, logstore.ErrCompacted):
		return raft.ErrCompacted
	case errors.Is(err, logstore.ErrUnavailable):
		return raft.ErrUnavailable
	}
	return err
}

// toRaft shows entries of the log to the engine. A command without a tag, written
// while this node was alone, gets an empty one.
func toRaft(es []logstore.Entry) []*pb.Entry {
	out := make([]*pb.Entry, len(es))
	entries := make([]pb.Entry, len(es))
	for i := range es {
		e, p := &es[i], &entries[i]
		p.Index, p.Term, p.Data = &e.Index, &e.Term, e.Data
		switch e.Type {
		case logstore.EntryCommand:
			p.Type = pb.EntryNormal.Enum()
			p.Data = append(make([]byte, tagSize, tagSize+len(e.Data)), e.Data...)
		case logstore.EntryConfChange:
			p.Type = pb.EntryConfChange.Enum()
		case logstore.EntryConfChangeV2:
			p.Type = pb.EntryConfChangeV2.Enum()
		default:
			p.Type = pb.EntryNormal.Enum()
		}
		if len(p.Data) == 0 {
			p.Data = nil
		}
		out[i] = p
	}
	return out
}

// fromRaft is the reverse of toRaft.
func fromRaft(es []*pb.Entry) []logstore.Entry {
	out := make([]logstore.Entry, len(es))
	for i, p := range es {
		e := logstore.Entry{Index: p.GetIndex(), Term: p.GetTerm(), Data: p.GetData()}
		switch p.GetType() {
		case pb.EntryConfChange:
			e.Type = logstore.EntryConfChange
		case pb.EntryConfChangeV2:
			e.Type = logstore.EntryConfChangeV2
		default:
			switch {
			case len(e.Data) == 0:
				e.Type = logstore.EntryNoop
			case len(e.Data) >= tagSize && binary.LittleEndian.Uint64(e.Data) == 0:
				e.Type, e.Data = logstore.EntryCommand, e.Data[tagSize:]
			default:
				e.Type = logstore.EntryTagged
			}
		}
		out[i] = e
	}
	return out
}

// command returns what an entry of the log has for the state machine.
func command(e *logstore.Entry) (cmd []byte, ok bool) {
	switch e.Type {
	case logstore.EntryCommand:
		return e.Data, true
	case logstore.EntryTagged:
		if len(e.Data) >= tagSize {
			return e.Data[tagSize:], true
		}
	}
	return nil, false
}
