package alloc

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the dumb twin of an Allocator: one bool per block from firstUsable on.
type model struct {
	firstUsable, total uint64
	free               []bool
}

func (m *model) isFree(block uint64) bool {
	return block >= m.firstUsable && block < m.total && m.free[block-m.firstUsable]
}

func (m *model) set(e Extent, free bool) {
	for b := e.Start; b < e.End(); b++ {
		m.free[b-m.firstUsable] = free
	}
}

// run returns the extent of usable blocks from start on that are all free or all used, up to limit.
func (m *model) run(start, limit uint64) Extent {
	e := Extent{start, 0}
	for e.End() < limit && m.isFree(e.End()) == m.isFree(start) {
		e.Count++
	}
	return e
}

func (m *model) freeExtents() (extents []Extent) {
	for b := m.firstUsable; b < m.total; {
		e := m.run(b, m.total)
		if m.isFree(b) {
			extents = append(extents, e)
		}
		b = e.End()
	}
	return extents
}

// checkFound judges what FindFreeExtent returned. It may choose among neighbours, as far as they lie in one leaf.
func (m *model) checkFound(t *rapid.T, tree *ExtentTree, count, hint uint64, got Extent, ok bool) {
	fits := func(e Extent) bool { return e.Count >= count }
	all := m.freeExtents()
	if want := count > 0 && slices.ContainsFunc(all, fits); ok != want {
		t.Fatalf("FindFreeExtent(%d, %d) in %v: %v, should be %v", count, hint, all, ok, want)
	}
	if !ok {
		return
	}
	if got.Count != count || !m.isFree(got.Start) || m.run(got.Start, m.total).Count < count {
		t.Fatalf("FindFreeExtent(%d, %d) in %v: %v", count, hint, all, got)
	}
	if m.isFree(hint) && m.run(hint, m.total).Count >= count {
		if got.Start != hint {
			t.Fatalf("FindFreeExtent(%d, %d) in %v: %v, but the hint is free", count, hint, all, got)
		}
		return
	}
	p := tree.seek(got.Start)
	whole := p.extent()
	if whole.Start != got.Start {
		t.Fatalf("FindFreeExtent(%d, %d) in %v: %v is not the front of an extent", count, hint, all, got)
	}
	for _, e := range p.leaf().n.at[:p.leaf().n.n] {
		if fits(e) && e.Count < whole.Count {
			t.Fatalf("FindFreeExtent(%d, %d) in %v: %v, but %v fit better", count, hint, all, got, e)
		}
	}
	// Whatever lies between the hint and the leaf that was chosen, on its side, is too short.
	at := tree.seek(hint)
	for from, to := at.leaf().n, p.leaf().n; from != to; from = at.leaf().n {
		if slices.ContainsFunc(from.at[:from.n], fits) {
			t.Fatalf("FindFreeExtent(%d, %d) in %v: %v, but there is one nearer at hand", count, hint, all, got)
		}
		for at.leaf().n == from {
			if got.Start > hint && !at.next() || got.Start <= hint && !at.prev() {
				t.Fatalf("FindFreeExtent(%d, %d) in %v: %v is not on its way", count, hint, all, got)
			}
		}
	}
}

// fewest returns how many extents are needed at least to hold count free blocks.
func (m *model) fewest(count uint64) (n int) {
	all := m.freeExtents()
	slices.SortFunc(all, func(a, b Extent) int { return int(b.Count) - int(a.Count) })
	for sum := uint64(0); sum < count; n++ {
		sum += all[n].Count
	}
	return n
}

