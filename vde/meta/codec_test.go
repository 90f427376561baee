package meta

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func drawTime(t *rapid.T, name string) Time {
	return Time{rapid.Int64().Draw(t, name), rapid.Uint32Max(999_999_999).Draw(t, name+" ns")}
}

func drawInode(t *rapid.T) Inode {
	u32 := func(name string) uint32 { return rapid.Uint32().Draw(t, name) }
	u64 := func(name string) uint64 { return rapid.Uint64().Draw(t, name) }
	return Inode{
		Ino: Ino(u64("ino")), Mode: u32("mode"), Nlink: u32("nlink"), UID: u32("uid"), GID: u32("gid"), Rdev: u32("rdev"), Flags: u32("flags"),
		Size: u64("size"), Blocks: u64("blocks"), Atime: drawTime(t, "atime"), Mtime: drawTime(t, "mtime"), Ctime: drawTime(t, "ctime"),
		Btime: drawTime(t, "btime"), Version: u64("version"), Parent: Ino(u64("parent")), NextCookie: u64("cookie"),
		Target: rapid.String().Draw(t, "target"),
	}
}

func TestRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInode(t)
		if got, err := DecodeInode(in.Ino, EncodeInode(nil, &in)); err != nil || got != in {
			t.Fatalf("%+v, %v; want %+v", got, err, in)
		}
		e := Dirent{
			Name: rapid.StringN(1, 255, 255).Draw(t, "name"), Ino: Ino(rapid.Uint64().Draw(t, "of")), Type: rapid.Uint32Max(15).Draw(t, "type") << typeShift,
			Cookie: rapid.Uint64().Draw(t, "place"),
		}
		if got, err := DecodeDirent(e.Name, encodeDirent(e)); err != nil || got != e {
			t.Fatalf("by name: %+v, %v; want %+v", got, err, e)
		}
		if got, err := DecodeCookie(e.Cookie, encodeCookie(e)); err != nil || got != e {
			t.Fatalf("by place: %+v, %v; want %+v", got, err, e)
		}
		x := Extent{
			FileBlock: rapid.Uint64Max(1<<40).Draw(t, "file block"), Phys: rapid.Uint64Max(1<<52).Draw(t, "phys"),
			Count: rapid.Uint64Range(1, 1<<40).Draw(t, "count"), Unwritten: rapid.Bool().Draw(t, "unwritten"),
		}
		if got, err := DecodeExtent(x.FileBlock, encodeExtent(x)); err != nil || got != x {
			t.Fatalf("%+v, %v; want %+v", got, err, x)
		}
		r := Ref{Phys: x.Phys, Count: x.Count, Refs: rapid.Uint64Min(2).Draw(t, "refs")}
		if got, err := DecodeRef(r.Phys, encodeRef(r)); err != nil || got != r {
			t.Fatalf("%+v, %v; want %+v", got, err, r)
		}
		g := Group{rapid.Uint64().Draw(t, "applied"), rapid.Uint64().Draw(t, "term"), rapid.Uint64().Draw(t, "next"), rapid.Uint64().Draw(t, "inodes")}
		if got, err := DecodeGroup(3, encodeGroup(nil, g)); err != nil || got != g {
			t.Fatalf("%+v, %v; want %+v", got, err, g)
		}
	})
}

// Keys sort as the numbers in them, within the letter and the inode.
func TestKeyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := Ino(rapid.Uint64().Draw(t, "a")), Ino(rapid.Uint64().Draw(t, "b"))
		m, n := rapid.Uint64().Draw(t, "m"), rapid.Uint64().Draw(t, "n")
		less := a < b || a == b && m < n
		if got := bytes.Compare(extentKey(a, m), extentKey(b, n)) < 0; got != less {
			t.Fatalf("extents %d/%d and %d/%d: %v", a, m, b, n, got)
		}
		if got := bytes.Compare(cookieKey(a, m), cookieKey(b, n)) < 0; got != less {
			t.Fatalf("places %d/%d and %d/%d: %v", a, m, b, n, got)
		}
		name := rapid.StringN(1, 20, -1).Draw(t, "name")
		for _, c := range []struct {
			key  []byte
			want Key
		}{
			{inodeKey(a), Key{Kind: 'i', Ino: a}},
			{orphanKey(a), Key{Kind: 'o', Ino: a}},
			{direntKey(a, name), Key{Kind: 'd', Ino: a, Name: name}},
			{xattrKey(a, name), Key{Kind: 'x', Ino: a, Name: name}},
			{cookieKey(a, m), Key{Kind: 'c', Ino: a, Number: m}},
			{extentKey(a, m), Key{Kind: 'e', Ino: a, Number: m}},
			{refKey(m), Key{Kind: 'r', Number: m}},
			{groupKey(uint16(m)), Key{Kind: 'g', Number: m & 0xffff}},
			{factKey(uint16(m), name), Key{Kind: 'f', Number: m & 0xffff, Name: name}},
			{storeKey(name), Key{Kind: 's', Name: name}},
		} {
			if got, err := DecodeKey(c.key); err != nil || got != c.want {
				t.Fatalf("%x: %+v, %v; want %+v", c.key, got, err, c.want)
			}
		}
	})
	for _, c := range []struct{ prefix, want []byte }{{[]byte{'d', 1}, []byte{'d', 2}}, {[]byte{'d', 255}, []byte{'e'}}, {[]byte{255}, nil}} {
		if got := after(c.prefix); !bytes.Equal(got, c.want) {
			t.Errorf("after %x: %x, want %x", c.prefix, got, c.want)
		}
	}
}

