package consensus

import (
	"fmt"
	"testing"
)

// The vectors that go with the paper's algorithm: those of the reference
// implementation, as published with its ports.
func TestJumpHashVectors(t *testing.T) {
	for _, v := range []struct {
		key     uint64
		buckets int
		want    int
	}{
		{1, 1, 0}, {42, 57, 43}, {0xDEAD10CC, 1, 0}, {0xDEAD10CC, 666, 361}, {256, 1024, 520},
		{0, 1, 0}, {10863919174838991, 11, 6}, {2016238256797177309, 11, 3}, {1673758223894951030, 11, 5},
	} {
		if got := JumpHash(v.key, v.buckets); got != v.want {
			t.Errorf("JumpHash(%#x, %d) = %d, want %d", v.key, v.buckets, got, v.want)
		}
	}
}

func TestAddingAGroupMovesItsShareOnly(t *testing.T) {
	const paths = 20000
	table, err := NewRoutingTable("default")
	if err != nil {
		t.Fatal(err)
	}
	for n := 2; n <= 8; n++ {
		added := GroupID(fmt.Sprintf("g%d", n))
		bigger, err := table.Append(added)
		if err != nil {
			t.Fatal(err)
		}
		moved := 0
		for i := range paths {
			p := fmt.Sprintf("/dir%d/file%d", i%97, i)
			was, is := table.Route(p), bigger.Route(p)
			if was != is {
				moved++
				if is != added {
					t.Fatalf("%s moved from %s to %s, which is not the new group", p, was, is)
				}
			}
		}
		if share := float64(moved) / paths * float64(n); share < 0.9 || share > 1.1 {
			t.Errorf("adding group %d moved %.3f of its share", n, share)
		}
		table = bigger
	}
	removed, err := table.Replace("g3", "g4")
	if err != nil {
		t.Fatal(err)
	}
	for i := range paths {
		p := fmt.Sprintf("/dir%d/file%d", i%97, i)
		if was, is := table.Route(p), removed.Route(p); was != is && was != "g3" {
			t.Fatalf("%s moved from %s to %s when g3 was removed", p, was, is)
		}
	}
	if _, err := NewRoutingTable(); err == nil {
		t.Error("an empty table was accepted")
	}
}
