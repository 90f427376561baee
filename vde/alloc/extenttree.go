package alloc

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/tidwall/btree"
)

// ExtentTree is a set of free blocks, held as maximal extents indexed by offset and by length. Every operation takes
// time logarithmic in the number of extents. It is not safe for concurrent use.
//
// Two B-trees hold it. byEnd has 16 bytes per extent, byLength 8, which with nodes at least half full and slices that
// have grown to at most twice their need makes about 50 bytes per extent at worst and about 35 after random use.
//
// Both keys contain the end of an extent and not its start, because allocation takes blocks from the front: what is
// left keeps its key in byEnd, and only the value is replaced.
//
// Invariants:
//   - extents are not empty, lie below limit, do not overlap and do not touch;
//   - byLength holds exactly the lengthKey of each extent in byEnd;
//   - blocks is the sum of the counts.
type ExtentTree struct {
	byEnd    *btree.Map[uint64, uint64]   // end (exclusive) → count
	byLength *btree.Map[uint64, struct{}] // lengthKey
	blocks   uint64
	limit    uint64 // all blocks are below

	// A lengthKey is the count (at most maxCount) above endBits bits of the end.
	endBits  uint
	maxCount uint64
}

// btreeDegree makes nodes of up to 127 keys: 2 KiB of extents. Larger nodes cost more to insert into, smaller
// ones more memory and misses.
const btreeDegree = 64

// NewExtentTree returns an empty tree for blocks below limit.
func NewExtentTree(limit uint64) *ExtentTree {
	endBits := uint(bits.Len64(limit))
	return &ExtentTree{
		byEnd:    btree.NewMap[uint64, uint64](btreeDegree),
		byLength: btree.NewMap[uint64, struct{}](btreeDegree),
		limit:    limit,
		endBits:  endBits,
		maxCount: 1<<(64-endBits) - 1,
	}
}

// lengthKey sorts extents by count and then by offset.
//
// A count and an end of any size do not fit into one word. As an image of 2^b blocks leaves 63-b bits for the count,
// counts are cut off at maxCount, and an extent of maxCount blocks or more is called huge: its count is looked up in
// byEnd. There is none in images below 2^32 blocks (16 TiB of 4 KiB), at most 2 there, 512 in images of 256 TiB.
func (t *ExtentTree) lengthKey(e Extent) uint64 {
	return min(e.Count, t.maxCount)<<t.endBits | e.End()
}

// byKey is the inverse of lengthKey.
func (t *ExtentTree) byKey(key uint64) Extent {
	count := key >> t.endBits
	end := key & (1<<t.endBits - 1)
	if count == t.maxCount {
		count, _ = t.byEnd.Get(end)
	}
	return Extent{end - count, count}
}

// Len returns the number of extents.
func (t *ExtentTree) Len() int { return t.byEnd.Len() }

// Blocks returns the number of free blocks.
func (t *ExtentTree) Blocks() uint64 { return t.blocks }

// Largest returns a longest extent; its Count is 0 if the tree is empty.
func (t *ExtentTree) Largest() Extent {
	key, _, ok := t.byLength.Max()
	if !ok {
		return Extent{}
	}
	largest := t.byKey(key)
	if largest.Count >= t.maxCount {
		t.huge(func(e Extent) {
			if e.Count > largest.Count {
				largest = e
			}
		})
	}
	return largest
}

// huge calls visit for each extent of at least maxCount blocks.
func (t *ExtentTree) huge(visit func(Extent)) {
	t.byLength.Ascend(t.maxCount<<t.endBits, func(key uint64, _ struct{}) bool {
		visit(t.byKey(key))
		return true
	})
}

// All calls yield for each extent in the order of offsets, until it returns false. The tree must not change meanwhile.
func (t *ExtentTree) All(yield func(Extent) bool) {
	t.byEnd.Scan(func(end, count uint64) bool { return yield(Extent{end - count, count}) })
}

// firstEndingAfter returns the first extent that is not wholly at or before block: the one that contains block, or
// else the next.
func (t *ExtentTree) firstEndingAfter(block uint64) (e Extent, ok bool) {
	if block >= t.limit {
		return Extent{}, false
	}
	t.byEnd.Ascend(block+1, func(end, count uint64) bool {
		e, ok = Extent{end - count, count}, true
		return false
	})
	return e, ok
}

// freeAt returns how many blocks are free from block on, without a gap.
func (t *ExtentTree) freeAt(block uint64) uint64 {
	e, ok := t.firstEndingAfter(block)
	if !ok || e.Start > block {
		return 0
	}
	return e.End() - block
}

