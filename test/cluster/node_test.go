package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// program is the vde under test, built once.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "vde-cluster")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "vde")
		build := exec.Command("go", "build", "-o", program, "../../cmd/vde")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// node is one machine: a namespace, a store and a mount.
type node struct {
	net        *network
	i          int
	store, mnt string
	options    string

	mu  sync.Mutex // one change of the daemon at a time
	pid int        // guarded by mu; 0: down
}

// vde runs the program in the node's namespace.
func (n *node) vde(args ...string) (string, error) {
	return run("nsenter", append([]string{"--net=/run/netns/" + n.net.ns(n.i), program}, args...)...)
}

// up mounts the store.
func (n *node) up(args ...string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := n.vde(append([]string{"mount", n.store, n.mnt, "-o", n.options}, args...)...); err != nil {
		return err
	}
	out, err := n.vde("status", n.store, "--json")
	if err != nil {
		return err
	}
	var s struct{ PID int }
	err = json.Unmarshal([]byte(out), &s)
	n.pid = s.PID
	return err
}

func (n *node) signal(s syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid == 0 {
		return errors.New("the daemon is down")
	}
	return syscall.Kill(n.pid, s)
}

// kill ends the daemon at once and mounts again after a while.
func (n *node) kill(away time.Duration) error {
	if err := n.signal(syscall.SIGKILL); err != nil {
		return err
	}
	n.mu.Lock()
	pid := n.pid
	n.pid = 0
	n.mu.Unlock()
	for syscall.Kill(pid, 0) == nil {
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(away)
	return n.up()
}

// newNodes makes a cluster, all of it mounted, with groups beside default.
func newNodes(t *testing.T, size int, options string, groups ...string) []*node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and mounts take root")
	}
	net := newNetwork(t, size)
	var nodes []*node
	dir := t.TempDir()
	for i := 1; i <= size; i++ {
		n := &node{net: net, i: i, store: filepath.Join(dir, fmt.Sprint("s", i)), mnt: filepath.Join(dir, fmt.Sprint("m", i)), options: options}
		if err := os.Mkdir(n.mnt, 0o755); err != nil {
			t.Fatal(err)
		}
		check := func(_ string, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		if i == 1 {
			check(n.vde("format", n.store, "--size", "2G"))
			check("", n.up("--listen", net.addr(i), "--name", "n1"))
		} else {
			out, err := nodes[0].vde("cluster", "invite", nodes[0].store, "--json")
			check("", err)
			var invite struct{ Token string }
			check("", json.Unmarshal([]byte(out), &invite))
			check(n.vde("join", invite.Token, n.store, "--size", "2G", "--listen", net.addr(i), "--name", fmt.Sprint("n", i)))
			check("", n.up())
		}
		t.Cleanup(func() {
			n.mu.Lock()
			pid := n.pid
			n.mu.Unlock()
			if pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGCONT)
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			_ = syscall.Unmount(n.mnt, syscall.MNT_DETACH)
			if t.Failed() {
				log, _ := os.ReadFile(filepath.Join(n.store, "vde.log"))
				t.Logf("log of node %d ends with\n%s", n.i, log[max(0, len(log)-3000):])
			}
		})
		nodes = append(nodes, n)
	}
	for _, g := range groups {
		if _, err := nodes[0].vde("group", "add", nodes[0].store, g); err != nil {
			t.Fatal(err)
		}
	}
	waitVoters(t, nodes, size)
	return nodes
}

func waitVoters(t *testing.T, nodes []*node, size int) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for _, n := range nodes {
		for {
			out, err := n.vde("cluster", "status", n.store, "--json")
			var s struct{ Groups []struct{ Voters []uint64 } }
			if err == nil {
				err = json.Unmarshal([]byte(out), &s)
			}
			all := err == nil && len(s.Groups) > 0
			for _, g := range s.Groups {
				all = all && len(g.Voters) == size
			}
			if all {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("node %d does not have %d voters in every group: %v\n%s", n.i, size, err, out)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// settle unmounts all nodes and has every store checked.
func settle(t *testing.T, nodes []*node) {
	t.Helper()
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() {
			if _, err := n.vde("umount", n.mnt); err != nil {
				t.Errorf("node %d: %v", n.i, err)
				return
			}
			n.mu.Lock()
			n.pid = 0
			n.mu.Unlock()
		})
	}
	all.Wait()
	for _, n := range nodes {
		if out, err := n.vde("fsck", n.store, "--data"); err != nil {
			t.Errorf("node %d: %v\n%s", n.i, err, out)
		}
	}
}
