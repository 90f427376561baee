package vde

import (
	"math"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestLimits holds the division of the budget: it is kept, and small and huge ones give an engine that works.
func TestLimits(t *testing.T) {
	if limitsOf(0) != limitsOf(DefaultMemory) {
		t.Error("no budget is not the default one")
	}
	for _, memory := range []int64{1, 1 << 20, 64 << 20, 256 << 20, 1 << 30, 16 << 30, math.MaxInt64} {
		l := limitsOf(memory)
		sum := l.cache + int64(l.memTable) + l.unflushed + int64(l.overlayFull)*blockSize
		if memory >= 64<<20 && memory < math.MaxInt64 && sum > memory*2/3 {
			t.Errorf("a budget of %d: %d bytes in all: %+v", memory, sum, l)
		}
		if l.cache < 4<<20 || l.memTable < 1<<20 || l.memTable > 64<<20 || l.unflushed < 8*int64(l.memTable) || l.unflushed > 1<<30 ||
			l.overlayHigh < 1<<10 || l.overlayFull < 4*l.overlayHigh || l.overlayFull > 1<<18 {
			t.Errorf("a budget of %d: %+v", memory, l)
		}
	}
}

// TestBudgetArrives opens a store with the least budget: its metadata is flushed in small tables then.
func TestBudgetArrives(t *testing.T) {
	mem := vfs.NewMem()
	if _, err := Format("s", FormatOptions{Size: 4 << 20, FS: mem}); err != nil {
		t.Fatal(err)
	}
	for _, memory := range []int64{1, 256 << 20} {
		e, err := Open("s", OpenOptions{FS: mem, Memory: memory})
		if err != nil {
			t.Fatal(err)
		}
		if e.limits != limitsOf(memory) {
			t.Errorf("a budget of %d: %+v", memory, e.limits)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
