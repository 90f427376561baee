package rangelock

import (
	"context"
	"fmt"
	"sync"
	"testing"
)

// benchmarkWriters lets a number of goroutines share b.N turns of taking and giving back an exclusive range.
func benchmarkWriters(b *testing.B, writers int, start func(writer, turn int) uint64) {
	var l BlockRangeLock
	ctx := context.Background()
	b.ReportAllocs()
	var wg sync.WaitGroup
	for w := range writers {
		turns := b.N / writers
		if w < b.N%writers {
			turns++
		}
		wg.Go(func() {
			for i := range turns {
				t, err := l.Acquire(ctx, start(w, i), 8, Exclusive)
				if err != nil {
					b.Error(err)
					return
				}
				t.Release()
			}
		})
	}
	wg.Wait()
}

func BenchmarkAcquireRelease(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("disjoint/writers=%d", writers), func(b *testing.B) {
			benchmarkWriters(b, writers, func(w, i int) uint64 { return uint64(w)<<32 + uint64(i)*8 })
		})
		b.Run(fmt.Sprintf("same/writers=%d", writers), func(b *testing.B) {
			benchmarkWriters(b, writers, func(int, int) uint64 { return 0 })
		})
	}
}

// BenchmarkHeld is the cost of one more range, disjoint from the n that are held.
func BenchmarkHeld(b *testing.B) {
	for _, held := range []int{0, 10, 1_000, 100_000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			var l BlockRangeLock
			for i := range held {
				l.Enqueue(uint64(i)*16, 8, Exclusive)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				at := uint64(i) * 2654435761 % uint64(max(held, 1))
				t := l.Enqueue(at*16+8, 8, Exclusive)
				if !t.Granted() {
					b.Fatal("a disjoint range had to wait")
				}
				t.Release()
			}
		})
	}
}

// BenchmarkSize is the cost of ranges of many blocks: the same as of one.
func BenchmarkSize(b *testing.B) {
	for _, count := range []uint64{1, 1 << 20, ToEnd} {
		b.Run(fmt.Sprintf("blocks=%d", count), func(b *testing.B) {
			var l BlockRangeLock
			for range b.N {
				l.Enqueue(0, count, Exclusive).Release()
			}
		})
	}
}
