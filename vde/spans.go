package vde

import (
	"github.com/tidwall/btree"
)

// span says that count blocks from "from" on are, somewhere else, those from "to" on.
type span struct{ from, count, to uint64 }

// spans is a set of spans that do not overlap in from. The zero value is empty. One goroutine at a time.
type spans struct{ tree *btree.BTreeG[span] }

// find tells where the first block is, if it is known, and for how many blocks from it on the answer continues.
func (s *spans) find(from, count uint64) (to uint64, found bool, n uint64) {
	n = count
	if s.tree == nil {
		return 0, false, n
	}
	s.tree.Descend(span{from: from}, func(x span) bool {
		if from < x.from+x.count {
			to, found, n = x.to+from-x.from, true, min(count, x.from+x.count-from)
		}
		return false
	})
	if found {
		return to, true, n
	}
	s.tree.Ascend(span{from: from}, func(x span) bool {
		n = min(count, x.from-from)
		return false
	})
	return 0, false, n
}

// add adds a span of blocks of which none is known.
func (s *spans) add(x span) {
	if s.tree == nil {
		s.tree = btree.NewBTreeGOptions(func(a, b span) bool { return a.from < b.from }, btree.Options{NoLocks: true})
	}
	s.tree.Descend(span{from: x.from}, func(p span) bool {
		if p.from+p.count == x.from && p.to+p.count == x.to {
			p.count += x.count
			x = p // replaces it: both begin with the same block
		}
		return false
	})
	s.tree.Set(x)
}
