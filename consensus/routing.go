package consensus

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// JumpHash is the jump consistent hash of Lamping and Veach (2014): it maps key
// to 0..buckets-1 such that going from n to n+1 buckets moves 1/(n+1) of the
// keys, all of them to the new one. buckets must be at least 1.
func JumpHash(key uint64, buckets int) int {
	b, j := int64(-1), int64(0)
	for j < int64(buckets) {
		b = j
		key = key*2862933555777941757 + 1
		j = int64(float64(b+1) * (float64(int64(1)<<31) / float64((key>>33)+1)))
	}
	return int(b)
}

// RoutingTable maps paths to groups. Its slots are numbered; the table only
// grows, at the end, and a removed group's slots are given to another: so a
// change moves the placements of the changed slots and nothing else.
//
// A table is immutable. It has at least one slot.
type RoutingTable struct {
	slots []GroupID
}

// NewRoutingTable returns the table with the given slots.
func NewRoutingTable(slots ...GroupID) (*RoutingTable, error) {
	if len(slots) == 0 {
		return nil, errors.New("consensus: a routing table has at least one slot")
	}
	for i, g := range slots {
		if err := g.Validate(); err != nil {
			return nil, fmt.Errorf("slot %d: %w", i, err)
		}
	}
	return &RoutingTable{slots: slices.Clone(slots)}, nil
}

// Slots returns a copy of the slots.
func (t *RoutingTable) Slots() []GroupID { return slices.Clone(t.slots) }

// Route returns the group of path.
func (t *RoutingTable) Route(path string) GroupID {
	return t.slots[JumpHash(xxhash.Sum64String(path), len(t.slots))]
}

// Append returns the table with one more slot, for g.
func (t *RoutingTable) Append(g GroupID) (*RoutingTable, error) {
	return NewRoutingTable(append(t.Slots(), g)...)
}

// Replace returns the table in which the slots of old belong to g.
func (t *RoutingTable) Replace(old, g GroupID) (*RoutingTable, error) {
	slots := t.Slots()
	for i := range slots {
		if slots[i] == old {
			slots[i] = g
		}
	}
	return NewRoutingTable(slots...)
}
