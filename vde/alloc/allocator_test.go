package alloc

import (
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestErrorsNameTheBlocks(t *testing.T) {
	a := New(1000, 16)
	if err := a.Reserve(Extent{100, 50}); err != nil {
		t.Fatal(err)
	}
	if err := a.Reserve(Extent{170, 1}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		err  error
		is   error
		says string
	}{
		{"reserve behind", a.Reserve(Extent{140, 20}), ErrNotFree, "cannot reserve blocks 140 to 159: blocks 140 to 149: in use"},
		{"reserve before", a.Reserve(Extent{90, 20}), ErrNotFree, "cannot reserve blocks 90 to 109: blocks 100 to 109: in use"},
		{"reserve around", a.Reserve(Extent{160, 20}), ErrNotFree, "blocks 160 to 179: block 170: in use"},
		{"reserve within", a.Reserve(Extent{101, 1}), ErrNotFree, "block 101: block 101: in use"},
		{"reserve the superblock", a.Reserve(Extent{0, 20}), ErrOutOfRange, "usable are [16, 1000)"},
		{"reserve past the end", a.Reserve(Extent{999, 2}), ErrOutOfRange, "start 999, count 2"},
		{"free twice", a.Free(Extent{140, 20}), ErrAlreadyFree, "cannot free blocks 140 to 159: blocks 150 to 159: free already"},
		{"free what was never used", a.Free(Extent{500, 1}), ErrAlreadyFree, "block 500: block 500: free already"},
		{"free the superblock", a.Free(Extent{15, 1}), ErrOutOfRange, "block 15"},
		{"free past all numbers", a.Free(Extent{500, math.MaxUint64}), ErrOutOfRange, "count 18446744073709551615"},
	}
	_, err := a.Allocate(934, NoHint)
	tests = append(tests, struct {
		name string
		err  error
		is   error
		says string
	}{"allocate too much", err, ErrNoSpace, "934 blocks asked for, 933 of 984 are free"})

	for _, tt := range tests {
		if !errors.Is(tt.err, tt.is) || !strings.Contains(tt.err.Error(), tt.says) {
			t.Errorf("%s: %q, should say %q", tt.name, tt.err, tt.says)
		}
	}
	if err := a.Check(); err != nil || a.FreeBlocks() != 933 {
		t.Errorf("after failures: %v, %d free", err, a.FreeBlocks())
	}
}

func TestStatsCount(t *testing.T) {
	a := New(100, 10)
	for _, e := range []Extent{{20, 5}, {40, 5}, {60, 5}} {
		if err := a.Reserve(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, ask := range []struct{ count, hint uint64 }{{3, 70}, {1, 20}, {50, NoHint}} {
		if _, err := a.Allocate(ask.count, ask.hint); err != nil {
			t.Fatal(err)
		}
	}
	want := Stats{Total: 100, Usable: 90, Free: 21, Allocations: 3, AtHint: 1, Fragmented: 1}
	got := a.Stats()
	want.FreeExtents, want.LargestFree = got.FreeExtents, got.LargestFree // as the placement has it
	if got != want {
		t.Errorf("%+v, should be %+v", got, want)
	}
}

func TestEmptyImages(t *testing.T) {
	for _, size := range []struct{ total, firstUsable uint64 }{{0, 0}, {0, 16}, {16, 16}, {10, 16}} {
		a := New(size.total, size.firstUsable)
		if _, err := a.Allocate(1, NoHint); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%+v: Allocate: %v", size, err)
		}
		if err := errors.Join(a.Free(Extent{0, 1}), a.Reserve(Extent{0, 1})); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("%+v: Free and Reserve: %v", size, err)
		}
		if s := a.Stats(); a.Check() != nil || s.Usable != 0 || s.LargestFree != 0 {
			t.Errorf("%+v: %v, %+v", size, a.Check(), s)
		}
		b, err := NewBuilder(size.total, size.firstUsable).Build()
		if err != nil || b.FreeBlocks() != 0 {
			t.Errorf("%+v: Build: %v", size, err)
		}
	}
}

// Check finds what a mistake in the tree would leave behind.
func TestCheckFindsBadNodes(t *testing.T) {
	damage := map[string]func(t *ExtentTree){
		"entries":         func(t *ExtentTree) { t.root.kids[1].n = 1 },
		"index by length": func(t *ExtentTree) { t.root.at[1].Count++ },
		"index by offset": func(t *ExtentTree) { t.root.at[1].Start++ },
		"has depth": func(t *ExtentTree) {
			leaf := t.root.kids[1].kids[0]
			t.root.kids[1], t.root.at[1].Count = leaf, leaf.longest()
		},
		"extents, counted are": func(t *ExtentTree) { t.count++ },
	}
	for says, do := range damage {
		tree := NewExtentTree(10_000)
		tree.width = 6
		loader := treeLoader{tree: tree}
		for i := range uint64(100) {
			loader.add(Extent{i * 10, 1 + i%5})
		}
		loader.finish()
		if err := tree.check(0); err != nil {
			t.Fatal(err)
		}
		do(tree)
		if err := tree.check(0); !errors.Is(err, ErrInvariant) || !strings.Contains(err.Error(), says) {
			t.Errorf("check: %v, should say %q", err, says)
		}
	}
}

// Check finds what no sequence of calls can make.
func TestCheckFinds(t *testing.T) {
	damage := map[string]func(*node){
		"touch":                func(n *node) { n.at[0].Count = 100 },
		"overlap":              func(n *node) { n.at[0].Count = 101 },
		"usable are 10 to 999": func(n *node) { n.at[0].Start = 9 },
		"no blocks at":         func(n *node) { n.at[0].Count = 0 },
		"not in [":             func(n *node) { n.at[0].Start, n.at[1].Start = n.at[1].Start, n.at[0].Start },
		"extents, counted are": func(n *node) { n.removeAt(5, 1) },
		"blocks, counted are":  func(n *node) { n.at[1].Count-- },
	}
	for says, do := range damage {
		a := New(1000, 10)
		for at := uint64(100); at < 1000; at += 100 {
			if err := a.Reserve(Extent{at, 10}); err != nil {
				t.Fatal(err)
			}
		}
		do(a.tree.root)
		if err := a.Check(); !errors.Is(err, ErrInvariant) || !strings.Contains(err.Error(), says) {
			t.Errorf("Check: %v, should say %q", err, says)
		}
	}
}

// Many goroutines allocate and free while the bitmap is written and all is checked: no block has two owners.
func TestConcurrent(t *testing.T) {
	const total, workers, rounds = 3 * BlocksPerPage, 8, 1500
	a := New(total, 16)
	var owners [total]atomic.Int32
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(w)))
			var mine []Extent
			own := func(e Extent, by int32) {
				for b := e.Start; b < e.End(); b++ {
					if n := owners[b].Add(by); n < 0 || n > 1 {
						t.Errorf("block %d has %d owners", b, n)
					}
				}
			}
			for range rounds {
				if len(mine) > 0 && rnd.IntN(2) == 0 {
					i := rnd.IntN(len(mine))
					e := mine[i]
					mine = slices.Delete(mine, i, i+1)
					own(e, -1)
					if err := a.Free(e); err != nil {
						t.Error(err)
					}
					continue
				}
				got, err := a.Allocate(1+rnd.Uint64N(40), rnd.Uint64N(total))
				if err != nil {
					t.Error(err)
					continue
				}
				for _, e := range got {
					own(e, 1)
				}
				mine = append(mine, got...)
			}
			for _, e := range mine {
				own(e, -1)
				if err := a.Free(e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	stop := make(chan struct{})
	var observer sync.WaitGroup
	observer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := a.Check(); err != nil {
				t.Error(err)
			}
			pages := make([][]byte, Pages(total))
			if err := a.WriteBitmap(func(page uint64, data []byte) error {
				pages[page] = slices.Clone(data)
				return nil
			}); err != nil {
				t.Error(err)
			}
			if _, err := LoadBitmap(total, 16, func(page uint64, buf []byte) error {
				copy(buf, pages[page])
				return nil
			}); err != nil {
				t.Error(err)
			}
			runtime.Gosched()
		}
	})
	wg.Wait()
	close(stop)
	observer.Wait()
	if err := a.Check(); err != nil || a.FreeBlocks() != total-16 || a.LargestFree() != total-16 {
		t.Errorf("in the end: %v, %d free, largest %d", err, a.FreeBlocks(), a.LargestFree())
	}
}
