package command

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"vdefs/vde/alloc"
	"vdefs/vde/meta"
)

// samples has every operation with every field set.
func samples() []Command {
	t := meta.Time{Sec: -1, Nsec: 999_999_999}
	return []Command{
		&SetAttr{7, SetMode | SetCtime, 0o4755, 1, 2, 1 << 40, t, t, t},
		&Make{1, "näme", 0o100644, 0o22, 3, 4, 5, "target", true, "security.selinux", []byte("label")},
		&Link{9, 1, "b"},
		&Remove{1, "a", true},
		&Rename{false, 1, "a", 2, "b", 2, 0, 0},
		&Rename{true, 1, "a", 1, "b", 1, 0, 0},
		&Rename{true, 1, "a", 1, "b", 4, 1000, 100},
		&Write{5, 4096, true, true, true, []byte("data")},
		&Fill{5, 4096, SetMode | KillPriv | KillPrivBefore, 0o4755, 1, 2, t, t, []byte("data")},
		&WriteRef{5, 1, 8192, true, true, 77, []alloc.Extent{{Start: 100, Count: 1}, {Start: 300, Count: 1}}, make([]byte, 8)},
		&Fallocate{5, 3, 1, 2},
		&Share{5, 1, 6, 2, 3, 9999},
		&SetXattr{5, "user.a", []byte{0, 1}, 1, true},
		&RemoveXattr{5, "user.a"},
		&Reap{[]meta.Ino{1, 2, 1 << 63}},
		&Atimes{[]Atime{{1, t}, {2, t}}},
		&Replace{5, 6, []byte("png"), []Xattr{{"user.b", []byte("v")}}},
		&BeginSession{1 << 63, 3},
		&EndSession{4},
		&KeepAlive{4, 1 << 50},
		&Release{4, []meta.Ino{9, 8}},
		&Lock{4, 5, LockHandle, true, true, 1, 1<<64 - 1, 6, 7, 8},
		&PutNode{2, "b", "10.0.0.2:7000"},
		&PutInvite{[16]byte{1}, [32]byte{2}, 1 << 40},
		&Join{[16]byte{1}, [32]byte{2}, 1 << 40, "c", "10.0.0.3:7000"},
		&RemoveNode{2},
		&SetLevel{1 << 40},
		&MakeApart{0o100644, 0o22, 1, 2, 0o42755, 3, []byte("acl"), "security.selinux", []byte("label")},
		&LinkApart{1<<48 | 5},
		&Name{1, "b", 1<<48 | 5, 0o100000, TxID{7, 8}},
		&Unname{TxID{7, 8}, 1<<48 | 5},
		&Finish{[]Unname{{TxID{7, 8}, 1<<48 | 5}, {TxID{9, 1}, 1<<48 | 6}}, []Changed{{1<<48 | 7, meta.Time{Sec: 1 << 33, Nsec: 5}}}},
		&Settle{[]Settlement{{TxID{7, 8}, true}, {TxID{9, 1 << 40}, false}}},
		&Forget{[]Placement{{1<<48 | 5, TxID{1, 2}}}, []TxID{{3, 4}}, []TxID{{5, 6}, {7, 8}}},
		&PutGroup{"g1", []uint64{1, 2, 3}},
		&DropGroup{1<<16 - 1},
		&Route{3, true, 1},
		&Seal{},
		&Freeze{7, 1<<48 | 5, 9},
		&FreezeVote{7, 1<<48 | 5, true},
		&Unfreeze{7, 1<<48 | 5},
	}
}

func TestRoundTrip(t *testing.T) {
	seen := map[Op]bool{}
	at := meta.Time{Sec: 1 << 40, Nsec: 1}
	for _, c := range samples() {
		seen[c.Op()] = true
		for _, tag := range []Tag{{}, {Session: 1 << 63, Seq: 300, Acked: 299, Retry: true}} {
			b := Encode(c, at, tag)
			got, gotTime, gotTag, err := Decode(b)
			if err != nil || gotTime != at || gotTag != tag || !reflect.DeepEqual(got, c) {
				t.Errorf("%T: got %+v at %v, %v, %v; want %+v", c, got, gotTime, gotTag, err, c)
			}
			// Any cut is noticed, never a panic.
			for n := range b {
				if _, _, _, err := Decode(b[:n]); !errors.Is(err, ErrDecode) {
					t.Errorf("%T cut to %d of %d bytes: %v", c, n, len(b), err)
				}
			}
		}
	}
	for op := Op(0); op < 255; op++ {
		if (empty(op) != nil) != seen[op] {
			t.Errorf("operation %d: known %v, in samples %v", op, empty(op) != nil, seen[op])
		}
	}
}

func TestEncodeOwnsData(t *testing.T) {
	data := []byte("hello")
	c := &Write{Ino: 1, Data: data}
	b := Encode(c, meta.Time{}, Tag{})
	data[0] = 'X'
	got, _, _, err := Decode(b)
	if err != nil || string(got.(*Write).Data) != "hello" || string(c.Data) != "hello" {
		t.Fatalf("the command shares the caller's buffer: %q, %q, %v", got, c.Data, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range samples() {
		f.Add(Encode(c, meta.Time{Sec: 1}, Tag{}))
		f.Add(Encode(c, meta.Time{Sec: 1}, Tag{Session: 1, Seq: 2, Acked: 1}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, at, tag, err := Decode(b)
		if err != nil {
			return
		}
		again, t2, tag2, err := Decode(Encode(c, at, tag))
		if err != nil || t2 != at || tag2 != tag || !bytes.Equal(Encode(again, at, tag), Encode(c, at, tag)) {
			t.Fatalf("decoded %+v does not survive: %+v, %v", c, again, err)
		}
	})
}
