package consensus

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
)

func TestWhoUsesAGroupMost(t *testing.T) {
	for _, c := range []struct {
		name string
		by   map[uint64]uint64
		led  uint64 // ticks ago
		want uint64
		home bool
	}{
		{"nobody", nil, 1000, 0, false},
		{"another node, all of it", map[uint64]uint64{2: 500}, 1000, 2, false},
		{"another node, most of it", map[uint64]uint64{1: 50, 2: 450}, 1000, 2, false},
		{"another node, too little more", map[uint64]uint64{1: 110, 2: 390}, 1000, 0, false},
		{"another node, a little", map[uint64]uint64{2: localityLoad - 1}, 1000, 0, false},
		{"another node, but the leader is new", map[uint64]uint64{2: 500}, localityStay - 1, 0, false},
		{"two others", map[uint64]uint64{2: 250, 3: 250}, 1000, 0, false},
		{"this node", map[uint64]uint64{1: 500, 3: 20}, 1000, 0, true},
	} {
		r := &replica{id: 1, state: raft.StateLeader, ticks: 2000, usage: usage{by: c.by, led: 2000 - c.led}}
		if got := r.lookAtUsage(); got != c.want {
			t.Errorf("%s: it should be led by %d, want %d", c.name, got, c.want)
		}
		if got := r.settledHere(); got != c.home {
			t.Errorf("%s: it stays: %v, want %v", c.name, got, c.home)
		}
		if len(r.usage.by) != 0 {
			t.Errorf("%s: what was counted is counted again", c.name)
		}
	}
}

// TestLeaderFollowsItsUser: a group that one node uses is led by it before long, and nothing that was proposed meanwhile is lost.
func TestLeaderFollowsItsUser(t *testing.T) {
	c := newCluster(t, 1, 2, 3)
	c.create(1, 2, 3)
	ctx, cancel := context.WithTimeout(bg, 60*time.Second)
	defer cancel()
	within(t, 30*time.Second, "there is a leader", func() bool { return c.leader(1, 2, 3) != 0 })
	user := c.leader(1, 2, 3)%3 + 1
	done := 0
	within(t, 30*time.Second, "the group is led by the node that uses it", func() bool {
		for range 20 {
			_, err := c.nodes[user].g.Propose(ctx, []byte("x"), nil)
			if err != nil && !errors.Is(err, ErrUnknownOutcome) {
				t.Fatal(err)
			}
			if err == nil {
				done++
			}
		}
		return c.nodes[user].g.Leads()
	})
	if got := len(c.converged(1, 2, 3)); got < done {
		t.Fatalf("%d commands are there, %d were acknowledged", got, done)
	}
}
