package replica

import (
	"context"
	"fmt"
	"testing"
	"time"

	"vdefs/fs/cluster"
	"vdefs/vde/meta"
)

// TestGoOnAlone: a node that is left over goes on with all that it has, and others join it.
func TestGoOnAlone(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	if err := c.v(1).Cluster().AddGroup(ctx, "g1"); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for i := range 40 {
		name := fmt.Sprint("f", i)
		ino := mkfile(t, c.v(2), name)
		want[name] = fmt.Sprint("contents of ", i)
		if _, err := c.v(2).Write(ctx, ino, 0, []byte(want[name]), 0); err != nil {
			t.Fatal(err)
		}
	}
	dir := c.nodes[1].dir
	if _, err := GoOnAlone(dir, Options{Logger: testLogger()}); err == nil {
		t.Fatal("a store that is in use went on alone")
	}
	for id := 1; id <= 3; id++ {
		c.down(id)
	}
	found, err := LookAlone(dir)
	if err != nil || found.Node != 2 || len(found.Groups) != 2 || len(found.Groups[0].Voters) != 3 {
		t.Fatalf("looking at the survivor: %+v, %v", found, err)
	}
	for round := range 2 { // as after a crash
		s, err := GoOnAlone(dir, Options{Logger: testLogger()})
		if err != nil {
			t.Fatal(err)
		}
		if lost := 2 * (1 - round); len(s.Lost) != lost || len(s.Groups) != 2 {
			t.Fatalf("round %d: %+v", round, s)
		}
		for i, g := range s.Groups {
			// What was told before is what is gone on with: of several survivors it tells which has most.
			if was := found.Groups[i]; round == 0 && (g.Last == 0 || was.Last != g.Last || was.Term != g.Term) {
				t.Fatalf("group %s ends with entry %d of term %d, told was %d of %d", g.Group, g.Last, g.Term, was.Last, was.Term)
			}
		}
	}
	// The cluster of one, with another identity.
	c.nodes = c.nodes[1:2]
	cfg := c.nodes[0].cfg
	cfg.ClusterID, cfg.Founder, cfg.Peers = [16]byte{8}, true, nil
	v, err := Open(dir, Options{Cluster: cfg, Logger: testLogger(), Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.nodes[0].v = v
	check := func(v *Volume) {
		t.Helper()
		for name, content := range want {
			in, err := v.Lookup(ctx, meta.RootIno, name)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := readAll(t, v, in.Ino); string(got) != content {
				t.Fatalf("%s holds %q, want %q", name, got, content)
			}
		}
	}
	check(v)
	want["new"] = "after it"
	if _, err := v.Write(ctx, mkfile(t, v, "new"), 0, []byte(want["new"]), 0); err != nil {
		t.Fatal(err)
	}
	nodes, err := v.Cluster().Nodes(ctx)
	if err != nil || len(nodes) != 1 {
		t.Fatalf("the cluster has the nodes %+v, %v", nodes, err)
	}
	// Another node joins. Its id is none that was in use before.
	invite := cluster.Invite{ID: [16]byte{9}, SecretHash: cluster.HashSecret([32]byte{9}), Expires: time.Now().Add(time.Hour)}
	if err := v.Cluster().PutInvite(ctx, invite); err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	node, err := v.Cluster().Join(ctx, invite.ID, [32]byte{9}, time.Now(), cluster.Node{Name: "new", Addr: addr})
	if err != nil || node.ID != 4 {
		t.Fatalf("join: %+v, %v", node, err)
	}
	n := c.format(node.ID, addr)
	n.cfg.ClusterID, n.cfg.Peers = cfg.ClusterID, []cluster.Node{cfg.Self()}
	other, err := Open(n.dir, Options{Cluster: n.cfg, Logger: testLogger(), Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	n.v = other
	c.voters(2)
	check(other)
}
