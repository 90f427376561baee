package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/consensus"
	"vdefs/fs"
	"vdefs/fs/advisory"
	"vdefs/fs/cluster"
	"vdefs/vde"
	"vdefs/vde/meta"
)

func TestClusterGrowsFromOne(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &testCluster{t: t, dir: t.TempDir(), size: 256 << 20}
	c.format(1, freePort(t))
	one := c.up(1)
	// Large writes of a node that is alone refer to its own image: who joins later must get their contents all the same.
	big := bytes.Repeat([]byte("vde!"), 1<<20/4)
	ino := mkfile(t, one, "before")
	for i := range uint64(4) {
		if _, err := one.Write(ctx, ino, i<<20, big, 0); err != nil {
			t.Fatal(err)
		}
	}
	two, three := c.join(), c.join()
	t.Cleanup(func() { _, _, _ = one.Close(), two.Close(), three.Close() })
	c.voters(3)
	for i, v := range []*Volume{one, two, three} {
		in, err := v.Lookup(ctx, meta.RootIno, "before")
		if err != nil || in.Size != 4<<20 {
			t.Fatalf("node %d: %+v, %v", i+1, in, err)
		}
		if got := readAll(t, v, ino); !bytes.Equal(got, bytes.Repeat(big, 4)) {
			t.Fatalf("node %d has other contents", i+1)
		}
	}
	// Each sees at once what another one has done.
	for i, v := range []*Volume{one, two, three} {
		name := fmt.Sprint("of ", i)
		in := mkfile(t, v, name)
		if _, err := v.Write(ctx, in, 0, big, 0); err != nil {
			t.Fatal(err)
		}
		for j, w := range []*Volume{one, two, three} {
			got, err := w.Lookup(ctx, meta.RootIno, name)
			if err != nil || got.Size != 1<<20 {
				t.Fatalf("node %d does not see what node %d has done: %+v, %v", j+1, i+1, got, err)
			}
			if !bytes.Equal(readAll(t, w, in), big) {
				t.Fatalf("node %d reads other contents than node %d has written", j+1, i+1)
			}
		}
	}
}

// Any node can be asked to have any other lead, also one that neither leads nor will.
func TestClusterMoveLeaderAsked(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for to := range uint64(3) {
		leader := c.v(1).bySlot()[0].Status().Leader
		to++
		asked := 6 - leader - to
		if leader == to {
			asked = to%3 + 1
		}
		if err := c.v(int(asked)).Cluster().MoveLeader(ctx, string(consensus.DefaultGroup), to); err != nil {
			t.Fatalf("node %d leads, node %d is asked to have node %d lead: %v", leader, asked, to, err)
		}
		c.eventually("all know who leads", func() error {
			for _, n := range c.nodes {
				if got := n.v.bySlot()[0].Status().Leader; got != to {
					return fmt.Errorf("node %d knows the leader %d, want %d", n.cfg.NodeID, got, to)
				}
			}
			return nil
		})
	}
}

// A node that was admitted and never started has no vote: two of three running nodes go on being a majority.
func TestClusterAdmittedOnly(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 2, 0)
	c.groups("g1")
	id := c.admit()
	learns := func() error {
		for _, node := range c.nodes[:2] {
			for _, g := range node.v.all() {
				if st := g.Status(); !slices.Contains(st.Learners, id) {
					return fmt.Errorf("node %d: group %s has the voters %d and the learners %d", node.cfg.NodeID, g.Name(), st.Voters, st.Learners)
				}
			}
		}
		return nil
	}
	c.eventually("the new node as a learner", learns)
	for range 8 { // more often than members are looked after
		time.Sleep(memberEvery / 2)
		if err := learns(); err != nil {
			t.Fatal(err)
		}
	}
	c.up(id)
	c.voters(3)
}

