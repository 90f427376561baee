package alloc

import (
	"errors"
	"slices"
	"testing"
)

func TestBuilderOverPages(t *testing.T) {
	const total = 7*BlocksPerPage + 7 // of which pages 5 and 6 stay empty
	b := NewBuilder(total, 16)
	for _, e := range []Extent{
		{4 * BlocksPerPage, 10},
		{BlocksPerPage - 1, 2*BlocksPerPage + 2}, // over four pages
		{16, 1},
		{total - 1, 1},
	} {
		if err := b.Use(e, false); err != nil {
			t.Fatal(err)
		}
	}
	err := b.Use(Extent{100, 2 * BlocksPerPage}, false)
	var overlap *OverlapError
	if !errors.As(err, &overlap) || overlap.Blocks != (Extent{BlocksPerPage - 1, BlocksPerPage + 101}) {
		t.Errorf("overlap over two pages: %v", err)
	}
	if want := "alloc: cannot use blocks 100 to 65635: blocks 32767 to 65635: in use already"; err.Error() != want {
		t.Errorf("overlap is %q, should be %q", err, want)
	}
	a, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	want := []Extent{
		{17, 83}, // all that was used twice is in use
		{3*BlocksPerPage + 1, BlocksPerPage - 1},
		{4*BlocksPerPage + 10, total - 1 - 4*BlocksPerPage - 10},
	}
	if got := slices.Collect(a.FreeExtents); !slices.Equal(got, want) {
		t.Errorf("free are %v, should be %v", got, want)
	}
	if err := a.Check(); err != nil {
		t.Error(err)
	}
	written := 0
	if err := a.WriteChanges(func(uint64, []byte) error { written++; return nil }); err != nil || written != 8 {
		t.Errorf("a rebuilt bitmap is written in %d pages, should be all 8; %v", written, err)
	}
}

func TestBuilderSharing(t *testing.T) {
	tests := []struct {
		name          string
		first, second bool // shared
		ok            bool
	}{
		{"both shared", true, true, true},
		{"shared, then not", true, false, false},
		{"not, then shared", false, true, false},
		{"none shared", false, false, false},
	}
	for _, tt := range tests {
		b := NewBuilder(1000, 16)
		if err := b.Use(Extent{100, 100}, tt.first); err != nil {
			t.Fatal(err)
		}
		err := b.Use(Extent{150, 100}, tt.second)
		var overlap *OverlapError
		if tt.ok && err != nil || !tt.ok && (!errors.As(err, &overlap) || overlap.Blocks != Extent{150, 50}) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
