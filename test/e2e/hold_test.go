package e2e

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountsAtOnce mounts one store several times at the same moment, which also makes it a member of a cluster: one mount is made, with
// the identity that is then on the disk.
func TestMountsAtOnce(t *testing.T) {
	d := newDisk(t, "64M")
	const mounts = 4
	type outcome struct {
		stderr string
		code   int
	}
	var outcomes [mounts]outcome
	var points, addrs [mounts]string
	for i := range mounts {
		points[i], addrs[i] = filepath.Join(t.TempDir(), "mnt"), freeAddr(t)
		if err := unix.Mkdir(points[i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for i := range mounts {
		all.Go(func() {
			_, outcomes[i].stderr, outcomes[i].code = vde("mount", d.store, points[i], "--listen", addrs[i], "--name", fmt.Sprintf("n%d", i))
		})
	}
	all.Wait()
	made := -1
	for i, o := range outcomes {
		switch {
		case o.code == 0 && made < 0:
			made = i
			d.mnt = points[i]
		case o.code == 0:
			t.Errorf("mounted twice: by %d and %d", made, i)
		case o.code != 12 || !strings.Contains(o.stderr, "is in use") && !strings.Contains(o.stderr, "is mounted at"):
			t.Errorf("mount %d: exit code %d, %s; want 12, and who has the store", i, o.code, o.stderr)
		}
	}
	if made < 0 {
		t.Fatal("none was made")
	}
	check := func(when string) {
		t.Helper()
		n := &member{disk: d}
		f := n.cluster()
		if len(f.Nodes) != 1 || f.Nodes[0].Name != fmt.Sprintf("n%d", made) || f.Nodes[0].Addr != addrs[made] {
			t.Errorf("%s: mount %d was made at %s, the node is %+v", when, made, addrs[made], f.Nodes)
		}
	}
	check("mounted")
	d.remount() // with what is on the disk
	check("mounted again")
}

// TestOwnerOnly: what is in a store is for its owner alone, also if the directory is opened to others.
func TestOwnerOnly(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	d := mounted(t, "64M")
	write(t, d.path("file"), make([]byte, 1<<20))
	d.remount()
	files := 0
	err := filepath.WalkDir(d.store, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		files++
		if name := entry.Name(); info.Mode().Perm()&0o077 != 0 && name != "vde.log" { // a log may be read by its group
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil || files < 8 {
		t.Errorf("%d files in the store, %v", files, err)
	}
}
