package replica

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs/cluster"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// testCluster is several nodes in this process, on loopback without TLS, each with a store on disk.
type testCluster struct {
	t     testing.TB
	dir   string
	lease time.Duration
	size  uint64                 // of a store in bytes
	old   bool                   // nodes that are opened run an old program
	disk  func(id uint64) vfs.FS // below the store of a node; nil: vfs.Default
	nodes []*testNode            // by id - 1; nil: removed or never there
}

type testNode struct {
	cfg *cluster.Config
	dir string
	v   *Volume // nil: down
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// newTestCluster starts n nodes and returns when all of them vote.
func newTestCluster(t testing.TB, n int, lease time.Duration) *testCluster {
	t.Helper()
	return newSizedCluster(t, n, lease, 256<<20)
}

func newSizedCluster(t testing.TB, n int, lease time.Duration, size uint64) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir(), lease: lease, size: size}
	c.begin(n)
	return c
}

// begin starts the first n nodes and returns when all of them vote.
func (c *testCluster) begin(n int) {
	t := c.t
	t.Helper()
	t.Cleanup(func() {
		var closing sync.WaitGroup
		for _, n := range c.nodes {
			if n.v != nil {
				closing.Go(func() { _ = n.v.Close() })
			}
		}
		closing.Wait()
	})
	c.format(1, freePort(t))
	c.up(1)
	for id := 2; id <= n; id++ {
		c.join()
	}
	c.voters(n)
}

func (c *testCluster) format(id uint64, addr string) *testNode {
	c.t.Helper()
	dir := filepath.Join(c.dir, fmt.Sprint("n", id))
	o := vde.FormatOptions{Size: c.size, NodeID: id}
	if c.disk != nil {
		o.FS = c.disk(id)
	}
	if _, err := vde.Format(dir, o); err != nil {
		c.t.Fatal(err)
	}
	n := &testNode{dir: dir, cfg: &cluster.Config{
		ClusterID: [16]byte{7}, NodeID: id, Name: fmt.Sprint("n", id), Listen: addr, Advertise: addr, Founder: id == 1,
	}}
	if id > 1 {
		for _, p := range c.nodes {
			n.cfg.Peers = append(n.cfg.Peers, p.cfg.Self())
		}
	}
	c.nodes = append(c.nodes, n)
	return n
}

// up opens a node.
func (c *testCluster) up(id uint64) *Volume {
	c.t.Helper()
	if err := c.open(id); err != nil {
		c.t.Fatalf("node %d: %v", id, err)
	}
	return c.nodes[id-1].v
}

// open opens a node, if it can be.
func (c *testCluster) open(id uint64) error {
	n := c.nodes[id-1]
	o := Options{Cluster: n.cfg, Logger: testLogger(), Timeout: 20 * time.Second, lease: c.lease, resolve: 200 * time.Millisecond, old: c.old}
	if c.disk != nil {
		o.FS = c.disk(id)
	}
	v, err := Open(n.dir, o)
	if err != nil {
		return err
	}
	n.v = v
	return nil
}

// join admits another node and opens it.
func (c *testCluster) join() *Volume {
	c.t.Helper()
	return c.up(c.admit())
}

// admit admits another node and makes its store. It does not run yet.
func (c *testCluster) admit() (id uint64) {
	c.t.Helper()
	ctx := context.Background()
	id = uint64(len(c.nodes) + 1)
	addr := freePort(c.t)
	st := c.v(1).Cluster()
	invite := cluster.Invite{ID: [16]byte{byte(id)}, SecretHash: cluster.HashSecret([32]byte{byte(id)}), Expires: time.Now().Add(time.Hour)}
	if err := st.PutInvite(ctx, invite); err != nil {
		c.t.Fatal(err)
	}
	node, err := st.Join(ctx, invite.ID, [32]byte{byte(id)}, time.Now(), cluster.Node{Name: fmt.Sprint("n", id), Addr: addr})
	if err != nil || node.ID != id {
		c.t.Fatalf("join: %+v, %v", node, err)
	}
	if _, err := st.Join(ctx, invite.ID, [32]byte{byte(id)}, time.Now(), cluster.Node{Name: "again", Addr: "127.0.0.1:1"}); !errors.Is(err, cluster.ErrInviteUsed) {
		c.t.Fatalf("an invitation was good twice: %v", err)
	}
	c.format(id, addr)
	return id
}

func (c *testCluster) v(id int) *Volume { return c.nodes[id-1].v }

// down closes a node as a crash would be seen by the others: without ending its session.
func (c *testCluster) down(id int) {
	c.t.Helper()
	n := c.nodes[id-1]
	n.v.node.dead.Store(true)
	if err := n.v.Close(); err != nil {
		c.t.Logf("closing node %d: %v", id, err)
	}
	n.v = nil
}

