package alloc

import (
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

// BenchmarkAllocate is the time of one allocation of 1 to 8 blocks in a 4 TiB image with 10 thousand and with 10 million
// free extents, and the ratio of the two. Batches on both alternate, and medians of processor time are reported, so that
// the ratio means something on a busy machine too. Each batch is freed again outside the measured time, so the number of extents stays
// what it says, and comes after one that is not measured, so that the caches hold what they can.
func BenchmarkAllocate(b *testing.B) {
	const batch = 1000
	names := []string{"10k", "10M"}
	allocators := []*Allocator{fragmented(b, fourTiB, 10_000), fragmented(b, fourTiB, 10_000_000)}
	for _, kind := range []struct {
		name string
		hint func(r *rand.Rand, end uint64) uint64
	}{
		{"random", func(r *rand.Rand, _ uint64) uint64 { return r.Uint64N(fourTiB) }},
		{"append", func(_ *rand.Rand, end uint64) uint64 { return end }},
		{"none", func(*rand.Rand, uint64) uint64 { return NoHint }},
	} {
		b.Run("hint="+kind.name, func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(3, 4))
			taken := make([]Extent, 0, 2*batch)
			run := func(a *Allocator) time.Duration {
				end := rnd.Uint64N(fourTiB)
				begin := threadTime(b)
				for range batch {
					got, err := a.Allocate(1+rnd.Uint64N(8), kind.hint(rnd, end))
					if err != nil {
						b.Fatal(err)
					}
					end = got[0].End()
					taken = append(taken, got...)
				}
				took := threadTime(b) - begin
				for _, e := range taken {
					if err := a.Free(e); err != nil {
						b.Fatal(err)
					}
				}
				taken = taken[:0]
				return took
			}
			took := make([][]time.Duration, len(allocators))
			runtime.LockOSThread()
			for range max(b.N/batch, 1) {
				for i, a := range allocators {
					run(a)
					took[i] = append(took[i], run(a))
				}
			}
			runtime.UnlockOSThread()
			var medians []float64
			for i, a := range allocators {
				if got, want := a.Stats().FreeExtents, []uint64{10_000, 10_000_000}[i]; got != want {
					b.Fatalf("%d free extents, should be %d", got, want)
				}
				slices.Sort(took[i])
				medians = append(medians, float64(took[i][len(took[i])/2].Nanoseconds())/batch)
				b.ReportMetric(medians[i], "ns/alloc-"+names[i])
			}
			b.ReportMetric(medians[1]/medians[0], "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// threadTime returns the processor time that the thread has used.
func threadTime(tb testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
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
	n := 40_000
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
