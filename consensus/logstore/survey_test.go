package logstore

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Look finds all that can still be read of a log that cannot be opened, also in several segments and behind damage.
func TestLookBehindDamage(t *testing.T) {
	fs := vfs.NewMem()
	l, err := OpenFile(FileOptions{FS: fs, Dir: "log", SegmentSize: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(40) {
		if err := l.Append([]Entry{{Index: i + 1, Term: 1 + i/20, Type: EntryCommand, Data: bytes.Repeat([]byte{byte(i)}, 300)}}); err != nil {
			t.Fatal(err)
		}
	}
	// A new leader replaced the end.
	if err := l.TruncateFrom(39); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Append([]Entry{{Index: 39, Term: 3, Type: EntryCommand, Data: []byte{38}}}), l.Sync()); err != nil {
		t.Fatal(err)
	}
	if s, err := Look(fs, "log", 0); err != nil || s.Last != 39 || s.LastTerm != 3 || len(s.Next) != 39 || s.Next[38].Term != 3 {
		t.Fatalf("after the end was replaced: last %d of term %d, %d entries, %v", s.Last, s.LastTerm, len(s.Next), err)
	}
	if err := errors.Join(l.Append([]Entry{{Index: 40, Term: 3, Type: EntryCommand, Data: []byte{39}}}), l.Close()); err != nil {
		t.Fatal(err)
	}
	look := func(after uint64) Survey {
		t.Helper()
		s, err := Look(fs, "log", after)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := look(0); s.Last != 40 || s.Term != 3 || s.LastTerm != 3 || len(s.Next) != 40 || s.Segments < 3 || s.Next[39].Data[0] != 39 {
		t.Fatalf("of a whole log: %d segments, last %d, term %d, %d entries", s.Segments, s.Last, s.Term, len(s.Next))
	}
	if s := look(40); s.Last != 40 || len(s.Next) != 0 {
		t.Fatalf("behind the last one: last %d, %d entries", s.Last, len(s.Next))
	}
	names, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := fs.OpenReadWrite("log/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		b, err := readAll(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		// The 5th entry's length is destroyed, so that the next one has to be searched for.
		if at := bytes.Index(b, bytes.Repeat([]byte{4}, 300)); at > 0 {
			if _, err := f.WriteAt([]byte{0xff, 0xff, 0xff, 0x7f}, int64(at-recordHeader)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s := look(0); s.Last != 40 || len(s.Next) != 4 {
		t.Fatalf("before the damage: last %d, %d entries", s.Last, len(s.Next))
	}
	if s := look(5); s.Last != 40 || len(s.Next) != 35 {
		t.Fatalf("behind the damage: last %d, %d entries", s.Last, len(s.Next))
	}
}