// TestClusterSurvivesANode: a majority goes on, and who comes back has what it missed.
func TestClusterSurvivesANode(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	ino := mkfile(t, c.v(2), "f")
	for round := range 3 {
		leader := int(c.v(1).bySlot()[0].Status().Leader)
		other := leader%3 + 1
		c.down(leader)
		began := time.Now()
		if _, err := c.v(other).Write(ctx, ino, uint64(round)*4096, bytes.Repeat([]byte{byte(round + 1)}, 4096), 0); err != nil {
			t.Fatalf("writing without node %d: %v", leader, err)
		}
		t.Logf("the first write without its leader took %v", time.Since(began).Round(time.Millisecond))
		back := c.up(uint64(leader))
		if got := readAll(t, back, ino); len(got) != (round+1)*4096 || got[round*4096] != byte(round+1) {
			t.Fatalf("node %d came back with %d bytes", leader, len(got))
		}
	}
}

// TestClusterWithoutMajority: an operation fails after the timeout, and goes through once the others are there again.
func TestClusterWithoutMajority(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	v := c.v(3)
	c.down(1)
	c.down(2)
	short, cancel := context.WithTimeout(ctx, 700*time.Millisecond)
	defer cancel()
	if _, err := v.Make(short, fs.NewNode{Parent: meta.RootIno, Name: "x", Mode: unix.S_IFREG}); fs.ToErrno(err) != syscall.EIO {
		t.Errorf("a file was made without a majority: %v", err)
	}
	short, cancel = context.WithTimeout(ctx, 700*time.Millisecond)
	defer cancel()
	if _, err := v.Lookup(short, meta.RootIno, "x"); fs.ToErrno(err) != syscall.EIO {
		t.Errorf("a lookup without a majority: %v", err)
	}
	var up sync.WaitGroup
	up.Go(func() { c.up(1) })
	if _, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: "y", Mode: unix.S_IFREG}); err != nil {
		t.Errorf("with a majority again: %v", err)
	}
	up.Wait()
}

func TestClusterLocks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 2*time.Second)
	ino := mkfile(t, c.v(1), "f")
	whole := advisory.Lock{End: 1<<63 - 1, Owner: advisory.Owner{ID: 1}, Exclusive: true, PID: 42}
	take := func(id int, wait bool) error { return c.v(id).TakeLock(ctx, nil, ino, advisory.Flock, whole, wait) }
	if err := take(1, false); err != nil {
		t.Fatal(err)
	}
	if err := take(2, false); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("two mounts have one lock: %v", err)
	}
	if l, found, err := c.v(3).TestLock(ctx, ino, advisory.Flock, whole); err != nil || !found || l.PID != 42 {
		t.Fatalf("test: %+v, %v, %v", l, found, err)
	}
	waited := make(chan error, 1)
	go func() { waited <- take(2, true) }()
	time.Sleep(50 * time.Millisecond)
	if err := c.v(1).Unlock(ctx, ino, advisory.Flock, whole); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	// A mount that dies gives up what it holds.
	began := time.Now()
	go func() { waited <- take(3, true) }()
	c.down(2)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 12*time.Second {
		t.Errorf("the lock of a dead mount was held for %v", d)
	}
}

