package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// deadline is for what should take a moment, on a machine that is busy.
const deadline = 20 * time.Second

// fullDisks makes nodes whose disks can be filled.
func fullDisks(t *testing.T, ticks int) (*cluster, map[uint64]*atomic.Bool) {
	full := map[uint64]*atomic.Bool{1: {}, 2: {}, 3: {}}
	c := newClusterWith(t, func(cfg *Config) {
		is := full[cfg.NodeID]
		cfg.fullTicks = ticks
		cfg.FS = errorfs.Wrap(cfg.FS, errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate, errorfs.OpCreate:
				if is.Load() {
					return syscall.ENOSPC
				}
			}
			return nil
		}))
	}, 1, 2, 3)
	c.create(1, 2, 3)
	return c, full
}

// TestLeaderWithAFullDisk: it hands the group over, the others go on, its own proposals
// fail with an error that names the file, and with room it catches up.
func TestLeaderWithAFullDisk(t *testing.T) {
	c, full := fullDisks(t, 0)
	c.propose(1, "before")
	c.converged(1, 2, 3)
	old := c.leader(1, 2, 3)
	g := c.nodes[old].g
	full[old].Store(true)
	refused := make(chan error, 1)
	go func() {
		_, err := g.Propose(bg, bytes.Repeat([]byte("x"), 8<<10), nil) // a new segment is needed
		refused <- err
	}()
	rest := []uint64{old%3 + 1, (old+1)%3 + 1}
	next := c.leader(rest...)
	for i := range 20 {
		c.propose(next, fmt.Sprintf("during %d %s", i, bytes.Repeat([]byte("x"), 1<<10)))
	}
	c.converged(rest...)
	within(t, deadline, "the node says that its disk is full", func() bool { return g.Status().Full != nil })
	_, err := g.Propose(bg, []byte("y"), nil)
	if !errors.Is(err, ErrDiskFull) || errors.Is(err, ErrNotAppended) || errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "raft/default/") {
		t.Fatalf("a proposal on the full node: %v", err)
	}
	if g.Err() != nil || g.Status().State == "leader" {
		t.Fatalf("the full node: %+v", g.Status())
	}
	full[old].Store(false)
	c.converged(1, 2, 3)
	select {
	case err := <-refused:
		if err != nil && !errors.Is(err, ErrUnknownOutcome) && !errors.Is(err, ErrDiskFull) {
			t.Fatalf("the proposal that filled it: %v", err)
		}
	case <-time.After(deadline):
		t.Fatal("the proposal that filled the disk is not answered")
	}
	if g.Status().Full != nil {
		t.Fatalf("still full: %v", g.Status().Full)
	}
	c.propose(old, "after")
	c.converged(1, 2, 3)
}

// TestDiskThatStaysFull: after a while the group stops on that node, and says which
// file has no room.
func TestDiskThatStaysFull(t *testing.T) {
	c, full := fullDisks(t, 50)
	c.propose(1, "before")
	c.converged(1, 2, 3)
	leader := c.leader(1, 2, 3)
	f := leader%3 + 1
	g := c.nodes[f].g
	full[f].Store(true)
	for i := range 20 {
		c.propose(leader, fmt.Sprintf("during %d %s", i, bytes.Repeat([]byte("x"), 1<<10)))
	}
	select {
	case <-g.Done():
	case <-time.After(4 * deadline):
		t.Fatal("it does not stop")
	}
	if err := g.Err(); !errors.Is(err, ErrDiskFull) || errors.Is(err, ErrNotAppended) || !strings.Contains(err.Error(), "raft/default/") {
		t.Fatal(err)
	}
	c.propose(leader, "after")
}
