package consensus

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/sirupsen/logrus"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// TestFollowerThatLags: one that was away for a short while gets entries, one that was
// away for long a snapshot, and the leader's log stays within bounds.
func TestFollowerThatLags(t *testing.T) {
	const kept = 64 << 10
	for _, c := range []struct {
		name     string
		bytes    int // written while it is away
		snapshot bool
	}{{"short", kept / 2, false}, {"long", 4 * kept, true}} {
		t.Run(c.name, func(t *testing.T) {
			cl := newClusterWith(t, func(cfg *Config) { cfg.LogTail, cfg.LogTailMax = 1, kept }, 1, 2, 3)
			cl.create(1, 2, 3)
			leader := cl.leader(1, 2, 3)
			cl.propose(leader, "before")
			cl.converged(1, 2, 3)
			leader = cl.leader(1, 2, 3)
			away := leader%3 + 1
			cl.net.Isolate(away, true)
			size := 1 << 10
			for i := range c.bytes / size {
				cl.propose(leader, fmt.Sprintf("%d %s", i, bytes.Repeat([]byte("x"), size)))
				g := cl.nodes[leader].g
				if err := g.Compact(g.AppliedIndex()); err != nil {
					t.Fatal(err)
				}
			}
			g := cl.nodes[leader].g
			if st := g.Status(); st.State != "leader" {
				t.Skip("the leader changed")
			} else if max := uint64(kept/size + 16); st.Last-st.First > max {
				t.Fatalf("the log holds entries %d to %d: more than the %d that are allowed", st.First, st.Last, max)
			} else if first := st.First; first > 1 != c.snapshot {
				t.Fatalf("the log starts at %d", first)
			}
			cl.net.Isolate(away, false)
			cl.converged(1, 2, 3)
			if got := cl.nodes[away].sm.restored > 0; got != c.snapshot {
				t.Fatalf("it got a snapshot: %v, want %v", got, c.snapshot)
			}
			// Nobody is behind: what is left is the tail.
			within(t, deadline, "the log is given up", func() bool {
				id := cl.leader(1, 2, 3)
				g := cl.nodes[id].g
				if err := g.Compact(g.AppliedIndex()); err != nil {
					t.Fatal(err)
				}
				st := g.Status()
				return st.Last-st.First < 16
			})
		})
	}
}

// TestTailIsKept: without anybody behind, a replica keeps Config.LogTail.
func TestTailIsKept(t *testing.T) {
	const kept = 32 << 10
	cl := newClusterWith(t, func(cfg *Config) { cfg.LogTail = kept }, 1, 2, 3)
	cl.create(1, 2, 3)
	for i := range 100 {
		cl.propose(1, fmt.Sprintf("%d %s", i, bytes.Repeat([]byte("x"), 1<<10)))
	}
	cl.converged(1, 2, 3)
	for id := uint64(1); id <= 3; id++ {
		g := cl.nodes[id].g
		if err := g.Sync(bg); err != nil {
			t.Fatal(err)
		}
		if err := g.Compact(g.AppliedIndex()); err != nil {
			t.Fatal(err)
		}
		st := g.Status()
		if n := st.Last - st.First; n < 25 || n > 45 {
			t.Errorf("node %d keeps %d entries of 1 KiB, about 32 are to be kept", id, n)
		}
	}
}

// TestLastAcks keeps the furthest acknowledgement of each kind, and everything else in order.
func TestLastAcks(t *testing.T) {
	ack := func(to, term, index uint64) *pb.Message {
		return &pb.Message{Type: pb.MsgAppResp.Enum(), To: &to, Term: &term, Index: &index}
	}
	vote := &pb.Message{Type: pb.MsgVoteResp.Enum(), To: new(uint64(1)), Term: new(uint64(2))}
	reject := ack(1, 2, 3)
	reject.Reject = new(true)
	a12, a13, a14, b14, a25 := ack(1, 1, 2), ack(1, 1, 3), ack(1, 1, 4), ack(2, 1, 4), ack(1, 2, 5)
	for _, c := range []struct{ in, want []*pb.Message }{
		{nil, nil},
		{[]*pb.Message{a12}, []*pb.Message{a12}},
		{[]*pb.Message{a12, vote, a13, b14, a25}, []*pb.Message{vote, a13, b14, a25}},
		{[]*pb.Message{a14, vote, reject, a12, b14}, []*pb.Message{vote, reject, a14, b14}}, // a message that came late
		{[]*pb.Message{a12, a14, a13, a13}, []*pb.Message{a14}},
	} {
		if got := lastAcks(slices.Clone(c.in)); !slices.Equal(got, c.want) {
			t.Errorf("%v leaves %v, want %v", c.in, got, c.want)
		}
	}
}

// TestEngineCopies: replica.propose uses its buffer again, which it may as long as the
// engine of a leader copies what is proposed.
func TestEngineCopies(t *testing.T) {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	store := raft.NewMemoryStorage()
	if err := store.ApplySnapshot(&pb.Snapshot{Metadata: &pb.SnapshotMetadata{
		Index: new(uint64(1)), Term: new(uint64(1)), ConfState: &pb.ConfState{Voters: []uint64{1, 2}}}}); err != nil {
		t.Fatal(err)
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: store, AsyncStorageWrites: true, MaxInflightMsgs: 10, Logger: raftLogger{quiet},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := rn.Campaign(); err != nil {
		t.Fatal(err)
	}
	for rd := rn.Ready(); ; rd = rn.Ready() {
		for _, m := range rd.Messages {
			for _, r := range m.GetResponses() {
				if err := rn.Step(r); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !rn.HasReady() {
			break
		}
	}
	term := rn.BasicStatus().HardState.GetTerm()
	if err := rn.Step(&pb.Message{Type: pb.MsgVoteResp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: &term}); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 1<<20)
	if err := rn.Propose(data); err != nil {
		t.Fatal(err)
	}
	clear(data)
	found := false
	for _, e := range rn.Ready().Entries {
		if d := e.GetData(); len(d) == len(data) {
			found = bytes.Count(d, []byte("x")) == len(d)
		}
	}
	if !found {
		t.Fatal("the engine keeps what was proposed: replica.propose must not use its buffer again")
	}
}