func (c *testCluster) voters(n int) {
	c.t.Helper()
	c.eventually("the voters", func() error {
		for _, node := range c.nodes {
			if node.v == nil {
				continue
			}
			if st := node.v.bySlot()[0].Status(); len(st.Voters) != n || st.Leader == 0 {
				return fmt.Errorf("node %d knows the voters %d and leader %d, want %d", node.cfg.NodeID, st.Voters, st.Leader, n)
			}
		}
		return nil
	})
}

func (c *testCluster) eventually(what string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// groups adds groups and waits until every node has them.
func (c *testCluster) groups(names ...string) {
	c.t.Helper()
	for _, name := range names {
		if err := c.v(1).Cluster().AddGroup(context.Background(), name); err != nil {
			c.t.Fatalf("group %s: %v", name, err)
		}
	}
	c.eventually("the groups", func() error {
		for _, n := range c.nodes {
			if n.v != nil && (len(n.v.all()) != len(names)+1 || len(n.v.mgr.Routes().Slots()) != len(names)+1) {
				return fmt.Errorf("node %d has %d groups", n.cfg.NodeID, len(n.v.all()))
			}
		}
		return nil
	})
}

// consistent checks what must hold when all is quiet: every name's file is there, every file has as many names as it counts,
// nothing is unsettled, and all nodes hold the same.
func (c *testCluster) consistent() {
	c.t.Helper()
	c.eventually("a consistent whole", func() error {
		var first map[uint16]string
		var stood []string // where the groups stood on each node; while sessions end and begin, group 0 goes on
		for _, n := range c.nodes {
			if n.v == nil {
				continue
			}
			if err := checkNames(n.v); err != nil {
				return fmt.Errorf("node %d: %w", n.cfg.NodeID, err)
			}
			digests := map[uint16]string{}
			for _, g := range n.v.all() {
				if err := n.v.barrier(context.Background(), meta.MakeIno(g.slot, 0)); err != nil {
					return err
				}
				d, err := n.v.eng.Digest(context.Background(), g.slot)
				if err != nil {
					return err
				}
				digests[g.slot] = fmt.Sprint(d)
				state, _ := n.v.eng.Group(g.slot)
				stood = append(stood, fmt.Sprintf("node %d has group %d of entry %d", n.cfg.NodeID, g.slot, state.Applied))
			}
			if first == nil {
				first = digests
			} else if !maps.Equal(first, digests) {
				return fmt.Errorf("node %d holds something else than another: %v, %v (%s)", n.cfg.NodeID, digests, first, strings.Join(stood, ", "))
			}
		}
		return nil
	})
}

func checkNames(v *Volume) error {
	ctx := context.Background()
	names := map[meta.Ino]uint32{}
	var walk func(dir meta.Ino) error
	walk = func(dir meta.Ino) error {
		var dirs []meta.Ino
		err := v.ReadDir(ctx, dir, 0, false, func(e meta.Dirent, _ *meta.Inode) bool {
			if names[e.Ino]++; e.Type == unix.S_IFDIR {
				dirs = append(dirs, e.Ino)
			}
			return true
		})
		for _, d := range dirs {
			err = errors.Join(err, walk(d))
		}
		return err
	}
	if err := walk(meta.RootIno); err != nil {
		return err
	}
	for ino, n := range names {
		in, err := v.Inode(ctx, ino)
		if err != nil {
			return fmt.Errorf("a name of nothing: inode %d: %w", ino, err)
		}
		if in.Mode&unix.S_IFMT == unix.S_IFREG && in.Nlink != n {
			return fmt.Errorf("inode %d counts %d names, and has %d", ino, in.Nlink, n)
		}
	}
	inodes := uint64(0)
	for _, g := range v.all() {
		state, _ := v.eng.Group(g.slot)
		inodes += state.Inodes
		u, err := posix.ReadUnsettled(facts{v, g.slot}, 1000)
		if err != nil {
			return err
		}
		// What says that a removal was done stays for a while.
		if len(u.Pending)+len(u.Dropped)+len(u.Placed) > 0 {
			return fmt.Errorf("group %s has unsettled records: %+v", g.Name(), u)
		}
	}
	if inodes != uint64(len(names))+1 {
		return fmt.Errorf("there are %d inodes and %d with a name", inodes, len(names)+1)
	}
	return nil
}

// testLogger logs to standard error where VDE_LOG is set.
func testLogger() logrus.FieldLogger {
	if os.Getenv("VDE_LOG") == "" {
		return quiet()
	}
	l := logrus.New()
	l.SetLevel(logrus.DebugLevel)
	l.SetFormatter(&logrus.TextFormatter{TimestampFormat: "15:04:05.000", FullTimestamp: true})
	return l
}
