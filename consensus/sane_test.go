package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"vdefs/consensus/logstore"
)

// TestMessagesThatMakeNoSense: none of them stops a group, whatever it does to whom it
// reaches.
func TestMessagesThatMakeNoSense(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	c.propose(1, "before")
	c.converged(1, 2, 3)
	prop := func(es ...*pb.Entry) *pb.Message { return &pb.Message{Type: pb.MsgProp.Enum(), Entries: es} }
	garbage := []byte("\xff\xff\xff\xff")
	conf := &pb.ConfState{Voters: []uint64{2}}
	bad := []*pb.Message{
		{}, prop(), prop(nil),
		prop(&pb.Entry{Data: make([]byte, logstore.MaxDataSize+1)}),
		prop(&pb.Entry{Type: pb.EntryConfChange.Enum(), Data: garbage}),
		prop(&pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Data: garbage}),
		prop(&pb.Entry{Type: pb.EntryType(77).Enum(), Data: garbage}),
		{Type: pb.MsgSnap.Enum(), Term: new(uint64(99)), Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(uint64(99)), Term: new(uint64(9)), ConfState: conf}}},
		{Type: pb.MsgSnap.Enum(), Term: new(uint64(99))},
		{Type: pb.MsgApp.Enum()}, // of no term
		{Type: pb.MsgHeartbeat.Enum()},
		{Type: pb.MsgVote.Enum()},
		{Type: pb.MsgApp.Enum(), Term: new(uint64(99)), Index: new(uint64(1)), LogTerm: new(uint64(1)),
			Entries: []*pb.Entry{{Index: new(uint64(7)), Term: new(uint64(99))}}},
		{Type: pb.MsgApp.Enum(), Term: new(uint64(99)), Index: new(uint64(1)), LogTerm: new(uint64(1)),
			Entries: []*pb.Entry{{Index: new(uint64(2)), Term: new(uint64(100))}}},
		{Type: pb.MsgProp.Enum(), Term: new(uint64(9)), Entries: []*pb.Entry{{}}},
	}
	for _, typ := range []pb.MessageType{pb.MsgHup, pb.MsgBeat, pb.MsgUnreachable, pb.MsgSnapStatus, pb.MsgCheckQuorum,
		pb.MsgStorageAppend, pb.MsgStorageAppendResp, pb.MsgStorageApply, pb.MsgStorageApplyResp, pb.MsgForgetLeader, pb.MessageType(1000)} {
		bad = append(bad, &pb.Message{Type: typ.Enum(), Term: new(uint64(99)), Index: new(uint64(99))})
	}
	refused := uint64(0)
	for id := uint64(1); id <= 3; id++ {
		n := c.nodes[id]
		for _, m := range bad {
			m.From, m.To = new(id%3+1), new(id)
			receiver{n.m}.Receive("default", m)
			if err := n.g.Err(); err != nil {
				t.Fatalf("node %d, %v: %v", id, m.GetType(), err)
			}
		}
		if err := (receiver{n.m}).ReceiveSnapshot("default", &pb.Message{Type: pb.MsgSnap.Enum(), From: new(id%3 + 1), To: new(id), Term: new(uint64(9))}, bytes.NewReader(nil)); err == nil {
			t.Error("a snapshot of nothing was taken")
		}
		for i := range 3 * maxSaid {
			receiver{n.m}.Receive(fmt.Sprintf("g%d", i), &pb.Message{From: new(id%3 + 1)})
		}
		if len(n.m.said) > maxSaid {
			t.Errorf("%d things are remembered", len(n.m.said))
		}
		refused += n.m.badMessages.Load()
	}
	if want := uint64(3 * (len(bad) + 1)); refused != want {
		t.Errorf("%d messages were refused, want %d", refused, want)
	}
	// Asked for by who took this node for the leader.
	for id := uint64(1); id <= 3; id++ {
		n := c.nodes[id]
		if st := n.g.Status(); st.State != "leader" {
			receiver{n.m}.Receive("default", &pb.Message{Type: pb.MsgTransferLeader.Enum(), From: new(id%3 + 1), To: new(id), Term: new(st.Term)})
		}
		if err := n.g.Err(); err != nil {
			t.Fatalf("node %d: %v", id, err)
		}
	}
	c.propose(2, "after")
	c.converged(1, 2, 3)
}

// TestLargestCommand: it goes through the log of several nodes; a larger one is refused.
// Not run without RAFT_LARGE.
func TestLargestCommand(t *testing.T) {
	if os.Getenv("RAFT_LARGE") == "" {
		t.Skip("RAFT_LARGE is not set: it needs some memory, and seconds")
	}
	c := newClusterWith(t, func(cfg *Config) { cfg.TickInterval = 200 * time.Millisecond }, 1, 2, 3)
	c.create(1, 2, 3)
	id := c.leader(1, 2, 3)
	g := c.nodes[id].g
	if _, err := g.Propose(bg, make([]byte, MaxCommandSize+1), nil); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("too large a command: %v", err)
	}
	c.propose(id, string(make([]byte, MaxCommandSize)))
	c.converged(1, 2, 3)
}
