package replica

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdefs/fs/cluster"
	"vdefs/vde/meta"
)

// A node that was removed learns it at its start, whether it never ran, or ran before, and also from a node that has no majority.
func TestRemovedWhileDown(t *testing.T) {
	c := newTestCluster(t, 3, time.Second)
	ctx := context.Background()
	never := c.admit()
	c.down(3)
	for _, id := range []uint64{never, 3} {
		if err := c.v(1).Cluster().Remove(ctx, id, false); err != nil {
			t.Fatal(err)
		}
	}
	c.voters(2)
	for _, id := range []uint64{never, 3} {
		began := time.Now()
		err := c.open(id)
		if !errors.Is(err, cluster.ErrRemoved) || !strings.Contains(err.Error(), "vde join") || time.Since(began) > 20*time.Second {
			t.Errorf("node %d, after %v: %v", id, time.Since(began), err)
		}
	}
	// One that has no majority itself still knows.
	c.down(2)
	if err := c.open(3); !errors.Is(err, cluster.ErrRemoved) {
		t.Error(err)
	}
}

// A node that is removed while it runs refuses everything at once, also if it has not heard of that from the log.
func TestRemovedWhileUp(t *testing.T) {
	for name, cut := range map[string]bool{"heard": false, "cut off": true} {
		t.Run(name, func(t *testing.T) {
			c := newTestCluster(t, 3, time.Second)
			three := c.v(3)
			if cut {
				for _, id := range []int{1, 2} {
					c.v(id).node.transport.SetPeer(3, "127.0.0.1:1")
				}
			}
			if err := c.v(1).Cluster().Remove(context.Background(), 3, false); err != nil {
				t.Fatal(err)
			}
			c.eventually("the refusal", func() error {
				if err := three.node.removed(); !errors.Is(err, cluster.ErrRemoved) {
					return errors.New("it does not know yet")
				}
				return nil
			})
			began := time.Now()
			_, err := three.Inode(context.Background(), meta.RootIno)
			if !errors.Is(err, syscall.EIO) || time.Since(began) > 10*time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			if _, err := three.Cluster().Nodes(context.Background()); !errors.Is(err, cluster.ErrRemoved) {
				t.Error(err)
			}
			if s := three.Status(); !strings.Contains(s.Error, "removed") {
				t.Errorf("%+v", s)
			}
		})
	}
}
