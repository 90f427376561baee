package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lookups are the names that the kernel has asked for since the mount.
func (n *member) lookups() int {
	n.t.Helper()
	var status struct {
		Mount struct{ Requests map[string]int }
	}
	if err := json.Unmarshal([]byte(n.vde("status", "--json", n.mnt)), &status); err != nil {
		n.t.Fatal(err)
	}
	return status.Mount.Requests["lookup"]
}

// TestClusterDirectories: the kernels keep the names of directories, and yet no path leads to where a directory was once another mount has
// moved or removed it, or kept others from using it.
func TestClusterDirectories(t *testing.T) {
	nodes := newCluster(t, 3)
	until(t, "three voters", nodes[0].voters(3))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	exists := func(path string) bool {
		t.Helper()
		_, err := os.Stat(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	for i := range 9 {
		a, b := nodes[i%3], nodes[(i+1)%3] // a changes, b knows what was
		d := fmt.Sprint("d", i)
		must(os.MkdirAll(a.path(d+"/sub"), 0o755))
		write(t, a.path(d+"/sub/old"), []byte("old"))
		read(t, b.path(d+"/sub/old"))

		must(os.Rename(a.path(d), a.path(d+"-moved")))
		if exists(b.path(d)) || exists(b.path(d+"/sub/old")) || !exists(b.path(d+"-moved/sub/old")) {
			t.Fatalf("round %d: %s finds a directory where it was before %s has moved it", i, b.name, a.name)
		}
		must(os.MkdirAll(a.path(d+"/sub"), 0o755))
		read(t, b.path(d+"-moved/sub/old"))
		must(os.Rename(a.path(d), a.path(d+"-new")))
		must(os.Rename(a.path(d+"-moved"), a.path(d)))
		must(os.Rename(a.path(d+"-new"), a.path(d+"-moved")))
		write(t, b.path(d+"/sub/new"), []byte("new")) // through b, where it knows the names the other way round
		if string(read(t, a.path(d+"/sub/new"))) != "new" || exists(a.path(d+"-moved/sub/new")) {
			t.Fatalf("round %d: %s wrote to where a directory had been before %s moved it", i, b.name, a.name)
		}

		must(os.Chmod(a.path(d), 0o750))
		if st, err := os.Stat(b.path(d)); err != nil || st.Mode().Perm() != 0o750 {
			t.Fatalf("round %d: %v, %v", i, st, err)
		}
		must(os.RemoveAll(a.path(d)))
		if exists(b.path(d+"/sub")) || exists(b.path(d)) {
			t.Fatalf("round %d: %s finds what %s has removed", i, b.name, a.name)
		}
		must(os.Mkdir(a.path(d), 0o755))
		write(t, a.path(d+"/again"), nil)
		if !exists(b.path(d + "/again")) {
			t.Fatalf("round %d: %s does not find what %s has made in the place of what it removed", i, b.name, a.name)
		}
	}

	// Both at once in one directory.
	var both [2]*exec.Cmd
	for i := range both {
		both[i] = exec.Command("sh", "-c", `set -e; for i in $(seq 20); do mkdir "$1.$i"; mv "$1.$i" "$1-$i"; rmdir "$1-$i"; done`, "sh", nodes[i].path(fmt.Sprint("both", i)))
		must(both[i].Start())
	}
	for _, c := range both {
		must(c.Wait())
	}

	// Deep paths cost one request, not one for each part.
	deep := strings.Repeat("deep/", 8)
	must(os.MkdirAll(nodes[0].path(deep), 0o755))
	write(t, nodes[0].path(deep+"file"), nil)
	before := nodes[1].lookups()
	const stats = 200
	for range stats {
		if !exists(nodes[1].path(deep + "file")) {
			t.Fatal("it is not there")
		}
	}
	if asked := nodes[1].lookups() - before; asked > 3*stats {
		t.Fatalf("%d lookups for %d times stat(2) of a path of nine parts", asked, stats)
	}

	// A mount that hangs holds others up for a moment only, and is right when it goes on.
	must(os.MkdirAll(nodes[0].path("hang"), 0o755))
	write(t, nodes[0].path("hang/file"), nil)
	read(t, nodes[2].path("hang/file"))
	pid := nodes[2].status().PID
	must(syscall.Kill(pid, syscall.SIGSTOP))
	began := time.Now()
	err := os.Rename(nodes[0].path("hang"), nodes[0].path("hung"))
	took := time.Since(began)
	must(syscall.Kill(pid, syscall.SIGCONT))
	must(err)
	if took > 10*time.Second {
		t.Fatalf("the rename took %v", took)
	}
	if exists(nodes[2].path("hang/file")) || !exists(nodes[2].path("hung/file")) {
		t.Fatal("the mount that hung finds a directory where it was")
	}
}

// TestClusterRemoveTogether removes a tree on two mounts at once: what the other one has removed is not there any more, and that is all.
func TestClusterRemoveTogether(t *testing.T) {
	nodes := newCluster(t, 3)
	until(t, "three voters", nodes[0].voters(3))
	for round := range 2 {
		tree := fmt.Sprint("tree", round)
		for i := range 9 {
			dir := nodes[0].path(fmt.Sprint(tree, "/a", i, "/b/c"))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for j := range 6 {
				write(t, fmt.Sprint(dir, "/../f", j), []byte("x"))
			}
		}
		var both sync.WaitGroup
		for _, n := range nodes[:2] {
			both.Go(func() {
				// A directory that the other one empties at this moment is not empty yet, or is gone: the next attempt has nothing to say.
				for attempt := 0; ; attempt++ {
					out, err := exec.Command("rm", "-rf", n.path(tree)).CombinedOutput()
					if strings.Contains(strings.ToLower(string(out)), "stale") {
						t.Errorf("round %d, %s: %s", round, n.name, out)
					}
					if err == nil || attempt == 5 {
						if err != nil {
							t.Errorf("round %d, %s: %v, %s", round, n.name, err, out)
						}
						return
					}
				}
			})
		}
		both.Wait()
		for _, n := range nodes {
			if _, err := os.Stat(n.path(tree)); !os.IsNotExist(err) {
				t.Errorf("round %d, %s: %v", round, n.name, err)
			}
		}
	}
}