// TestClusterRemovedWhileOpen: a file that one mount has open outlives its name, whoever removes it, and no longer.
func TestClusterRemovedWhileOpen(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	one, two := c.v(1), c.v(2)
	ino := mkfile(t, one, "f")
	if _, err := one.Write(ctx, ino, 0, []byte("still here"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Lookup(ctx, meta.RootIno, "f"); err != nil { // as every open(2) begins
		t.Fatal(err)
	}
	if err := two.Reference(ino); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Unlink(ctx, meta.RootIno, "f"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * reapDelay)
	if got := readAll(t, two, ino); string(got) != "still here" {
		t.Fatalf("an open file is %q after its removal on another mount", got)
	}
	if _, err := two.Write(ctx, ino, 0, []byte("STILL"), 0); err != nil {
		t.Fatal(err)
	}
	two.Unreference(ino)
	c.eventually("freeing it", func() error {
		for _, v := range []*Volume{one, two, c.v(3)} {
			if _, err := v.Inode(ctx, ino); !errors.Is(err, syscall.ESTALE) {
				return fmt.Errorf("it is still there: %v", err)
			}
		}
		return nil
	})
}

// TestClusterOnce: operations on all mounts while the leadership moves are each done once.
func TestClusterOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	// The lease is long: on a loaded machine a mount may not get through for eight seconds while the leader changes sixteen times a second, and what
	// an operation came to whose session has ended nobody can say.
	c := newTestCluster(t, 3, time.Minute)
	log := mkfile(t, c.v(1), "log")
	stop := make(chan struct{})
	var movers, workers sync.WaitGroup
	movers.Go(func() {
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(60 * time.Millisecond):
			}
			short, cancel := context.WithTimeout(ctx, time.Second)
			_ = c.v(1).Cluster().MoveLeader(short, "default", i%3+1)
			cancel()
		}
	})
	const each = 30
	for id := 1; id <= 3; id++ {
		workers.Go(func() {
			v := c.v(id)
			for i := range each {
				name := fmt.Sprintf("%d-%d", id, i)
				// EEXIST would be the answer to a file's own making.
				if _, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: name, Mode: unix.S_IFREG | 0o644}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if _, err := v.Write(ctx, log, 0, []byte("0123456789abcde\n"), fs.WriteAppend); err != nil {
					t.Errorf("append %s: %v", name, err)
				}
				if err := v.Rename(ctx, meta.RootIno, name, meta.RootIno, name+".done", 0); err != nil {
					t.Errorf("rename %s: %v", name, err)
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	movers.Wait()
	for id := 1; id <= 3; id++ {
		if got := len(readAll(t, c.v(id), log)); got != 3*each*16 {
			t.Errorf("node %d: %d bytes were appended, want %d", id, got, 3*each*16)
		}
		n := 0
		if err := c.v(id).ReadDir(ctx, meta.RootIno, 0, false, func(meta.Dirent, *meta.Inode) bool { n++; return true }); err != nil || n != 3*each+1 {
			t.Errorf("node %d: %d entries, %v", id, n, err)
		}
	}
}

func TestClusterRemoveNode(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 2*time.Second)
	st := c.v(1).Cluster()
	if err := st.Remove(ctx, 9, false); !errors.Is(err, cluster.ErrUnknownNode) {
		t.Errorf("removing nobody: %v", err)
	}
	leader := c.v(1).bySlot()[0].Status().Leader
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	gone := leader // the leader itself has to hand over first
	if gone == 1 {
		st = c.v(2).Cluster()
	}
	if err := st.Remove(short, gone, false); err != nil {
		t.Fatal(err)
	}
	c.down(int(gone))
	c.voters(2)
	left := int(gone%3 + 1)
	mkfile(t, c.v(left), "after")
	other := (gone+1)%3 + 1
	c.down(int(other))
	c.eventually("the last but one is missed", func() error {
		soon, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if err := c.v(left).Cluster().Remove(soon, uint64(left), false); !errors.Is(err, cluster.ErrQuorum) {
			return fmt.Errorf("removing the last node that answers: %v", err)
		}
		return nil
	})
}

func TestClusterGroups(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	c.groups("g1", "g2", "g3")
	var workers sync.WaitGroup
	for id := 1; id <= 3; id++ {
		workers.Go(func() {
			v := c.v(id)
			dir, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: fmt.Sprint("d", id), Mode: unix.S_IFDIR | 0o2755, GID: 77})
			if err != nil {
				t.Error(err)
				return
			}
			slots := map[uint16]int{}
			for i := range 40 {
				name := fmt.Sprint("f", i)
				in, err := v.Make(ctx, fs.NewNode{Parent: dir.Ino, Name: name, Mode: unix.S_IFREG | 0o666, Umask: 0o022, UID: 5, GID: 6})
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				if in.Mode != unix.S_IFREG|0o644 || in.UID != 5 || in.GID != 77 || in.Nlink != 1 {
					t.Errorf("%s: %+v", name, in)
				}
				slots[in.Ino.Group()]++
				if _, err := v.Write(ctx, in.Ino, 0, []byte(name), 0); err != nil {
					t.Errorf("write %s: %v", name, err)
				}
				if _, err := v.Make(ctx, fs.NewNode{Parent: dir.Ino, Name: name, Mode: unix.S_IFREG}); !errors.Is(err, syscall.EEXIST) {
					t.Errorf("%s twice: %v", name, err)
				}
				switch i % 4 {
				case 0:
					if after, err := v.Link(ctx, in.Ino, meta.RootIno, fmt.Sprint(id, "-", name)); err != nil || after.Nlink != 2 {
						t.Errorf("link %s: %+v, %v", name, after, err)
					}
				case 1:
					if after, err := v.Unlink(ctx, dir.Ino, name); err != nil || after.Nlink != 0 {
						t.Errorf("unlink %s: %+v, %v", name, after, err)
					}
				case 2:
					// Over the file before the last, which has two names.
					if err := v.Rename(ctx, dir.Ino, name, dir.Ino, fmt.Sprint("f", i-2), 0); err != nil {
						t.Errorf("rename %s: %v", name, err)
					}
				case 3:
					if err := v.Rename(ctx, dir.Ino, name, meta.RootIno, fmt.Sprint(id, "-", i-3), 0); err != nil {
						t.Errorf("rename %s: %v", name, err)
					}
				}
			}
			if len(slots) != 4 {
				t.Errorf("files were placed in the groups %v of four", slots)
			}
			if _, err := v.Rmdir(ctx, meta.RootIno, fmt.Sprint("d", id)); !errors.Is(err, syscall.ENOTEMPTY) {
				t.Errorf("rmdir: %v", err)
			}
		})
	}
	workers.Wait()
	c.consistent()
	if err := c.v(1).Cluster().RemoveGroup(ctx, "g2"); !errors.Is(err, cluster.ErrGroupInUse) {
		t.Errorf("a group with files was removed: %v", err)
	}
	c.groups2("g4")
	if err := c.v(1).Cluster().RemoveGroup(ctx, "g4"); err != nil {
		t.Error(err)
	}
	// All is there after a restart of each.
	for id := 1; id <= 3; id++ {
		c.down(id)
		c.up(uint64(id))
	}
	c.consistent()
}

