package alloc

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"
)

// store is a stored bitmap.
type store [][]byte

func (s store) write(page uint64, data []byte) error {
	s[page] = bytes.Clone(data)
	return nil
}

func (s store) read(page uint64, buf []byte) error {
	if page >= uint64(len(s)) || s[page] == nil {
		return io.ErrUnexpectedEOF
	}
	copy(buf, s[page])
	return nil
}

// The example in the comment of the format.
func TestBitmapExample(t *testing.T) {
	const total = 40_000
	s := make(store, Pages(total))
	a := New(total, 16)
	if err := a.WriteBitmap(s.write); err != nil {
		t.Fatal(err)
	}
	want := store{
		append([]byte{0xff, 0xff}, make([]byte, 4094)...),
		append(make([]byte, 904), bytes.Repeat([]byte{0xff}, 3192)...),
	}
	if len(s) != 2 || !bytes.Equal(s[0], want[0]) || !bytes.Equal(s[1], want[1]) {
		t.Fatal("the bitmap of an empty image of 40,000 blocks is not as drawn")
	}
	// Single blocks show the order of bits.
	for _, b := range []uint64{16, 25, 32767, 32768, 39999} {
		if err := a.Reserve(Extent{b, 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.WriteBitmap(s.write); err != nil {
		t.Fatal(err)
	}
	want[0][2], want[0][3], want[0][4095] = 0b01, 0b10, 0x80
	want[1][0], want[1][903] = 0x01, 0x80
	if !bytes.Equal(s[0], want[0]) || !bytes.Equal(s[1], want[1]) {
		t.Fatal("the bits of single blocks are not as drawn")
	}
}

func TestWriteChangesWritesOnlyChanges(t *testing.T) {
	const total = 10 * BlocksPerPage
	s := make(store, Pages(total))
	a := New(total, 16)
	var wrote []uint64
	var fail error
	write := func(page uint64, data []byte) error {
		if fail != nil {
			return fail
		}
		wrote = append(wrote, page)
		return s.write(page, data)
	}
	expect := func(what string, pages ...uint64) {
		t.Helper()
		wrote = nil
		if err := a.WriteChanges(write); err != nil {
			t.Fatal(err)
		}
		if len(wrote) != len(pages) {
			t.Fatalf("%s: wrote pages %v, should be %v", what, wrote, pages)
		}
		for i := range pages {
			if wrote[i] != pages[i] {
				t.Fatalf("%s: wrote pages %v, should be %v", what, wrote, pages)
			}
		}
	}
	expect("first", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	expect("no change")
	if err := a.Reserve(Extent{3*BlocksPerPage - 1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := a.Reserve(Extent{7 * BlocksPerPage, BlocksPerPage}); err != nil {
		t.Fatal(err)
	}
	fail = errors.New("broken disk")
	if err := a.WriteChanges(write); !errors.Is(err, fail) || !strings.Contains(err.Error(), "page 2") {
		t.Fatalf("WriteChanges on a broken disk: %v", err)
	}
	fail = nil
	if err := a.Free(Extent{7 * BlocksPerPage, 1}); err != nil {
		t.Fatal(err)
	}
	expect("after a failure", 2, 3, 7)

	loaded, err := LoadBitmap(total, 16, s.read)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.FreeBlocks() != a.FreeBlocks() || loaded.Check() != nil {
		t.Fatalf("loaded %d free blocks, wrote %d; %v", loaded.FreeBlocks(), a.FreeBlocks(), loaded.Check())
	}
	a = loaded
	expect("just loaded")
	got, err := a.Allocate(1, 5*BlocksPerPage)
	if err != nil || got[0].Start != 5*BlocksPerPage {
		t.Fatal(got, err)
	}
	expect("allocated", 5)
}

func TestLoadBitmapRefuses(t *testing.T) {
	const total = BlocksPerPage + 100
	fresh := func() store {
		s := make(store, Pages(total))
		if err := New(total, 16).WriteBitmap(s.write); err != nil {
			t.Fatal(err)
		}
		return s
	}
	tests := []struct {
		name   string
		damage func(store)
		is     error
		says   string
	}{
		{"a superblock free", func(s store) { s[0][0] = 0xfe }, ErrBitmap, "block 0 free, but only blocks 16 to 32867"},
		{"free up to the usable", func(s store) { s[0][1] = 0 }, ErrBitmap, "blocks 8 to 32867 free"},
		{"free past the end", func(s store) { s[1][12] = 0 }, ErrBitmap, "blocks 16 to 32871"},
		{"free at the very end", func(s store) { s[1][4095] = 0 }, ErrBitmap, "blocks 65528 to 65535"},
		{"a page missing", func(s store) { s[1] = nil }, io.ErrUnexpectedEOF, "page 1 of the 2"},
	}
	for _, tt := range tests {
		s := fresh()
		tt.damage(s)
		_, err := LoadBitmap(total, 16, s.read)
		if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, should say %q", tt.name, err, tt.says)
		}
	}
}

// Opening a store must not wait for its size: an almost empty 1 TiB image has 8192 pages.
func TestLoadingAnEmptyTebibyteIsFast(t *testing.T) {
	const total = 1 << 28
	a := New(total, 1<<16)
	s := make(store, Pages(total))
	if err := a.WriteBitmap(s.write); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // for threadTime
	defer runtime.UnlockOSThread()
	begin := threadTime(t)
	b, err := LoadBitmap(total, 1<<16, s.read)
	took := threadTime(t) - begin
	if err != nil || b.FreeBlocks() != a.FreeBlocks() {
		t.Fatal(err)
	}
	t.Logf("loaded in %v", took)
	if took > 2*time.Second { // 5 ms, but some 0.3 s under the race detector
		t.Errorf("loading took %v", took)
	}
}

// FuzzLoadBitmap gives any bytes as the first, middle and last page of a bitmap. It is either refused with a reason or
// means exactly the free blocks that its zero bits say.
func FuzzLoadBitmap(f *testing.F) {
	f.Add(uint64(40_000), uint64(16), []byte{0xff, 0xff, 0, 0}, bytes.Repeat([]byte{0}, 904))
	f.Add(uint64(100), uint64(3), []byte{7, 0xaa, 0x55}, []byte{})
	f.Add(uint64(3*BlocksPerPage), uint64(0), []byte{}, []byte{0x0f})
	f.Fuzz(func(t *testing.T, total, firstUsable uint64, first, rest []byte) {
		total %= 4 * BlocksPerPage
		pages := make(store, Pages(total))
		for i := range pages {
			data := rest
			if i == 0 {
				data = first
			}
			pages[i] = bytes.Repeat([]byte{0xff}, PageSize)
			copy(pages[i], data)
		}
		a, err := LoadBitmap(total, firstUsable, pages.read)
		free := uint64(0)
		legal := true
		for block := range uint64(len(pages)) * BlocksPerPage {
			if pages[block/BlocksPerPage][block%BlocksPerPage/8]>>(block%8)&1 == 0 {
				free++
				legal = legal && block >= firstUsable && block < total
			}
		}
		if err != nil {
			if legal || !errors.Is(err, ErrBitmap) {
				t.Fatalf("refused a good bitmap or without reason: %v", err)
			}
			return
		}
		if !legal || a.FreeBlocks() != free || a.Check() != nil {
			t.Fatalf("legal: %v, %d free, should be %d, %v", legal, a.FreeBlocks(), free, a.Check())
		}
		again := make(store, len(pages))
		if err := a.WriteBitmap(again.write); err != nil {
			t.Fatal(err)
		}
		for i := range pages {
			if !bytes.Equal(again[i], pages[i]) {
				t.Fatalf("page %d is written otherwise than it was read", i)
			}
		}
	})
}
