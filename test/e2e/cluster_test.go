package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// member is a disk that is a node of a cluster.
type member struct {
	*disk
	name, addr string
}

// newCluster makes a cluster of nodes n1 to nN, each mounted.
func newCluster(t *testing.T, size int) []*member {
	t.Helper()
	var nodes []*member
	for i := range size {
		n := &member{name: fmt.Sprintf("n%d", i+1), addr: freeAddr(t)}
		if i == 0 {
			n.disk = newDisk(t, "1G")
			n.vde("mount", n.store, n.mnt, "--listen", n.addr, "--name", n.name)
		} else {
			dir := t.TempDir()
			n.disk = &disk{t: t, store: filepath.Join(dir, "store"), mnt: filepath.Join(dir, "mnt")}
			if err := os.Mkdir(n.mnt, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(n.finish)
			n.vde("join", nodes[0].invite(), n.store, "--size", "1G", "--listen", n.addr, "--name", n.name)
			n.mount()
		}
		nodes = append(nodes, n)
	}
	// Before each is unmounted and checked for itself: the last ones have no majority any more.
	t.Cleanup(func() {
		var all sync.WaitGroup
		for _, n := range nodes {
			if n.isMounted() {
				all.Go(func() {
					if _, stderr, code := vde("umount", n.mnt); code != 0 {
						t.Errorf("at the end: vde umount %s: %d, %s", n.name, code, stderr)
					}
				})
			}
		}
		all.Wait()
	})
	return nodes
}

// freeAddr finds an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (n *member) invite() string {
	n.t.Helper()
	return strings.TrimSpace(n.vde("cluster", "invite", n.store))
}

// clusterFacts are the fields of `vde cluster status --json` that scripts depend on.
type clusterFacts struct {
	Cluster  string
	Node     uint64
	Majority bool
	Nodes    []struct {
		ID         uint64
		Name, Addr string
	}
	Groups []struct {
		Name     string
		Leader   uint64
		Voters   []uint64
		Learners []uint64
	}
}

func (n *member) cluster() clusterFacts {
	n.t.Helper()
	var f clusterFacts
	if err := json.Unmarshal([]byte(n.vde("cluster", "status", n.mnt, "--json")), &f); err != nil {
		n.t.Fatal(err)
	}
	return f
}

// until waits for something that the cluster does by itself.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen within 30 seconds: %s", what)
		}
	}
}

// voters tells whether the default group has so many, and a leader.
func (n *member) voters(count int) func() bool {
	return func() bool {
		g := n.cluster().Groups[0]
		return len(g.Voters) == count && len(g.Learners) == 0 && g.Leader != 0
	}
}

// sees tells that what was written on one node is read on the others once the file is closed.
func sees(t *testing.T, writer *member, readers ...*member) {
	t.Helper()
	data := bytes.Repeat([]byte(writer.name+time.Now().String()), 3000) // more than a page, less than a large write
	name := "of-" + writer.name
	write(t, writer.path(name), data)
	for _, r := range readers {
		if got := read(t, r.path(name)); !bytes.Equal(got, data) {
			t.Fatalf("%s wrote %d bytes, %s reads %d others", writer.name, len(data), r.name, len(got))
		}
	}
}

// TestCluster takes three nodes through what happens to a cluster: they join, one is killed and comes back, the leader moves, one is
// removed.
func TestCluster(t *testing.T) {
	nodes := newCluster(t, 3)
	one, two, three := nodes[0], nodes[1], nodes[2]
	until(t, "three voters", one.voters(3))
	f := three.cluster()
	if !f.Majority || f.Node != 3 || len(f.Nodes) != 3 || f.Nodes[1].Name != "n2" || f.Nodes[1].Addr != two.addr || f.Cluster != one.cluster().Cluster {
		t.Fatalf("%+v", f)
	}
	sees(t, one, two, three)
	sees(t, two, one, three)
	sees(t, three, one, two)

	// What is refused changes nothing.
	token := one.invite()
	fourth := filepath.Join(t.TempDir(), "store")
	if _, stderr, code := vde("join", token, fourth, "--size", "1G", "--listen", freeAddr(t), "--advertise", "127.0.0.1:1"); code != 31 {
		t.Fatalf("an address where nobody is: %d, %s", code, stderr)
	}
	if _, stderr, code := vde("join", token, fourth, "--size", "1G", "--listen", three.addr); code != 31 {
		t.Fatalf("an address in use: %d, %s", code, stderr)
	}

	if f := one.cluster(); len(f.Nodes) != 3 {
		t.Fatalf("%+v", f)
	}

	// The leader moves to a node that is asked to lead.
	one.vde("group", "move-leader", one.store, "default", "n2")
	until(t, "n2 leads", func() bool { return one.cluster().Groups[0].Leader == 2 })
	sees(t, one, two, three)

	// Two of three go on, and the third catches up.
	two.kill()
	sees(t, one, three)
	until(t, "another leads", func() bool { l := one.cluster().Groups[0].Leader; return l != 0 && l != 2 })
	two.mount()
	sees(t, three, two, one)
	sees(t, two, three)

	// One is removed, and the rest is a cluster of two.
	if out := one.vde("cluster", "remove", one.store, "n3", "--json"); !strings.Contains(out, `"id": 3`) {
		t.Fatal(out)
	}
	until(t, "two voters", one.voters(2))
	if f := one.cluster(); len(f.Nodes) != 2 {
		t.Fatalf("%+v", f)
	}
	three.kill() // the machine is switched off; left alone it would try to tell the others what it still has
	sees(t, two, one)
	if _, stderr, code := vde("cluster", "remove", one.store, "n3"); code != 34 {
		t.Fatalf("removed twice: %d, %s", code, stderr)
	}

	// A node may run without a mount.
	two.umount()
	two.vde("serve", two.store)
	sees(t, one)
	if _, stderr, code := vde("mount", two.store, two.mnt); code != 12 {
		t.Fatalf("mounted while it is served: %d, %s", code, stderr)
	}
	two.vde("serve", "--stop", two.store)
	two.mount()
	sees(t, one, two)
}

// TestClusterCreateTogether: an open(2) with O_CREAT and without O_EXCL never fails because another mount was first, as with lock files.
func TestClusterCreateTogether(t *testing.T) {
	nodes := newCluster(t, 3)
	until(t, "three voters", nodes[0].voters(3))
	together := func(name string, flags int) (made []os.FileInfo, refused []error) {
		var all sync.WaitGroup
		var mu sync.Mutex
		for _, n := range nodes {
			all.Go(func() {
				f, err := os.OpenFile(n.path(name), flags, 0o644)
				var st os.FileInfo
				if err == nil {
					st, err = f.Stat()
					f.Close()
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					refused = append(refused, err)
				} else {
					made = append(made, st)
				}
			})
		}
		all.Wait()
		return made, refused
	}
	for i := range 60 {
		made, refused := together(fmt.Sprint("lock", i), os.O_CREATE|os.O_RDWR)
		if len(refused) > 0 {
			t.Fatalf("round %d: %v", i, refused)
		}
		for _, st := range made {
			if st.Sys().(*syscall.Stat_t).Ino != made[0].Sys().(*syscall.Stat_t).Ino {
				t.Fatalf("round %d: the mounts opened different files", i)
			}
		}
		made, refused = together(fmt.Sprint("first", i), os.O_CREATE|os.O_EXCL|os.O_RDWR)
		if len(made) != 1 || !errors.Is(refused[0], os.ErrExist) || !errors.Is(refused[1], os.ErrExist) {
			t.Fatalf("round %d: %d were the first, the others have %v", i, len(made), refused)
		}
	}
}
