package alloc

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// file is what the tests know of a file: its blocks in order.
type file struct {
	extents []Extent
	blocks  uint64
}

// grow appends count blocks with the hint that the engine gives: the block behind the last one.
func (f *file) grow(t testing.TB, a *Allocator, count uint64) {
	t.Helper()
	hint := uint64(NoHint)
	if n := len(f.extents); n > 0 {
		hint = f.extents[n-1].End()
	}
	got, err := a.Allocate(count, hint)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got {
		f.blocks += e.Count
		if n := len(f.extents); n > 0 && f.extents[n-1].End() == e.Start {
			f.extents[n-1].Count += e.Count
		} else {
			f.extents = append(f.extents, e)
		}
	}
}

func TestFilesGrowInFewPieces(t *testing.T) {
	const image = 1 << 24 // 64 GiB
	tests := []struct {
		files, blocks, step uint64
		most                int // extents per file
	}{
		{1, 20_000, 1, 1},
		{2, 20_000, 1, 10},
		{8, 5_000, 1, 9},
		{64, 1_000, 1, 8},
		{8, 64 * 256, 256, 7}, // as the kernel sends them: 1 MiB at a time
		{8, 1 << 18, 256, 14}, // 1 GiB each
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("files=%d,blocks=%d,step=%d", tt.files, tt.blocks, tt.step), func(t *testing.T) {
			a := New(image, 16)
			files := make([]file, tt.files)
			for files[0].blocks < tt.blocks {
				for i := range files {
					files[i].grow(t, a, tt.step)
				}
			}
			most := 0
			for _, f := range files {
				most = max(most, len(f.extents))
			}
			t.Logf("at most %d extents per file, %d free extents", most, a.Stats().FreeExtents)
			if most > tt.most {
				t.Errorf("a file is in %d pieces, should be at most %d", most, tt.most)
			}
			if err := a.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Small files written one after the other lie one after the other, also while a large one grows.
func TestSmallFilesLieTogether(t *testing.T) {
	a := New(1<<24, 16)
	var large file
	large.grow(t, a, 256)
	var pieces int
	var end uint64
	for range 1000 {
		var small file
		small.grow(t, a, 3)
		if small.extents[0].Start != end {
			pieces++
		}
		end = small.extents[0].End()
		large.grow(t, a, 256)
	}
	t.Logf("1000 small files in %d pieces, the large one in %d", pieces, len(large.extents))
	if pieces > 30 || len(large.extents) > 30 {
		t.Error("that is too many")
	}
}

// Writes to random places of a sparse file have hints that mean nothing. They must not be scattered over the image.
func TestStrangeHintsDoNotScatter(t *testing.T) {
	a := New(1<<24, 16)
	rnd := rand.New(rand.NewPCG(1, 2))
	var ends []uint64
	highest := uint64(0)
	const writes = 20_000
	for range writes {
		hint := uint64(NoHint)
		if len(ends) > 0 {
			hint = ends[rnd.IntN(len(ends))]
		}
		got, err := a.Allocate(1, hint)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, got[0].End())
		highest = max(highest, got[0].End())
	}
	t.Logf("%d blocks spread over %d, %d free extents", writes, highest, a.Stats().FreeExtents)
	if highest > 2*writes || a.Stats().FreeExtents > writes/10 {
		t.Error("that is too far")
	}
}

// A new file begins where there is room to grow and leaves the holes to those who fit.
func TestNewFilesBeginInLargeExtents(t *testing.T) {
	a := New(100_000, 16)
	if _, err := a.Allocate(50_000, NoHint); err != nil {
		t.Fatal(err)
	}
	for at := uint64(100); at < 40_000; at += 100 {
		if err := a.Free(Extent{at, 10}); err != nil {
			t.Fatal(err)
		}
	}
	var f file
	for range 1000 {
		f.grow(t, a, 1)
	}
	if len(f.extents) != 1 {
		t.Errorf("a new file of 1000 blocks is in %d pieces", len(f.extents))
	}
	// But a block that belongs beside another goes into the hole there.
	got, err := a.Allocate(1, 20_050)
	if err != nil {
		t.Fatal(err)
	}
	if d := max(got[0].Start, 20_050) - min(got[0].Start, 20_050); d > 1000 {
		t.Errorf("a block with the hint 20050 went to %d", got[0].Start)
	}
}
