package replica

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vdefs/fs"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// TestScrubCompares: a scrub tells which files another node has otherwise, in contents or attributes, and finds nothing where writes go
// on.
func TestScrubCompares(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 0)
	v := c.v(1)
	if err := v.Cluster().AddGroup(ctx, "g1"); err != nil {
		t.Fatal(err)
	}
	var inos []meta.Ino
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		ino := mkfile(t, v, name)
		inos = append(inos, ino)
		if _, err := v.Write(ctx, ino, 100_000, make([]byte, 300_000), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.SetXattr(ctx, inos[0], "user.x", []byte("1"), 0, false); err != nil {
		t.Fatal(err)
	}
	// One file never rests.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_, _ = c.v(3).Write(ctx, inos[5], i*512%100_000, []byte("busy"), 0)
			}
		}
	}()
	scrub := func() Comparison {
		t.Helper()
		done := uint64(0)
		report, err := v.Scrub(ctx, vde.ScrubOptions{Progress: func(p vde.ScrubProgress) { done = p.Compared }})
		if err != nil || report.BadBlocks() != 0 {
			t.Fatalf("%+v, %v", report, err)
		}
		if done < uint64(len(inos)) {
			t.Errorf("progress ended at %d inodes", done)
		}
		return report.Comparison
	}
	found := scrub()
	if len(found.Different) != 0 {
		t.Errorf("differences where there are none: %+v", found)
	}
	if found.Compared < 2*uint64(len(inos)) { // with the root, without the busy one
		t.Errorf("only %d files were compared", found.Compared)
	}
	close(stop)
	<-stopped
	if found := scrub(); found.Skipped != 0 || len(found.Different) != 0 || found.Compared != 2*uint64(len(inos)+1) {
		t.Errorf("when all rests: %+v", found)
	}

	// Node 2 gets other contents of one file, under a good checksum, and another attribute of a second one.
	two := c.v(2)
	if _, err := two.Inode(ctx, inos[1]); err != nil {
		t.Fatal(err)
	}
	phys := uint64(0)
	err := two.eng.Meta().Extents(inos[1], 0, 1<<40, func(x meta.Extent) (bool, error) {
		phys = x.Phys
		return false, nil
	})
	if err != nil || phys == 0 {
		t.Fatal("no extent: ", err)
	}
	if err := two.eng.Checkpoint(); err != nil { // nothing of the block waits in memory
		t.Fatal(err)
	}
	image, err := os.OpenFile(filepath.Join(c.nodes[1].dir, "disk.vde"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if _, err := image.WriteAt([]byte("rotten"), int64(phys*blockSize)); err != nil {
		t.Fatal(err)
	}
	wrong := make([]byte, blockSize)
	copy(wrong, "something else")
	if err := two.eng.RepairBlock(inos[1], 100_000/blockSize, wrong); err != nil {
		t.Fatal(err)
	}
	batch := two.eng.Meta().NewBatch()
	batch.SetXattr(inos[0], "user.x", []byte("2"))
	if err := batch.Commit(); err != nil {
		t.Fatal(err)
	}
	found = scrub()
	differ := map[meta.Ino]uint64{}
	for _, d := range found.Different {
		differ[d.Ino] = d.Node
	}
	if len(found.Different) != 2 || differ[inos[0]] != 2 || differ[inos[1]] != 2 {
		t.Errorf("files %d and %d of node 2 are different, the scrub says %+v", inos[0], inos[1], found.Different)
	}
	// A node that is away is said to be.
	c.down(3)
	c.eventually("writing without node 3", func() error {
		_, err := v.Write(ctx, inos[2], 0, []byte("x"), fs.WriteFlags(0))
		return err
	})
	if found := scrub(); found.Skipped < uint64(len(inos)) || len(found.Different) != 2 {
		t.Errorf("without node 3: %+v", found)
	}
}
