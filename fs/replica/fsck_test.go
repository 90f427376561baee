package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/consensus"
	"vdefs/fs"
	"vdefs/vde/check"
	"vdefs/vde/meta"
)

// fsck judges the store of a node as `vde fsck` does.
func fsck(t *testing.T, dir string, f vfs.FS, repair bool) check.Report {
	t.Helper()
	r, err := check.Run(dir, check.Options{
		FS: f, Data: true, Repair: repair, OnlyVoter: OnlyVoter, NewLog: NewLog,
		Replay: func(dir string, f vfs.FS) error {
			v, err := Open(dir, Options{FS: f, Logger: testLogger()})
			if err != nil {
				return err
			}
			return v.Close()
		},
		Rehearse: func(dir string, f vfs.FS) error { return Rehearse(dir, Options{FS: f, Logger: testLogger()}) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFsckBetweenGroups: the store of a node that died in the middle of operations on two groups is whole, with what its logs hold beyond the metadata.
func TestFsckBetweenGroups(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	mem := vfs.NewCrashableMem() // node 2 stands on it
	c := &testCluster{t: t, dir: t.TempDir(), lease: 10 * time.Second, size: 16 << 20, disk: func(id uint64) vfs.FS {
		if id == 2 {
			return mem
		}
		return vfs.Default
	}}
	c.begin(2)
	c.groups("g1", "g2")
	v := c.v(2)
	apart := func(what string) string {
		for i := 0; ; i++ {
			if name := fmt.Sprint(what, i); v.place(meta.RootIno, name) != 0 {
				return name
			}
		}
	}
	for _, step := range []string{"made", "linked", "named", "dropped"} {
		in, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: apart("old" + step), Mode: unix.S_IFREG | 0o644})
		if err != nil {
			t.Fatal(err)
		}
		dies := func(s string) bool { return s == step }
		v.node.dies.Store(&dies)
		switch name := apart(step); step {
		case "linked":
			_, err = v.Link(ctx, in.Ino, meta.RootIno, name)
		case "dropped":
			_, err = v.Unlink(ctx, meta.RootIno, apart("old"+step))
		default:
			_, err = v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: name, Mode: unix.S_IFREG | 0o644})
		}
		t.Logf("died when %s: %v", step, err)
		none := func(string) bool { return false }
		v.node.dies.Store(&none)
	}
	crashed := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))}) // as the death of the process leaves it
	dir := c.nodes[1].dir
	if err := crashed.MkdirAll(crashed.PathJoin(dir, "cluster"), 0o700); err != nil { // its identity, which the others of these tests have in memory
		t.Fatal(err)
	}
	for _, repair := range []bool{false, true} {
		r := fsck(t, dir, crashed, repair)
		if len(r.Findings) > 0 || r.LogEntries == 0 {
			t.Errorf("repair %v: %+v, %d entries beyond the metadata", repair, r.Findings, r.LogEntries)
		}
		if !repair && !strings.Contains(strings.Join(r.Notes, "\n"), "files are in the middle of being made, linked or removed") {
			t.Errorf("notes: %q", r.Notes)
		}
	}
	// It has not become a cluster of one by that.
	if s, err := consensus.LookAlone(crashed, crashed.PathJoin(dir, "raft"), 2); err != nil || len(s) != 3 || len(s[0].Voters) != 2 {
		t.Errorf("after fsck: %+v, %v", s, err)
	}
}
