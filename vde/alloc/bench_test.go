package alloc

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
)

// fragmented returns an allocator for an image of total blocks with n free extents of 1 to about total/n/2 blocks,
// evenly spread.
func fragmented(tb testing.TB, total uint64, n int) *Allocator {
	tb.Helper()
	tree := NewExtentTree(total)
	loader := treeLoader{tree: tree}
	rnd := rand.New(rand.NewPCG(1, 2))
	stride := total / uint64(n)
	for i := range uint64(n) {
		loader.add(Extent{i*stride + 1, 1 + rnd.Uint64N(stride/2)})
	}
	loader.finish()
	return newAllocator(tree, 1)
}

const fourTiB = 1 << 30 // blocks

// BenchmarkAllocate is the time of one allocation of 1 to 8 blocks in a 4 TiB image by the number of free extents. Each
// batch of allocations is freed again outside the measured time, so the number stays what it says.
func BenchmarkAllocate(b *testing.B) {
	hints := map[string]func(*rand.Rand, uint64) uint64{
		"random": func(r *rand.Rand, _ uint64) uint64 { return r.Uint64N(fourTiB) },
		"append": func(_ *rand.Rand, end uint64) uint64 { return end },
		"none":   func(*rand.Rand, uint64) uint64 { return NoHint },
	}
	for _, n := range []int{10_000, 10_000_000} {
		a := fragmented(b, fourTiB, n)
		for _, kind := range []string{"random", "append", "none"} {
			b.Run(fmt.Sprintf("hint=%s/extents=%d", kind, n), func(b *testing.B) {
				rnd := rand.New(rand.NewPCG(3, 4))
				end := uint64(fourTiB / 2)
				var took time.Duration
				var taken []Extent
				b.ReportAllocs()
				for done := 0; done < b.N; {
					batch := min(1000, b.N-done)
					begin := time.Now()
					for range batch {
						got, err := a.Allocate(1+rnd.Uint64N(8), hints[kind](rnd, end))
						if err != nil {
							b.Fatal(err)
						}
						end = got[0].End()
						taken = append(taken, got...)
					}
					took += time.Since(begin)
					for _, e := range taken {
						if err := a.Free(e); err != nil {
							b.Fatal(err)
						}
					}
					taken = taken[:0]
					done += batch
				}
				b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/alloc")
				if got := a.Stats().FreeExtents; got != uint64(n) {
					b.Fatalf("%d free extents, should be %d", got, n)
				}
			})
		}
	}
}

// BenchmarkParallel is Allocate and Free of 8 blocks by many goroutines: each a growing file that is dropped at 1 MiB.
func BenchmarkParallel(b *testing.B) {
	a := fragmented(b, fourTiB, 1_000_000)
	b.RunParallel(func(pb *testing.PB) {
		var mine []Extent
		hint := uint64(NoHint)
		for pb.Next() {
			got, err := a.Allocate(8, hint)
			if err != nil {
				b.Error(err)
				return
			}
			mine = append(mine, got...)
			hint = got[len(got)-1].End()
			if len(mine) >= 32 {
				for _, e := range mine {
					if err := a.Free(e); err != nil {
						b.Error(err)
					}
				}
				mine, hint = mine[:0], NoHint
			}
		}
	})
}

// BenchmarkLoadBitmap loads an almost empty image of 1 TiB.
func BenchmarkLoadBitmap(b *testing.B) {
	const total = 1 << 28
	s := make(store, Pages(total))
	if err := fragmented(b, total, 1000).WriteBitmap(s.write); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := LoadBitmap(total, 1, s.read); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteBitmap writes the bitmap of 1 TiB, whole and after one change.
func BenchmarkWriteBitmap(b *testing.B) {
	a := fragmented(b, 1<<28, 1_000_000)
	discard := func(uint64, []byte) error { return nil }
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			if err := a.WriteBitmap(discard); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("changes", func(b *testing.B) {
		for b.Loop() {
			got, err := a.Allocate(1, NoHint)
			if err != nil {
				b.Fatal(err)
			}
			if err := a.Free(got[0]); err != nil {
				b.Fatal(err)
			}
			if err := a.WriteChanges(discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkBuild rebuilds a 4 TiB image from 10 million extents in random order.
func BenchmarkBuild(b *testing.B) {
	const n = 10_000_000
	stride := uint64(fourTiB / n)
	order := rand.New(rand.NewPCG(5, 6)).Perm(n)
	b.ResetTimer()
	for range b.N {
		before := heap()
		builder := NewBuilder(fourTiB, 1)
		for _, i := range order {
			if err := builder.Use(Extent{uint64(i)*stride + 1, 1 + uint64(i)%(stride/2)}, i%10 == 0); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/1e6, "MB-bitmap")
		a, err := builder.Build()
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(a.Stats().FreeExtents), "extents")
	}
}

// heap returns the bytes in use after a collection.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Free space takes at most 64 bytes per free extent, just loaded and after long use. VDE_ALLOC_EXTENTS sets how many
// extents are tried.
func TestMemoryPerExtent(t *testing.T) {
	n := 200_000
	if s := os.Getenv("VDE_ALLOC_EXTENTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("VDE_ALLOC_EXTENTS is %q: %v", s, err)
		}
	}
	total := uint64(n) * 107
	before := heap()
	a := fragmented(t, total, n)
	report := func(when string) {
		extents := a.Stats().FreeExtents
		each := float64(heap()-before) / float64(extents)
		t.Logf("%s: %.1f bytes for each of %d free extents", when, each, extents)
		if each > 64 {
			t.Errorf("%s: %.1f bytes per free extent, should be at most 64", when, each)
		}
		runtime.KeepAlive(a)
	}
	report("loaded")

	rnd := rand.New(rand.NewPCG(8, 9))
	for range n / 2 { // extents go and come, and many change their length
		e, ok := a.tree.FindFreeExtent(1, rnd.Uint64N(total))
		if !ok {
			t.Fatal("nothing free")
		}
		if err := a.Reserve(e); err != nil {
			t.Fatal(err)
		}
		if rnd.IntN(2) == 0 {
			_ = a.Free(Extent{1 + rnd.Uint64N(total-1), 1}) // fails if it is free already
		}
	}
	report("after random use")

	for i, e := range slices.Collect(a.FreeExtents) { // the nodes empty out as far as they may
		if i%3 != 0 {
			if err := a.Reserve(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	report("after most were used up")
}