// Insert adds e. It fails, and changes nothing, with ErrAlreadyFree if a block of e is in the tree already and with
// ErrOutOfRange if e passes the limit. Adding no blocks does nothing.
func (t *ExtentTree) Insert(e Extent) error {
	if !e.within(0, t.limit) {
		return fmt.Errorf("%v of %d: %w", e, t.limit, ErrOutOfRange)
	}
	if e.Count == 0 {
		return nil
	}
	next, haveNext := t.firstEndingAfter(e.Start)
	if haveNext && next.Start < e.End() {
		return fmt.Errorf("%v: %w", e.intersect(next), ErrAlreadyFree)
	}
	t.blocks += e.Count
	whole := e
	if count, ok := t.byEnd.Get(e.Start); ok {
		before := Extent{e.Start - count, count}
		t.byEnd.Delete(before.End())
		t.byLength.Delete(t.lengthKey(before))
		whole.Start, whole.Count = before.Start, whole.Count+before.Count
	}
	if haveNext && next.Start == e.End() {
		whole.Count += next.Count
		t.byEnd.Set(next.End(), whole.Count) // the key stays
		t.changeLength(next, whole)
		return nil
	}
	t.byEnd.Set(whole.End(), whole.Count)
	t.byLength.Set(t.lengthKey(whole), struct{}{})
	return nil
}

// Remove takes e out, which must be wholly in the tree: otherwise it fails, and changes nothing, with
// ErrNotFree, naming the first blocks that are missing. Removing no blocks does nothing.
func (t *ExtentTree) Remove(e Extent) error {
	if !e.within(0, t.limit) {
		return fmt.Errorf("%v of %d: %w", e, t.limit, ErrOutOfRange)
	}
	if e.Count == 0 {
		return nil
	}
	f, ok := t.firstEndingAfter(e.Start)
	switch {
	case !ok || f.Start >= e.End():
		return fmt.Errorf("%v: %w", e, ErrNotFree)
	case f.Start > e.Start:
		return fmt.Errorf("%v: %w", Extent{e.Start, f.Start - e.Start}, ErrNotFree)
	case f.End() < e.End():
		// What follows f is in use at least up to the next extent.
		missing := Extent{f.End(), e.End() - f.End()}
		if next, ok := t.firstEndingAfter(f.End()); ok && next.Start < e.End() {
			missing.Count = next.Start - f.End()
		}
		return fmt.Errorf("%v: %w", missing, ErrNotFree)
	}
	t.carve(f, e)
	return nil
}

// carve takes e out of f, an extent of the tree that contains it.
func (t *ExtentTree) carve(f, e Extent) {
	t.blocks -= e.Count
	left := Extent{f.Start, e.Start - f.Start}
	right := Extent{e.End(), f.End() - e.End()}
	if right.Count > 0 {
		t.byEnd.Set(right.End(), right.Count) // the key stays
		t.changeLength(f, right)
	} else {
		t.byEnd.Delete(f.End())
		t.byLength.Delete(t.lengthKey(f))
	}
	if left.Count > 0 {
		t.byEnd.Set(left.End(), left.Count)
		t.byLength.Set(t.lengthKey(left), struct{}{})
	}
}

// changeLength tells byLength that before has become after.
func (t *ExtentTree) changeLength(before, after Extent) {
	from, to := t.lengthKey(before), t.lengthKey(after)
	if from == to {
		return // huge before and after
	}
	t.byLength.Delete(from)
	t.byLength.Set(to, struct{}{})
}

// neighbours is how many extents on each side of a hint are looked at before the whole image is.
const neighbours = 8

// FindFreeExtent returns count contiguous free blocks, without taking them out, or false if no extent has that many.
// They are, in this order of preference:
//
//  1. those that begin at hint;
//  2. the front of the best fitting among the extents around hint, a few to each side, so that what belongs together
//     lies together and holes are filled;
//  3. the front of the best fitting of all extents, the one nearest to hint if several have the same length.
func (t *ExtentTree) FindFreeExtent(count, hint uint64) (Extent, bool) {
	if count == 0 || count > t.limit {
		return Extent{}, false
	}
	possible := hint < t.limit
	hint = min(hint, t.limit-1)
	best := fit{count: count, hint: hint}
	atHint := false
	seen := 0
	t.byEnd.Ascend(hint+1, func(end, n uint64) bool {
		if start := end - n; possible && start <= hint && end-hint >= count {
			atHint = true
			return false
		}
		best.consider(Extent{end - n, n})
		seen++
		return seen < neighbours
	})
	if atHint {
		return Extent{hint, count}, true
	}
	seen = 0
	t.byEnd.Descend(hint, func(end, n uint64) bool {
		best.consider(Extent{end - n, n})
		seen++
		return seen < neighbours
	})
	if !best.ok {
		t.bestFit(&best)
	}
	if !best.ok {
		return Extent{}, false
	}
	return Extent{best.extent.Start, count}, true
}

