package main

import (
	"testing"
)

// TestMeasure runs everything once, with little of each.
func TestMeasure(t *testing.T) {
	one, three, bulk, err := measure(options{dir: t.TempDir(), rounds: 1, seconds: 0.05, sizeMB: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []rounds{one, three, bulk} {
		if got := r.result("", "", 0); got.Group <= 0 || got.Disk <= 0 || got.Share <= 0 {
			t.Errorf("%+v", got)
		}
	}
}