// drawModel returns a model and an allocator for a few hundred blocks, all free. They may lie across a page of the
// bitmap or far out, and the tree may have nodes of 6 entries, so that it is deep.
func drawModel(t *rapid.T) (*model, *Allocator) {
	first := rapid.SampledFrom([]uint64{0, 1, 16, BlocksPerPage - 100, 1 << 40}).Draw(t, "firstUsable")
	total := first + rapid.Uint64Range(1, 300).Draw(t, "usable")
	m := &model{firstUsable: first, total: total, free: make([]bool, total-first)}
	m.set(Extent{first, total - first}, true)

	a := New(total, first)
	if rapid.Bool().Draw(t, "narrow") {
		a = newAllocator(NewExtentTree(total), first)
		a.tree.width = 6
		if err := a.tree.Insert(Extent{first, total - first}); err != nil {
			t.Fatal(err)
		}
		a.changed.addAll()
	}
	// With many free extents to begin with, the whole index by length matters and not only what is near a hint.
	if rapid.Bool().Draw(t, "fragmented") {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "fragments"), 0))
		for at := first; at < total; {
			e := Extent{at, min(1+rnd.Uint64N(2), total-at)}
			if err := a.Reserve(e); err != nil {
				t.Fatal(err)
			}
			m.set(e, false)
			at = e.End() + 1 + rnd.Uint64N(9)
		}
	}
	return m, a
}

func (m *model) drawBlock(t *rapid.T, label string) uint64 {
	return rapid.OneOf(
		rapid.Uint64Range(m.firstUsable, m.total),
		rapid.Uint64Range(m.firstUsable, m.total),
		rapid.Uint64(),
		rapid.SampledFrom([]uint64{0, math.MaxUint64}),
	).Draw(t, label)
}

func (m *model) drawCount(t *rapid.T) uint64 {
	return rapid.OneOf(
		rapid.Uint64Range(0, 8), rapid.Uint64Range(0, 8), rapid.Uint64Range(0, 300),
		rapid.SampledFrom([]uint64{math.MaxUint64, math.MaxUint64 - 50}),
	).Draw(t, "count")
}

func TestAllocatorAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, a := drawModel(t)
		var taken []Extent
		var lastEnd uint64
		stored := map[uint64][]byte{} // the bitmap as a disk would hold it
		var old *ExtentTree           // a snapshot of some time ago
		var oldExtents []Extent

		change := func(t *rapid.T, name string, do func(Extent) error, free bool, wrong error) {
			e := Extent{m.drawBlock(t, "start"), m.drawCount(t)}
			if len(taken) > 0 && rapid.Bool().Draw(t, "one that was given out") {
				e = rapid.SampledFrom(taken).Draw(t, "extent")
			}
			var want error
			if !e.within(m.firstUsable, m.total) {
				want = ErrOutOfRange
			} else {
				for b := e.Start; b < e.End(); b++ {
					if m.isFree(b) == free {
						want = wrong
					}
				}
			}
			if err := do(e); !errors.Is(err, want) {
				t.Fatalf("%s(%v): %v, should be %v", name, e, err, want)
			}
			if want == nil {
				m.set(e, free)
			}
		}

		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				count := m.drawCount(t)
				hint := m.drawBlock(t, "hint")
				if rapid.Bool().Draw(t, "at the last end") {
					hint = lastEnd
				}
				got, err := a.Allocate(count, hint)
				free := uint64(0)
				for _, e := range m.freeExtents() {
					free += e.Count
				}
				if count > free {
					if !errors.Is(err, ErrNoSpace) || got != nil {
						t.Fatalf("Allocate(%d) of %d free: %v, %v", count, free, got, err)
					}
					return
				}
				if err != nil {
					t.Fatalf("Allocate(%d) of %d free: %v", count, free, err)
				}
				if len(got) != m.fewest(count) {
					t.Fatalf("Allocate(%d) of %v: %v, %d extents are enough", count, m.freeExtents(), got, m.fewest(count))
				}
				if count > 0 && hint != NoHint && m.isFree(hint) && m.run(hint, m.total).Count >= count && got[0].Start != hint {
					t.Fatalf("Allocate(%d) at %d, which is free: %v", count, hint, got)
				}
				sum, end := uint64(0), uint64(0)
				for _, e := range got {
					for b := e.Start; b < e.End(); b++ {
						if !m.isFree(b) {
							t.Fatalf("Allocate(%d): %v, but block %d is in use", count, got, b)
						}
					}
					if e.Count == 0 || e.Start < end {
						t.Fatalf("Allocate(%d): %v is empty or out of order", count, got)
					}
					m.set(e, false)
					sum, end = sum+e.Count, e.End()
					taken = append(taken, e)
					lastEnd = end
				}
				if sum != count {
					t.Fatalf("Allocate(%d): %v is %d blocks", count, got, sum)
				}
			},
			"free":    func(t *rapid.T) { change(t, "Free", a.Free, true, ErrAlreadyFree) },
			"reserve": func(t *rapid.T) { change(t, "Reserve", a.Reserve, false, ErrNotFree) },
			"find": func(t *rapid.T) {
				count, hint := m.drawCount(t), m.drawBlock(t, "hint")
				got, ok := a.tree.FindFreeExtent(count, hint)
				m.checkFound(t, a.tree, count, hint, got, ok)
			},
			"write the bitmap": func(t *rapid.T) {
				if m.total > 1<<30 {
					t.Skip("too many pages")
				}
				write := a.WriteChanges
				if rapid.Bool().Draw(t, "all") {
					write = a.WriteBitmap
				}
				failAt := rapid.IntRange(0, 4).Draw(t, "fail at")
				broken := errors.New("broken disk")
				err := write(func(page uint64, data []byte) error {
					if failAt--; failAt == 0 {
						return broken
					}
					stored[page] = bytes.Clone(data)
					return nil
				})
				if failAt <= 0 && err != nil {
					if !errors.Is(err, broken) {
						t.Fatal(err)
					}
					return // and the next call must make up for it
				}
				if err != nil {
					t.Fatal(err)
				}
				b, err := LoadBitmap(m.total, m.firstUsable, func(page uint64, buf []byte) error {
					copy(buf, stored[page])
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				m.compare(t, b)
			},
			"snapshot": func(*rapid.T) {
				old, oldExtents = a.snapshot(), m.freeExtents()
			},
			"": func(t *rapid.T) {
				m.compare(t, a)
				if old == nil {
					return
				}
				if err := old.check(m.firstUsable); err != nil {
					t.Fatalf("a snapshot has changed: %v", err)
				}
				if got := slices.Collect(old.All); !slices.Equal(got, oldExtents) {
					t.Fatalf("a snapshot has changed: %v, was %v", got, oldExtents)
				}
			},
		})
	})
}

// compare fails unless a is consistent and has exactly the blocks free that the model has.
func (m *model) compare(t *rapid.T, a *Allocator) {
	if err := a.Check(); err != nil {
		t.Fatal(err)
	}
	want := m.freeExtents()
	var got []Extent
	a.FreeExtents(func(e Extent) bool {
		got = append(got, e)
		return true
	})
	if !slices.Equal(got, want) {
		t.Fatalf("free are %v, should be %v", got, want)
	}
	free, largest := uint64(0), uint64(0)
	for _, e := range want {
		free, largest = free+e.Count, max(largest, e.Count)
	}
	s := a.Stats()
	if s.Free != free || a.FreeBlocks() != free || s.LargestFree != largest || a.LargestFree() != largest ||
		s.FreeExtents != uint64(len(want)) || s.Total != m.total || a.Total() != m.total || s.Usable != m.total-m.firstUsable {
		t.Fatalf("%+v, should be %d free, largest %d, %d extents", s, free, largest, len(want))
	}
}

