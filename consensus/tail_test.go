package consensus

import (
	"bytes"
	"fmt"
	"testing"
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
