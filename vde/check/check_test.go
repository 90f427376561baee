package check_test

import (
	"maps"
	"testing"

	"vdefs/vde/check"
)

func TestCleanStore(t *testing.T) {
	s := makeSample(t)
	before := s.sum(t)
	r := runCheck(t, s, check.Options{Data: true})
	if len(r.Findings) > 0 || len(r.Notes) > 0 {
		t.Errorf("findings in a sound store: %s", describe(r))
	}
	if !maps.Equal(before, s.sum(t)) {
		t.Error("checking changed the store")
	}
	if !r.Clean || r.LogEntries != 0 || r.Applied == 0 {
		t.Errorf("clean %v, applied %d, %d log entries beyond", r.Clean, r.Applied, r.LogEntries)
	}
	want := check.Report{Inodes: 30, Files: 25, Dirs: 3, Symlinks: 1, Special: 1, Names: 30, Xattrs: 3, UsedBlocks: 20, SharedBlocks: 4, CheckedBlocks: 13}
	got := check.Report{Inodes: r.Inodes, Files: r.Files, Dirs: r.Dirs, Symlinks: r.Symlinks, Special: r.Special, Names: r.Names, Xattrs: r.Xattrs,
		UsedBlocks: r.UsedBlocks, SharedBlocks: r.SharedBlocks, CheckedBlocks: r.CheckedBlocks}
	if got.Inodes != want.Inodes || got.Files != want.Files || got.Dirs != want.Dirs || got.Names != want.Names || got.Xattrs != want.Xattrs ||
		got.UsedBlocks != want.UsedBlocks || got.SharedBlocks != want.SharedBlocks || got.CheckedBlocks != want.CheckedBlocks {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Several groups, not every slot taken, and their facts are no fault.
func TestGroupsAndFacts(t *testing.T) {
	s := makeSample(t)
	s.set(t, []byte("g\x00\x03"), []byte{1, 7, 1, 1, 0})
	s.set(t, append([]byte("f\x00\x03"), "name"...), []byte("value"))
	s.set(t, append([]byte("f\x00\x00"), "name"...), nil)
	if r := runCheck(t, s, check.Options{Data: true, Replay: replay}); len(r.Findings) > 0 || r.Facts != 2 {
		t.Errorf("%d facts; %s", r.Facts, describe(r))
	}
}
