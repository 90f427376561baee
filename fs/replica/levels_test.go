package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// TestUpgrade replaces the program of one node after the other by one that knows more operations, while all mounts work: the older ones, which
// stop at an operation that they do not know, go on. When all are new, the operations are used.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &testCluster{t: t, dir: t.TempDir(), size: 256 << 20, old: true}
	c.begin(3)
	c.groups("g1")
	files := 0
	work := func() {
		t.Helper()
		for id := 1; id <= 3; id++ {
			v := c.v(id)
			for range 6 { // some lie apart
				files++
				name := fmt.Sprint("f", files)
				ino := mkfile(t, v, name)
				data := bytes.Repeat([]byte(name), 500)
				if _, err := v.Write(ctx, ino, 0, data, fs.WriteBehind|fs.WriteKillPriv); err != nil {
					t.Fatal(err)
				}
				mode := uint32(0o4640)
				if in, err := v.SetAttr(ctx, ino, fs.SetAttr{Mode: &mode, Behind: true}); err != nil || in.Mode&0o7777 != mode || in.Size != uint64(len(data)) {
					t.Fatalf("%+v, %v", in, err)
				}
				if err := v.Settle(ctx, ino); err != nil {
					t.Fatal(err)
				}
				if err := v.Rename(ctx, meta.RootIno, name, meta.RootIno, name+"r", 0); err != nil {
					t.Fatal(err)
				}
				other := c.v(id%3 + 1)
				in, err := other.Lookup(ctx, meta.RootIno, name+"r")
				if err != nil || in.Mode&0o7777 != mode || !bytes.Equal(readAll(t, other, in.Ino), data) {
					t.Fatalf("%+v, %v", in, err)
				}
				if files%2 == 0 {
					continue
				}
				if _, err := other.Unlink(ctx, meta.RootIno, name+"r"); err != nil {
					t.Fatal(err)
				}
				if _, err := v.Lookup(ctx, meta.RootIno, name+"r"); !errors.Is(err, unix.ENOENT) {
					t.Fatal(err)
				}
			}
		}
	}
	level := func(want uint64) {
		t.Helper()
		c.eventually(fmt.Sprint("level ", want), func() error {
			for _, n := range c.nodes {
				if got := n.v.node.levels.common.Load(); got != want {
					return fmt.Errorf("node %d uses operations of level %d", n.cfg.NodeID, got)
				}
			}
			return nil
		})
	}
	work()
	c.old = false
	for id := 1; id <= 3; id++ {
		level(0)
		if err := c.v(id).Close(); err != nil {
			t.Fatal(err)
		}
		c.up(uint64(id))
		work()
	}
	level(command.Level)
	work()
	c.consistent()
	// It is remembered.
	if err := c.v(2).Close(); err != nil {
		t.Fatal(err)
	}
	if got := c.up(2).node.levels.common.Load(); got != command.Level {
		t.Errorf("a node that was started again uses operations of level %d", got)
	}
	// A node with an old program comes too late.
	if err := c.v(3).Close(); err != nil {
		t.Fatal(err)
	}
	c.old, c.nodes[2].v = true, nil
	v, err := Open(c.nodes[2].dir, Options{Cluster: c.nodes[2].cfg, Logger: testLogger(), old: true})
	if err == nil {
		c.nodes[2].v = v
		c.old = false
		work := mkfile(t, c.v(1), "late")
		if err := c.v(1).Rename(ctx, meta.RootIno, "late", meta.RootIno, "later", 0); err != nil {
			t.Fatal(err)
		}
		c.eventually("the old program to stop", func() error {
			if _, err := v.Inode(ctx, work); !errors.Is(err, command.ErrDecode) {
				return fmt.Errorf("it goes on: %v", err)
			}
			return nil
		})
	} else if !errors.Is(err, command.ErrDecode) {
		t.Errorf("an old program among new ones: %v", err)
	}
}
