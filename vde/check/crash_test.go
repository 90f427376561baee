package check_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/sys/unix"

	"vdefs/consensus/logstore"
	"vdefs/fs"
	"vdefs/fs/replica"
	"vdefs/vde"
	"vdefs/vde/check"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// crashed returns a store as a crash leaves it: the log holds everything, the metadata nothing of it. In-place
// overwrites of mapped blocks are among the entries.
func crashed(t testing.TB) *sample {
	t.Helper()
	ctx := context.Background()
	s := makeSample(t)
	v, err := replica.Open(storeDir, replica.Options{FS: s.MemFS, Logger: quiet(), SegmentSize: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		in, err := v.Make(ctx, fs.NewNode{Parent: s.sub, Name: fmt.Sprintf("new%d", i), Mode: unix.S_IFREG | 0o600})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Write(ctx, in.Ino, 0, pattern(byte(i), 3*4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Write(ctx, s.sparse, 100*4096, pattern(9, 2*4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := v.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	c := s.clone()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return c
}

// A store that was not closed is judged as after its next mount, and not touched.
func TestCrashedStore(t *testing.T) {
	s := crashed(t)
	// A block that the log overwrites, torn.
	phys := s.extents(t, s.sparse)[0].Phys
	s.write(t, imagePath, int64(phys*4096+100), pattern(77, 50))
	before := s.sum(t)

	r := runCheck(t, s, check.Options{Data: true})
	if len(r.Findings) > 0 || r.LogEntries != 11 || r.Clean || r.Inodes != 30 {
		t.Errorf("without replay: %d log entries, clean %v, %d inodes%s", r.LogEntries, r.Clean, r.Inodes, describe(r))
	}
	if d := describe(r); !strings.Contains(d, "fail their checksum; the log may hold their contents") {
		t.Errorf("the torn block is not mentioned:%s", d)
	}
	r = runCheck(t, s, check.Options{Data: true, Replay: replay})
	if len(r.Findings) > 0 || r.LogEntries != 11 || r.Inodes != 35 {
		t.Errorf("with replay: %d log entries, %d inodes%s", r.LogEntries, r.Inodes, describe(r))
	}
	if !maps.Equal(before, s.sum(t)) {
		t.Error("checking changed the store")
	}

	r = runCheck(t, s, check.Options{Data: true, Repair: true, Replay: replay})
	if len(r.Findings) > 0 || !r.Clean || r.Inodes != 35 {
		t.Errorf("with repair: clean %v, %d inodes%s", r.Clean, r.Inodes, describe(r))
	}
	if r = runCheck(t, s, check.Options{Data: true}); len(r.Findings) > 0 || r.LogEntries != 0 {
		t.Errorf("after repair: %d log entries%s", r.LogEntries, describe(r))
	}
}

// Where the log cannot be replayed first, repairs that would disturb it are left alone.
func TestRepairBeforeReplay(t *testing.T) {
	s := crashed(t)
	s.unlink(t, s.deep, "inner")                                      // needs an inode for /lost+found
	s.inode(t, s.file, func(in *meta.Inode) { in.Nlink = 9 })         // needs nothing
	r := runCheck(t, s, check.Options{Repair: true})                  // no replay
	if r.Left() != 1 || !strings.Contains(describe(r), "unnamed: ") { // what is left
		t.Errorf("without replay:%s", describe(r))
	}
	r = runCheck(t, s, check.Options{Repair: true, Replay: replay})
	if r.Left() != 0 {
		t.Errorf("with replay:%s", describe(r))
	}
	got := contents(t, s.MemFS)
	if got["/lost+found/#"+itoa(s.inner)] == "" || got["/sub/new4"] == "" {
		t.Errorf("lost: %v", got)
	}
}

// Damage that keeps the store from being opened after a crash is repaired, and then the log is applied.
func TestRepairWhatKeepsFromReplay(t *testing.T) {
	s := crashed(t)
	setExtent(t, s, s.inner, meta.Extent{Phys: s.extents(t, s.sparse)[1].Phys, Count: 1})
	if err := replay(storeDir, s.clone().MemFS); !errors.Is(err, vde.ErrDamaged) {
		t.Fatalf("the store can be opened: %v", err)
	}
	if r := runCheck(t, s, check.Options{Replay: replay}); !strings.Contains(describe(r), "replay: ") || !strings.Contains(describe(r), "overlap: ") {
		t.Errorf("found:%s", describe(r))
	}
	r := runCheck(t, s, check.Options{Repair: true, Replay: replay})
	if r.Left() != 0 {
		t.Errorf("not repaired:%s", describe(r))
	}
	if got := contents(t, s.MemFS); got["/sub/new4"] == "" {
		t.Error("the log was not applied")
	}
}

// Entries are not applied to a store where they would take inode numbers that are in use.
func TestNoReplayOverInodes(t *testing.T) {
	s := crashed(t)
	s.group(t, func(g *meta.Group) { g.NextSeq = 5 })
	before := s.sum(t)
	r := runCheck(t, s, check.Options{Repair: true, Replay: replay})
	if r.Left() != 2 || !maps.Equal(before, s.sum(t)) {
		t.Errorf("found:%s", describe(r))
	}
}

// A log that is damaged in what the metadata has already keeps what it has beyond it.
func TestDamagedLogKeepsWhatCanBeRead(t *testing.T) {
	s := crashed(t)
	log := s.logFile(t)
	flip(t, s, log, 148) // in the second entry
	// With the index of a full segment it is not read at a mount.
	if err := s.Remove(strings.TrimSuffix(log, ".log") + ".idx"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	want := contents(t, crashed(t).MemFS)
	if err := replay(storeDir, s.MemFS); !errors.Is(err, vde.ErrDamaged) {
		t.Errorf("a mount says: %v", err)
	}
	if r := runCheck(t, s, check.Options{Replay: replay, NewLog: replica.NewLog}); r.Left() != 1 || !r.Findings[0].Repairable {
		t.Errorf("found:%s", describe(r))
	}
	r := runCheck(t, s, check.Options{Data: true, Repair: true, Replay: replay, NewLog: replica.NewLog})
	if r.Left() != 0 || len(r.Findings) != 1 || r.LogEntries != 11 {
		t.Errorf("%d log entries, repaired:%s", r.LogEntries, describe(r))
	}
	if got := contents(t, s.MemFS); !maps.Equal(got, want) {
		t.Errorf("contents %v, want %v", got, want)
	}
}

// A repair that ends at any step is continued by the next one.
func TestDamagedLogRepairedInPart(t *testing.T) {
	s := crashed(t)
	log := s.logFile(t)
	flip(t, s, log, 148)
	if err := s.Remove(strings.TrimSuffix(log, ".log") + ".idx"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	s = s.clone()
	want := contents(t, crashed(t).MemFS)
	for last := 0; ; last++ {
		c, step := s.clone(), 0
		ends := errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpRename, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpRemoveAll, errorfs.OpCreate:
				if step++; step > last {
					return syscall.EIO
				}
			}
			return nil
		})
		r, err := check.Run(storeDir, check.Options{FS: errorfs.Wrap(c.MemFS, ends), Repair: true, NewLog: replica.NewLog})
		if err == nil && step <= last {
			if last < 6 || r.Left() != 0 {
				t.Fatalf("%d steps:%s", last, describe(r))
			}
			return
		}
		if r := runCheck(t, c, check.Options{Repair: true, NewLog: replica.NewLog}); r.Left() != 0 {
			t.Fatalf("after %d steps: not repaired:%s", last, describe(r))
		}
		if got := contents(t, c.MemFS); !maps.Equal(got, want) {
			t.Fatalf("after %d steps: contents %v, want %v", last, got, want)
		}
	}
}

// So does that of a store that was never closed, with the entry that made the group.
func TestDamagedHardStateOfAYoungStore(t *testing.T) {
	c := young(t)
	flip(t, c, storeDir+"/raft/default/state", 20)
	if r := runCheck(t, c, check.Options{Repair: true, Replay: replay, NewLog: replica.NewLog}); r.Left() != 0 || len(r.Findings) != 1 {
		t.Errorf("not repaired:%s", describe(r))
	}
	if got := contents(t, c.MemFS); got["/young"] == "" {
		t.Errorf("contents: %v", got)
	}
}

// One that is damaged in what only it had is given up when that is asked for, and then what can be read stays.
func TestDropLog(t *testing.T) {
	s := crashed(t)
	names, err := s.List(storeDir + "/raft/default")
	if err != nil {
		t.Fatal(err)
	}
	damaged := false
	for _, n := range names {
		n = storeDir + "/raft/default/" + n
		if at := bytes.Index(s.read(t, n), []byte("new3")); at > 0 {
			flip(t, s, n, int64(at))
			damaged = true
		}
		if strings.HasSuffix(n, ".idx") {
			if err := s.Remove(n); err != nil { // else a mount does not read what it covers
				t.Fatal(err)
			}
		}
	}
	if !damaged {
		t.Fatal("the log does not have what it should")
	}
	before := s.sum(t)
	r := runCheck(t, s, check.Options{Repair: true, Replay: replay, NewLog: replica.NewLog})
	if r.Left() != 1 || r.Findings[0].Repairable || !r.Findings[0].Droppable || !strings.Contains(describe(r), "--drop-log") || !maps.Equal(before, s.sum(t)) {
		t.Errorf("repaired without leave:%s", describe(r))
	}
	r = runCheck(t, s, check.Options{Repair: true, DropLog: true, Replay: replay, NewLog: replica.NewLog})
	if r.Left() != 0 || len(r.Findings) != 1 {
		t.Errorf("not repaired:%s", describe(r))
	}
	got := contents(t, s.MemFS)
	if got["/sub/new2"] == "" || got["/sub/new3"] != "" || got["/sub/new4"] != "" {
		t.Errorf("contents: %v", got)
	}
	if r := runCheck(t, s, check.Options{Data: true, Replay: replay, NewLog: replica.NewLog}); len(r.Findings) > 0 {
		t.Errorf("afterwards:%s", describe(r))
	}
	if _, err := s.Stat(storeDir + "/damaged-log-1"); err != nil {
		t.Errorf("the damaged log was not kept: %v", err)
	}
}

func TestCannotCheck(t *testing.T) {
	run := func(s *sample) error {
		_, err := check.Run(storeDir, check.Options{FS: s.MemFS})
		return err
	}
	whole := makeSample(t)
	s := whole.clone()
	if err := s.Remove(infoPath); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveAll(storeDir + "/meta"); err != nil {
		t.Fatal(err)
	}
	if err := run(s); !errors.Is(err, vde.ErrNotAStore) {
		t.Errorf("no vde.json and no metadata: %v", err)
	}
	s = whole.clone()
	v, err := replica.Open(storeDir, replica.Options{FS: s.MemFS, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := run(s); !errors.Is(err, vde.ErrStoreInUse) {
		t.Errorf("mounted: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	var newer *layout.VersionError
	s = whole.clone()
	s.replace(t, infoPath, []byte(strings.Replace(string(s.read(t, infoPath)), `"format_version": 1`, `"format_version": 99`, 1)))
	if err := run(s); !errors.As(err, &newer) || newer.Found != 99 {
		t.Errorf("newer vde.json: %v", err)
	}
	s = whole.clone()
	s.setSuper(t, func(sb *layout.Superblock) { sb.Version = 99 })
	if err := run(s); !errors.As(err, &newer) || newer.Found != 99 {
		t.Errorf("newer image: %v", err)
	}
	// After an error nothing is held.
	if err := run(whole); err != nil {
		t.Error(err)
	}
}

func TestNeverMounted(t *testing.T) {
	s := &sample{MemFS: vfs.NewCrashableMem()}
	if _, err := vde.Format(storeDir, vde.FormatOptions{Size: imageSize, FS: s.MemFS}); err != nil {
		t.Fatal(err)
	}
	if r := runCheck(t, s, check.Options{Data: true, Replay: replay}); len(r.Findings)+len(r.Notes) > 0 {
		t.Errorf("found:%s", describe(r))
	}
}

// Whatever a crash leaves, at any moment and with any part of what was not synced, is no damage.
func TestNothingFoundAfterCrashes(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	ctx := context.Background()
	mem := vfs.NewCrashableMem()
	if _, err := vde.Format(storeDir, vde.FormatOptions{Size: 2 << 20, FS: mem}); err != nil {
		t.Fatal(err)
	}
	v, err := replica.Open(storeDir, replica.Options{FS: mem, Logger: quiet(), SegmentSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	var files []meta.Ino
	for i := range 120 {
		switch n := len(files); {
		case n < 4 || rng.IntN(8) == 0:
			in, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: fmt.Sprint(i), Mode: unix.S_IFREG | 0o600})
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, in.Ino)
		case rng.IntN(10) == 0:
			if _, _, err := v.CopyRange(ctx, files[rng.IntN(n)], 0, files[rng.IntN(n)], 0, 3*4096); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Fatal(err)
			}
		case rng.IntN(6) == 0:
			if err := v.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		case rng.IntN(6) == 0:
			if err := v.Sync(ctx); err != nil {
				t.Fatal(err)
			}
		default:
			if _, err := v.Write(ctx, files[rng.IntN(n)], uint64(rng.IntN(20_000)), pattern(byte(i), rng.IntN(20_000)+1), 0); err != nil {
				t.Fatal(err)
			}
		}
		if i%4 != 0 {
			continue
		}
		s := &sample{MemFS: mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})}
		if r := runCheck(t, s, check.Options{Data: true, Replay: replay}); len(r.Findings) > 0 {
			t.Fatalf("after a crash behind operation %d:%s", i, describe(r))
		}
		if r := runCheck(t, s, check.Options{Data: true}); len(r.Findings) > 0 {
			t.Fatalf("after a crash behind operation %d, without replay:%s", i, describe(r))
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// Repair of stores with several keys gone or changed at once ends, never makes it worse, and what it calls repaired is.
func TestManyDamages(t *testing.T) {
	whole := makeSample(t)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s := whole.clone()
		done := s.spoil(t, rng, 1+rng.IntN(6))
		r := runCheck(t, s, check.Options{Repair: true})
		again := runCheck(t, s, check.Options{})
		if r.Left() != again.Left() {
			t.Errorf("seed %d, %v: %d left, then %d:%s\nthen%s", seed, done, r.Left(), again.Left(), describe(r), describe(again))
		}
		if again.Left() == 0 {
			contents(t, s.MemFS)
		}
	}
}

// young is a store that was killed before its first checkpoint: the metadata has nothing of it.
func young(t *testing.T) *sample {
	t.Helper()
	s := &sample{MemFS: vfs.NewCrashableMem()}
	if _, err := vde.Format(storeDir, vde.FormatOptions{Size: imageSize, FS: s.MemFS}); err != nil {
		t.Fatal(err)
	}
	v, err := replica.Open(storeDir, replica.Options{FS: s.MemFS, Logger: quiet(), SegmentSize: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Make(context.Background(), fs.NewNode{Parent: meta.RootIno, Name: "young", Mode: unix.S_IFREG | 0o600}); err != nil {
		t.Fatal(err)
	}
	if err := v.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	c := s.clone()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return c
}

// A store whose log is gone is not taken for one that never had one.
func TestMissingLogOfAYoungStore(t *testing.T) {
	remove := func(t *testing.T, c *sample, path string) {
		if err := c.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	for what, do := range map[string]func(t *testing.T, c *sample){
		"directory":  func(t *testing.T, c *sample) { remove(t, c, storeDir+"/raft/default") },
		"all logs":   func(t *testing.T, c *sample) { remove(t, c, storeDir+"/raft") },
		"hard state": func(t *testing.T, c *sample) { remove(t, c, storeDir+"/raft/default/state") },
		"segments":   func(t *testing.T, c *sample) { remove(t, c, c.logFile(t)) },
		"contents":   func(t *testing.T, c *sample) { c.replace(t, c.logFile(t), nil) },
	} {
		t.Run(strings.ReplaceAll(what, " ", "-"), func(t *testing.T) {
			c := young(t)
			do(t, c)
			if err := replay(storeDir, c.MemFS); !errors.Is(err, vde.ErrDamaged) {
				t.Fatalf("opened: %v", err)
			}
			if what == "hard state" {
				return // the entries are there: see TestDamagedHardStateOfAYoungStore
			}
			before := c.sum(t) // what the attempt to open it has left is no log either
			r := runCheck(t, c, check.Options{Repair: true, Replay: replay, NewLog: replica.NewLog})
			if r.Left() != 1 || !strings.Contains(describe(r), "--drop-log") || !maps.Equal(before, c.sum(t)) {
				t.Fatalf("fsck says:%s", describe(r))
			}
			r = runCheck(t, c, check.Options{Repair: true, DropLog: true, Replay: replay, NewLog: replica.NewLog})
			if r.Left() != 0 {
				t.Fatalf("not repaired:%s", describe(r))
			}
			if got := contents(t, c.MemFS); len(got) != 0 {
				t.Errorf("contents: %v", got)
			}
			if r := runCheck(t, c, check.Options{Data: true, Replay: replay, NewLog: replica.NewLog}); len(r.Findings) > 0 {
				t.Errorf("afterwards:%s", describe(r))
			}
		})
	}
}

// Opening a store in vain leaves it closed properly, so that its log can be made anew.
func TestOpenedInVain(t *testing.T) {
	s := makeSample(t)
	if err := s.RemoveAll(storeDir + "/raft/default"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := replay(storeDir, s.MemFS); !errors.Is(err, vde.ErrDamaged) {
			t.Fatalf("opened without a log: %v", err)
		}
	}
	if !s.super(t).Clean {
		t.Error("the mark that the store was closed properly is gone")
	}
	r := runCheck(t, s, check.Options{Repair: true, Replay: replay, NewLog: replica.NewLog})
	if r.Left() != 0 {
		t.Fatalf("not repaired:%s", describe(r))
	}
	if got := contents(t, s.MemFS); got["/file"] == "" {
		t.Errorf("contents: %v", got)
	}
}

// A store that is open, and that nothing was done to, is still one that was closed properly; with the first change it is not.
func TestMarkedWithTheFirstChange(t *testing.T) {
	s := makeSample(t)
	v, err := replica.Open(storeDir, replica.Options{FS: s.MemFS, Logger: quiet(), SegmentSize: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Lookup(context.Background(), meta.RootIno, "file"); err != nil {
		t.Fatal(err)
	}
	if !s.super(t).Clean {
		t.Error("marked as in use, though nothing has changed")
	}
	if _, err := v.Make(context.Background(), fs.NewNode{Parent: meta.RootIno, Name: "new", Mode: unix.S_IFREG | 0o600}); err != nil {
		t.Fatal(err)
	}
	if s.super(t).Clean {
		t.Error("not marked as in use after a change")
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if !s.super(t).Clean {
		t.Error("not marked as closed properly")
	}
}

// The log of a node of a cluster is made anew only where the cluster has no other node, as far as anything tells.
func TestDamagedLogInACluster(t *testing.T) {
	whole := makeSample(t)
	state := storeDir + "/raft/default/state"
	// member records a node, as the metadata of a cluster does.
	member := func(s *sample, id uint64) {
		s.set(t, binary.BigEndian.AppendUint64([]byte("f\x00\x00node"), id), []byte("{}"))
	}
	for _, c := range []struct {
		name     string
		do       func(s *sample)
		repaired bool
	}{
		{"alone", func(s *sample) { member(s, 1); damageLog(t, s) }, true},
		{"alone, without a hard state", func(s *sample) { member(s, 1); flip(t, s, state, 20) }, true},
		{"of two", func(s *sample) { member(s, 1); member(s, 2); damageLog(t, s) }, false},
		{"of two, without a hard state", func(s *sample) { member(s, 1); member(s, 2); flip(t, s, state, 20) }, false},
		{"of unknown ones", func(s *sample) { damageLog(t, s) }, false},
		{"with a voter that the metadata does not know", func(s *sample) {
			member(s, 1)
			hard, err := logstore.ReadState(s.MemFS, storeDir+"/raft/default")
			if err != nil {
				t.Fatal(err)
			}
			hard.Conf = append(hard.Conf, 0x08, 2) // voters: 2
			if err := logstore.WriteState(s.MemFS, storeDir+"/raft/default", hard); err != nil {
				t.Fatal(err)
			}
			damageLog(t, s)
		}, false},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			s := whole.clone()
			if err := s.MkdirAll(storeDir+"/cluster", 0o700); err != nil {
				t.Fatal(err)
			}
			c.do(s)
			before := s.sum(t)
			r := runCheck(t, s, check.Options{Repair: true, Replay: replay, NewLog: replica.NewLog, OnlyVoter: replica.OnlyVoter})
			if !c.repaired {
				if r.Left() != 1 || !strings.Contains(describe(r), "vde cluster remove") || !maps.Equal(before, s.sum(t)) {
					t.Errorf("repaired, or not for that reason:%s", describe(r))
				}
				return
			}
			if r.Left() != 0 || len(r.Findings) != 1 {
				t.Fatalf("not repaired:%s", describe(r))
			}
			if !replica.OnlyVoter(s.MemFS, storeDir+"/raft/default", 1) {
				t.Error("the new log is not this node's alone")
			}
			if got := contents(t, s.MemFS); got["/file"] == "" {
				t.Errorf("contents: %v", got)
			}
		})
	}
}

// damageLog spoils the log of a closed store, so that it cannot be opened.
func damageLog(t *testing.T, s *sample) {
	t.Helper()
	flip(t, s, s.logFile(t), 70)
}
