package main

import (
	"testing"
)

// TestMeasure runs everything once, with little of each.
func TestMeasure(t *testing.T) {
	m, err := measure(options{dir: t.TempDir(), rounds: 1, seconds: 0.05, sizeMB: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []rounds{m.one, m.oneAll, m.three, m.threeAll, m.bulk} {
		if got := r.result("", "", 0); got.Group <= 0 || got.Disk <= 0 || got.Share <= 0 {
			t.Errorf("%+v", got)
		}
	}
	for _, r := range []rounds{m.one, m.oneAll, m.three, m.threeAll} {
		got := r.result("", "", 0)
		b := got.batching
		if b == nil || b.Syncs <= 0 || b.Batch <= 0 || b.CPU <= 0 {
			t.Fatalf("%+v", b)
		}
		// Both shares are of the same proposals and the same disk.
		if want := got.Share * inFlight / b.Batch; b.Share < 0.99*want || b.Share > 1.01*want {
			t.Errorf("%.3f of the disk with %.1f in each sync, %.3f with %d", b.Share, b.Batch, got.Share, inFlight)
		}
	}
}