// Values that mean nothing are refused, and say so with ErrDecode.
func TestNonsenseIsRefused(t *testing.T) {
	in := EncodeInode(nil, &Inode{Mode: 0o100644})
	newer := slices.Clone(in)
	newer[0] = 2
	manyNs := slices.Clone(in)
	copy(manyNs[49:], []byte{0xff, 0xff, 0xff, 0xff})
	for name, err := range map[string]error{
		"empty inode":        second(DecodeInode(1, nil)),
		"short inode":        second(DecodeInode(1, in[:100])),
		"newer inode":        second(DecodeInode(1, newer)),
		"nanoseconds":        second(DecodeInode(1, manyNs)),
		"short entry":        second(DecodeDirent("a", make([]byte, 16))),
		"long entry":         second(DecodeDirent("a", make([]byte, 18))),
		"place without name": second(DecodeCookie(3, make([]byte, 9))),
		"empty extent":       second(DecodeExtent(0, []byte{1, 0, 0})),
		"extent flags":       second(DecodeExtent(0, []byte{1, 1, 2})),
		"extent and more":    second(DecodeExtent(0, []byte{1, 1, 0, 0})),
		"extent too far":     second(DecodeExtent(^uint64(0), []byte{1, 1, 0})),
		"one reference":      second(DecodeRef(1, []byte{1, 1})),
		"no blocks shared":   second(DecodeRef(1, []byte{0, 2})),
		"newer group":        second(DecodeGroup(0, []byte{2, 0, 0, 0, 0})),
		"short group":        second(DecodeGroup(0, []byte{1, 0, 0, 0})),
	} {
		if !errors.Is(err, ErrDecode) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, k := range []string{"", "i", "i1234567", "i123456789", "d12345678", "x12345678", "c123456781234567", "g1", "g123", "f", "f1", "f12", "f12" + strings.Repeat("n", MaxFactName+1), "s", "r1", "z12345678"} {
		if got, err := DecodeKey([]byte(k)); err == nil {
			t.Errorf("key %q: %+v", k, got)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func FuzzDecodeValues(f *testing.F) {
	f.Add(uint64(5), EncodeInode(nil, &Inode{Target: "x"}))
	f.Add(uint64(0), encodeExtent(Extent{Phys: 9, Count: 3}))
	f.Add(uint64(7), encodeRef(Ref{Phys: 7, Count: 3, Refs: 2}))
	f.Add(uint64(0), encodeGroup(nil, Group{1, 2, 3, 4}))
	f.Add(uint64(1), encodeDirent(Dirent{Ino: 2}))
	f.Fuzz(func(t *testing.T, n uint64, b []byte) {
		if in, err := DecodeInode(Ino(n), b); err == nil {
			if again, err := DecodeInode(Ino(n), EncodeInode(nil, &in)); err != nil || again != in {
				t.Errorf("inode %+v becomes %+v, %v", in, again, err)
			}
		}
		if e, err := DecodeDirent("name", b); err == nil && !bytes.Equal(encodeDirent(e), b) && b[8] < 16 {
			t.Errorf("entry %+v becomes %x", e, encodeDirent(e))
		}
		if e, err := DecodeCookie(n, b); err == nil && (e.Cookie != n || e.Name == "") {
			t.Errorf("place %d holds %+v", n, e)
		}
		if x, err := DecodeExtent(n, b); err == nil {
			if again, err := DecodeExtent(n, encodeExtent(x)); err != nil || again != x || x.Count == 0 || x.End() < n {
				t.Errorf("extent %+v becomes %+v, %v", x, again, err)
			}
		}
		if r, err := DecodeRef(n, b); err == nil {
			if again, err := DecodeRef(n, encodeRef(r)); err != nil || again != r || r.Refs < 2 {
				t.Errorf("reference count %+v becomes %+v, %v", r, again, err)
			}
		}
		if g, err := DecodeGroup(uint16(n), b); err == nil {
			if again, err := DecodeGroup(uint16(n), encodeGroup(nil, g)); err != nil || again != g {
				t.Errorf("group %+v becomes %+v, %v", g, again, err)
			}
		}
		_, _ = DecodeKey(b) // must not panic
	})
}