// bestFit considers the extents of the shortest length that is enough.
func (t *ExtentTree) bestFit(best *fit) {
	length := min(best.count, t.maxCount)
	if length < t.maxCount {
		t.nearestOfLength(length, best)
		if best.ok {
			return
		}
		key, ok := t.firstKey((length + 1) << t.endBits)
		if !ok {
			return
		}
		if length = key >> t.endBits; length < t.maxCount {
			t.nearestOfLength(length, best)
			return
		}
	}
	t.huge(best.consider)
}

// nearestOfLength considers the next extents of a length, below maxCount, on each side of the hint.
func (t *ExtentTree) nearestOfLength(length uint64, best *fit) {
	from := length<<t.endBits | best.hint
	if key, ok := t.firstKey(from); ok && key>>t.endBits == length {
		best.consider(t.byKey(key))
	}
	if key, ok := t.lastKey(from); ok && key>>t.endBits == length {
		best.consider(t.byKey(key))
	}
}

// firstKey returns the first key of byLength at or behind from.
func (t *ExtentTree) firstKey(from uint64) (key uint64, ok bool) {
	t.byLength.Ascend(from, func(k uint64, _ struct{}) bool {
		key, ok = k, true
		return false
	})
	return key, ok
}

// lastKey returns the last key of byLength at or before from.
func (t *ExtentTree) lastKey(from uint64) (key uint64, ok bool) {
	t.byLength.Descend(from, func(k uint64, _ struct{}) bool {
		key, ok = k, true
		return false
	})
	return key, ok
}

// fit is a search for the best fitting extent: the shortest with at least count blocks, then the nearest to hint, then
// the lower one.
type fit struct {
	count, hint uint64
	extent      Extent // the best so far, if ok
	ok          bool
}

func (f *fit) consider(e Extent) {
	if e.Count >= f.count && (!f.ok || f.compare(e, f.extent) < 0) {
		f.extent, f.ok = e, true
	}
}

func (f *fit) compare(a, b Extent) int {
	return cmp.Or(
		cmp.Compare(a.Count, b.Count),
		cmp.Compare(f.distance(a), f.distance(b)),
		cmp.Compare(a.Start, b.Start),
	)
}

func (f *fit) distance(e Extent) uint64 { return max(e.Start, f.hint) - min(e.Start, f.hint) }

// snapshot returns a copy that may be read while t changes. Taking it costs nothing; afterwards each node that t
// changes is copied once.
func (t *ExtentTree) snapshot() *ExtentTree {
	s := *t
	s.byEnd = t.byEnd.Copy()
	s.byLength = t.byLength.Copy()
	return &s
}

// treeLoader fills an empty tree from extents in rising order, faster than Insert.
type treeLoader struct {
	tree *ExtentTree
	keys []uint64 // lengthKeys, unsorted
}

// add appends e, which must lie behind everything added before without touching it, and below the limit.
func (l *treeLoader) add(e Extent) {
	l.tree.byEnd.Load(e.End(), e.Count)
	l.tree.blocks += e.Count
	l.keys = append(l.keys, l.tree.lengthKey(e))
}

func (l *treeLoader) finish() {
	slices.Sort(l.keys)
	for _, key := range l.keys {
		l.tree.byLength.Load(key, struct{}{})
	}
	l.keys = nil
}

// check returns an error wrapping ErrInvariant if an invariant of the type does not hold, or a block below
// first is free.
func (t *ExtentTree) check(first uint64) error {
	var err error
	var sum, end uint64
	started := false
	t.All(func(e Extent) bool {
		switch {
		case e.Count == 0 || !e.within(first, t.limit):
			err = fmt.Errorf("%w: free extent of %v, usable are %d to %d", ErrInvariant, e, first, t.limit-1)
		case started && e.Start < end:
			err = fmt.Errorf("%w: free extent of %v overlaps the one that ends before %d", ErrInvariant, e, end)
		case started && e.Start == end:
			err = fmt.Errorf("%w: free extent of %v touches the one before it", ErrInvariant, e)
		}
		if _, ok := t.byLength.Get(t.lengthKey(e)); !ok {
			err = fmt.Errorf("%w: free extent of %v is not in the index by length", ErrInvariant, e)
		}
		sum += e.Count
		started, end = true, e.End()
		return err == nil
	})
	switch {
	case err != nil:
		return err
	case t.byLength.Len() != t.byEnd.Len():
		return fmt.Errorf("%w: %d free extents by offset, %d by length", ErrInvariant, t.byEnd.Len(), t.byLength.Len())
	case sum != t.blocks:
		return fmt.Errorf("%w: the free extents hold %d blocks, counted are %d", ErrInvariant, sum, t.blocks)
	}
	return nil
}