// groups2 adds one more group.
func (c *testCluster) groups2(name string) {
	c.t.Helper()
	if err := c.v(2).Cluster().AddGroup(context.Background(), name); err != nil {
		c.t.Fatal(err)
	}
}

// TestClusterDiesBetween has a mount die between the halves of every operation on two groups: each is done or not.
func TestClusterDiesBetween(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 2*time.Second)
	c.groups("g1", "g2")
	for _, step := range []string{"made", "linked", "named", "dropped", "told"} {
		v := c.v(2)
		// A file that lies apart from its directory, and a name that places one there.
		apart := func(what string) string {
			for i := 0; ; i++ {
				if name := fmt.Sprint(step, what, i); v.place(meta.RootIno, name) != 0 {
					return name
				}
			}
		}
		old := apart("old")
		in, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: old, Mode: unix.S_IFREG | 0o644})
		if err != nil {
			t.Fatal(err)
		}
		dies := func(s string) bool { return s == step }
		v.node.dies.Store(&dies)
		name := apart("new")
		switch step {
		case "made", "named":
			_, err = v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: name, Mode: unix.S_IFREG | 0o644})
		case "linked":
			_, err = v.Link(ctx, in.Ino, meta.RootIno, name)
		case "dropped", "told":
			_, err = v.Unlink(ctx, meta.RootIno, old)
		}
		t.Logf("died when %s: %v", step, err)
		c.down(2)
		c.up(2)
		_, err = c.v(2).Lookup(ctx, meta.RootIno, name)
		if want := step == "named"; want != (err == nil) {
			t.Errorf("died when %s: the name is there: %v, want %v", step, err == nil, want)
		}
		c.consistent()
	}
}

