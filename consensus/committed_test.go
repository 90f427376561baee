package consensus

import (
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// remains is what a node has of a group at its start.
type remains struct {
	conf   *pb.ConfState
	at     uint64 // the entry that conf is of
	commit uint64
	last   uint64
}

// leave makes the log and the hard state of what a group of the nodes 1 and 2 left that took
// node 2 out: entry 3 begins it, entry 4 ends it.
func leave(t *testing.T, fs vfs.FS, node uint64, r remains) {
	t.Helper()
	const dir, term = "raft/default", 2
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := bootstrapEntries([]uint64{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	begin, err := proto.Marshal(&pb.ConfChangeV2{
		Transition: pb.ConfChangeTransitionJointImplicit.Enum(),
		Changes:    []*pb.ConfChangeSingle{{Type: pb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(2))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	entries = append(entries, logstore.Entry{Index: 3, Term: term, Type: logstore.EntryConfChangeV2, Data: begin}, logstore.Entry{Index: 4, Term: term, Type: logstore.EntryConfChangeV2})
	for i := uint64(5); i <= r.last; i++ {
		entries = append(entries, logstore.Entry{Index: i, Term: term, Type: logstore.EntryCommand, Data: []byte("x")})
	}
	log, err := logstore.OpenFile(logstore.FileOptions{FS: fs, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	conf, err := proto.Marshal(r.conf)
	if err == nil {
		err = errors.Join(log.Append(entries[:r.last]), log.Sync(), log.Close(),
			logstore.WriteState(fs, dir, logstore.HardState{NodeID: node, Term: term, Commit: r.commit, Conf: conf, ConfIndex: r.at}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestVoterThatForgotItIsAlone: the only voter that is left has crashed before it could save
// that entry 4 is committed, and node 2, which has left, has a longer log.
func TestVoterThatForgotItIsAlone(t *testing.T) {
	c := newCluster(t, 1, 2)
	leave(t, c.nodes[1].fs, 1, remains{conf: &pb.ConfState{Voters: []uint64{1}, VotersOutgoing: []uint64{1, 2}, AutoLeave: new(true)}, at: 3, commit: 3, last: 4})
	leave(t, c.nodes[2].fs, 2, remains{conf: &pb.ConfState{Voters: []uint64{1}}, at: 4, commit: 4, last: 6})
	for _, n := range c.nodes {
		n.sm = newRecorder(0)
		g, err := n.m.OpenGroup(DefaultGroup, n.sm)
		if err != nil {
			t.Fatal(err)
		}
		n.g = g
	}
	within(t, 20*time.Second, "node 1 leads", func() bool { return c.nodes[1].g.Status().State == "leader" })
	c.propose(1, "after")
	if got := c.nodes[1].g.Status(); len(got.Voters) != 1 || got.Applied < 5 {
		t.Fatalf("%+v", got)
	}
}
