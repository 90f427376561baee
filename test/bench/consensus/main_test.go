package main

import (
	"fmt"
	"testing"

	"vdefs/consensus"
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

// A leader that is lost in the middle of a measurement is replaced by the new one, which is measured.
func TestLeaderChanges(t *testing.T) {
	o := options{dir: t.TempDir(), seconds: 0.3}
	g, done, err := nodes(t.TempDir(), 3, consensus.SyncAlways)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	measured := 0
	b, err := g.led(o, func(o options, n node) (burst, error) {
		if measured++; measured > 1 {
			return proposals(o, n)
		}
		for _, other := range g {
			if other.Status().NodeID != n.Status().NodeID {
				if err := n.TransferLeader(t.Context(), other.Status().NodeID); err != nil {
					t.Error(err)
				}
				break
			}
		}
		return burst{}, fmt.Errorf("the proposal: %w", consensus.ErrUnknownOutcome)
	})
	if err != nil || b.proposals <= 0 || measured < 2 {
		t.Errorf("%+v after %d measurements: %v", b, measured, err)
	}
}