// TestClusterBitRot damages blocks under a node, which then has them from the others: when they are read, and when it scrubs.
func TestClusterBitRot(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	ino := mkfile(t, c.v(1), "f")
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	if _, err := c.v(1).Write(ctx, ino, 0, data, 0); err != nil {
		t.Fatal(err)
	}
	v := c.v(2)
	if got := readAll(t, v, ino); !bytes.Equal(got, data) {
		t.Fatal("other contents before anything was damaged")
	}
	rot := func(blocks ...uint64) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(c.nodes[1].dir, "disk.vde"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, block := range blocks {
			err := v.eng.Meta().Extents(ino, block, block+1, func(x meta.Extent) (bool, error) {
				_, err := f.WriteAt([]byte("rot"), int64(x.Phys+block-x.FileBlock)*blockSize+7)
				return false, err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	rot(0, 3, 4)
	if got := readAll(t, v, ino); !bytes.Equal(got, data) {
		t.Fatal("other contents than before the damage")
	}
	rot(9)
	report, err := v.Scrub(ctx, vde.ScrubOptions{})
	if err != nil || len(report.Bad) != 0 {
		t.Errorf("scrub: %+v, %v", report, err)
	}
	if s := v.Status(); s.Repaired != 4 || s.ChecksumErrors == 0 {
		t.Errorf("%d blocks were repaired, want 4; %d errors were counted", s.Repaired, s.ChecksumErrors)
	}
	c.consistent()
}

// What statfs says is available can be had, but for the two blocks that a fallocate may need for its ends, and no more: the margin for the other mounts
// is not part of it.
func TestClusterAvailable(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newSizedCluster(t, 3, 0, 64<<20)
	v := c.v(2)
	ino := mkfile(t, v, "file")
	before, err := v.StatFS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if before.BlocksAvail == 0 || before.BlocksAvail >= before.BlocksFree {
		t.Fatalf("of %d free blocks %d are available", before.BlocksFree, before.BlocksAvail)
	}
	size := (before.BlocksAvail - 2) * 4096
	if _, err := v.Fallocate(ctx, ino, 0, 0, size+4096); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("more than is available: %v", err)
	}
	if _, err := v.Fallocate(ctx, ino, 0, 0, size); err != nil {
		t.Errorf("all that is available: %v", err)
	}
	if after, err := v.StatFS(ctx); err != nil || after.BlocksAvail != 2 || after.BlocksFree <= 2 {
		t.Errorf("full: %+v, %v", after, err)
	}
	if _, err := v.Write(ctx, ino, size, make([]byte, 4*4096), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full cluster: %v", err)
	}
	c.consistent()
}

// TestClusterFull fills a cluster from all mounts at once: they are refused, nobody stops, and freeing makes room again.
func TestClusterFull(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newSizedCluster(t, 3, 0, 64<<20)
	chunk := bytes.Repeat([]byte{7}, 1<<20)
	var writers sync.WaitGroup
	for id := 1; id <= 3; id++ {
		writers.Go(func() {
			v := c.v(id)
			ino := mkfile(t, v, fmt.Sprint("big", id))
			for off := uint64(0); ; off += 1 << 20 {
				_, err := v.Write(ctx, ino, off, chunk, 0)
				if errors.Is(err, syscall.ENOSPC) && off > 0 {
					return
				}
				if err != nil || off > 512<<20 {
					t.Errorf("node %d at %d MiB: %v", id, off>>20, err)
					return
				}
			}
		})
	}
	writers.Wait()
	for id := 1; id <= 3; id++ {
		if s := c.v(id).Status(); s.Error != "" || s.Groups[0].Error != "" {
			t.Errorf("node %d stopped: %q, %q", id, s.Error, s.Groups[0].Error)
		}
	}
	for id := 1; id <= 3; id++ {
		if _, err := c.v(2).Unlink(ctx, meta.RootIno, fmt.Sprint("big", id)); err != nil {
			t.Fatal(err)
		}
	}
	ino := mkfile(t, c.v(3), "again")
	c.eventually("room after freeing", func() error {
		_, err := c.v(3).Write(ctx, ino, 0, chunk, 0)
		return err
	})
	c.consistent()
}