// A loaded tree is as good as a grown one, whatever the number of its extents.
func TestTreeLoader(t *testing.T) {
	for width := 6; width < 10; width++ {
		for n := range uint64(300) {
			tree := NewExtentTree(n * 10)
			tree.width = width
			loader := treeLoader{tree: tree}
			for i := range n {
				loader.add(Extent{i*10 + 1, 1 + i*i%8})
			}
			loader.finish()
			if err := tree.check(1); err != nil || tree.Len() != int(n) {
				t.Fatalf("width %d, %d extents: %v, Len is %d", width, n, err, tree.Len())
			}
			for i := range n { // and can be emptied
				at := i * 7 % n
				if err := tree.Remove(Extent{at*10 + 1, 1 + at*at%8}); n%7 != 0 && err != nil {
					t.Fatal(err)
				}
			}
			if err := tree.check(1); err != nil || n%7 != 0 && tree.Len() != 0 {
				t.Fatalf("width %d, %d extents, emptied: %v, Len is %d", width, n, err, tree.Len())
			}
		}
	}
}

func TestBuilderAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.SampledFrom([]uint64{0, 1, 16, BlocksPerPage - 100}).Draw(t, "firstUsable")
		total := first + rapid.Uint64Range(1, 300).Draw(t, "usable")
		m := &model{firstUsable: first, total: total, free: make([]bool, total-first)}
		m.set(Extent{first, total - first}, true)
		exclusive := make([]bool, total-first) // used by an extent that is not shared

		b := NewBuilder(total, first)
		for range rapid.IntRange(0, 20).Draw(t, "extents") {
			e := Extent{m.drawBlock(t, "start"), m.drawCount(t)}
			shared := rapid.Bool().Draw(t, "shared")
			err := b.Use(e, shared)
			if !e.within(first, total) {
				if !errors.Is(err, ErrOutOfRange) {
					t.Fatalf("Use(%v): %v", e, err)
				}
				continue
			}
			var overlap Extent
			for block := e.Start; block < e.End(); block++ {
				if !m.isFree(block) && (!shared || exclusive[block-first]) {
					if overlap.Count == 0 {
						overlap.Start = block
					} else if overlap.End() != block {
						break
					}
					overlap.Count++
				}
			}
			var overlapErr *OverlapError
			switch {
			case overlap.Count == 0 && err != nil:
				t.Fatalf("Use(%v, %v): %v", e, shared, err)
			case overlap.Count > 0 && (!errors.As(err, &overlapErr) || overlapErr.Blocks != overlap || overlapErr.Used != e || !errors.Is(err, ErrNotFree)):
				t.Fatalf("Use(%v, %v): %v, should name %v", e, shared, err, overlap)
			}
			if overlap.Count > 0 {
				return // what counts as shared or not after a mistake is not promised
			}
			m.set(e, false)
			for block := e.Start; !shared && block < e.End(); block++ {
				exclusive[block-first] = true
			}
		}
		a, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		m.compare(t, a)
	})
}

// Thousands of small changes to a deep tree, checked after each one: more and denser than rapid would draw.
func TestExtentTreeLongRun(t *testing.T) {
	const blocks, steps = 600, 4_000
	for width := 6; width < 9; width++ {
		rnd := rand.New(rand.NewPCG(uint64(width), 0))
		tree := NewExtentTree(blocks)
		tree.width = width
		m := &model{total: blocks, free: make([]bool, blocks)}
		for step := range steps {
			e := Extent{rnd.Uint64N(blocks), 0}
			e.Count = min(1+rnd.Uint64N(3), blocks-e.Start)
			free := m.isFree(e.Start)
			e.Count = min(e.Count, m.run(e.Start, blocks).Count)
			if 10*rnd.Uint64N(steps) < uint64(step) { // now and then large, and a snapshot that makes nodes be copied
				e.Count = m.run(e.Start, blocks).Count
				tree.snapshot()
			}
			var err error
			if free {
				err = tree.Remove(e)
			} else {
				err = tree.Insert(e)
			}
			m.set(e, !free)
			if err == nil {
				err = tree.check(0)
			}
			if err != nil {
				t.Fatalf("width %d, step %d, %v, free before: %v: %v", width, step, e, free, err)
			}
			if got, want := slices.Collect(tree.All), m.freeExtents(); step%50 == 0 && !slices.Equal(got, want) {
				t.Fatalf("width %d, step %d: free are %v, should be %v", width, step, got, want)
			}
		}
	}
}
