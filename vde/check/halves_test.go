package check_test

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vdefs/consensus/logstore"
	"vdefs/fs/replica"
	"vdefs/vde/check"
	"vdefs/vde/meta"
)

// twoGroups adds a group 3 with files that do not fit their names: 1 has no name, 2 has one that it does not count, 3 is to be freed and has one,
// and there is a name of 9, which is not there.
func (s *sample) twoGroups(t *testing.T) {
	t.Helper()
	s.set(t, []byte("g\x00\x03"), append([]byte{1, 7, 1}, uvarints(4, 3)...))
	in, err := meta.DecodeInode(s.fifo, s.get(t, key('i', uint64(s.fifo))))
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= 3; seq++ {
		in.Ino, in.Mode, in.Nlink, in.Rdev = meta.MakeIno(3, seq), unix.S_IFREG|0o644, 1, 0
		if seq == 3 {
			in.Nlink = 0
			s.set(t, key('o', uint64(in.Ino)), nil)
		}
		s.set(t, key('i', uint64(in.Ino)), meta.EncodeInode(nil, &in))
	}
	cookie := uint64(1000)
	for name, seq := range map[string]uint64{"two": 2, "again": 2, "three": 3, "nine": 9} {
		cookie++
		s.link(t, meta.RootIno, name, meta.MakeIno(3, seq), unix.S_IFREG, cookie)
	}
	s.inode(t, meta.RootIno, func(in *meta.Inode) { in.Size, in.NextCookie = in.Size+4, cookie+1 })
}

// cluster makes the store one of a node of a cluster that has the given nodes.
func (s *sample) cluster(t *testing.T, nodes ...uint64) {
	t.Helper()
	if err := s.MkdirAll(storeDir+"/cluster", 0o700); err != nil {
		t.Fatal(err)
	}
	hard, err := logstore.ReadState(s.MemFS, storeDir+"/raft/default")
	if err != nil {
		t.Fatal(err)
	}
	hard.Conf = nil
	for _, id := range nodes {
		s.set(t, binary.BigEndian.AppendUint64([]byte("f\x00\x00node"), id), []byte("{}"))
		hard.Conf = append(hard.Conf, 0x08, byte(id)) // voters
	}
	if err := logstore.WriteState(s.MemFS, storeDir+"/raft/default", hard); err != nil {
		t.Fatal(err)
	}
}

// One node of several may know more of one group than of another, and no repair is made on one of them. Where there are no others, it is a fault.
func TestGroupsApart(t *testing.T) {
	whole := makeSample(t)
	whole.twoGroups(t)
	options := check.Options{Data: true, Replay: replay, OnlyVoter: replica.OnlyVoter}

	s := whole.clone()
	s.cluster(t, 1, 2, 5)
	s.inode(t, s.file, func(in *meta.Inode) { in.Nlink = 7 }) // in the group of its name
	before := s.sum(t)
	options.Repair = true
	r := runCheck(t, s, options)
	if len(r.Findings) != 1 || r.Findings[0].Kind != check.KindLinks || r.Findings[0].Repairable || r.Findings[0].Repaired {
		t.Errorf("a node of several, beside a wrong link count:%s", describe(r))
	}
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "4 files do not fit their names") {
		t.Errorf("notes: %q", notes)
	}
	if !maps.Equal(before, s.sum(t)) {
		t.Error("a node of several was repaired")
	}

	s = whole.clone()
	s.cluster(t, 1)
	options.Repair = false
	r = runCheck(t, s, options)
	var found []check.Kind
	for _, f := range r.Findings {
		found = append(found, f.Kind)
	}
	slices.Sort(found)
	if want := kinds(check.KindEntry, check.KindLinks, check.KindLinks, check.KindOrphan, check.KindUnnamed); !slices.Equal(found, want) {
		t.Errorf("a cluster of one: %v, want %v:%s", found, want, describe(r))
	}
	options.Repair = true
	if r = runCheck(t, s, options); r.Left() > 0 {
		t.Errorf("a cluster of one was not repaired:%s", describe(r))
	}
}

// What the records of operations on two groups account for is no fault, also where there are no other nodes; what they do not is.
func TestHalfway(t *testing.T) {
	s := makeSample(t)
	s.set(t, []byte("g\x00\x03"), append([]byte{1, 7, 1}, uvarints(6, 5)...))
	in, err := meta.DecodeInode(s.fifo, s.get(t, key('i', uint64(s.fifo))))
	if err != nil {
		t.Fatal(err)
	}
	ino := func(seq uint64) meta.Ino { return meta.MakeIno(3, seq) }
	for seq := uint64(1); seq <= 5; seq++ {
		in.Ino, in.Mode, in.Nlink, in.Rdev = ino(seq), unix.S_IFREG|0o644, 1, 0
		s.set(t, key('i', uint64(in.Ino)), meta.EncodeInode(nil, &in))
	}
	fact := func(slot byte, word string, of meta.Ino, numbers ...uint64) {
		k := append([]byte{'f', 0, slot}, word...)
		for _, n := range numbers {
			k = binary.BigEndian.AppendUint64(k, n)
		}
		s.set(t, k, binary.LittleEndian.AppendUint64(nil, uint64(of)))
	}
	fact(3, "pend", ino(1), 7, 1) // made, not named
	fact(0, "drop", ino(2), 7, 2) // its name is gone
	fact(3, "pend", ino(3), 7, 3) // made and named: but the name is not there
	fact(0, "placed", 1, uint64(ino(3)), 7, 3)
	fact(0, "drop", ino(4), 7, 4) // its name is gone, and it knows: but it counts one
	fact(3, "did", 1, 7, 4)
	// 5: no record at all.
	r := runCheck(t, s, check.Options{Replay: replay})
	if notes := strings.Join(r.Notes, "\n"); !strings.Contains(notes, "2 files are in the middle of") {
		t.Errorf("notes: %q", notes)
	}
	if len(r.Findings) != 3 {
		t.Errorf("findings:%s", describe(r))
	}
	for i, f := range r.Findings {
		if f.Kind != check.KindUnnamed || !strings.Contains(f.What, itoa(ino(uint64(i+3)))) {
			t.Errorf("finding %d: %+v", i, f)
		}
	}
}
