package alloc

import (
	"cmp"
	"fmt"
)

// ExtentTree is a set of free blocks, held as maximal extents indexed by offset and by length. Every operation takes
// time logarithmic in the number of extents. It is not safe for concurrent use.
//
// It is one B-tree by offset whose inner nodes also know the longest extent below each child, so that the nearest
// extent that is long enough is found from any place. Two B-trees, one by (offset) and one by (length, offset), were
// tried first: they find the best fit of the whole image instead of that of a neighbourhood, but a change of one extent
// then touches three far places in memory instead of one. With 10 million extents an allocation at a random place
// took 6.9 µs with them and takes 2.0 µs with this.
//
// A node has 2 KiB for at least 42 extents, usually 90: 50 bytes per extent at worst, usually 25.
//
// Invariants: extents are not empty, lie below limit, do not overlap and do not touch; count and blocks are their
// number and the sum of their counts; and those of node.
type ExtentTree struct {
	root   *node
	count  int
	blocks uint64
	limit  uint64 // all blocks are below
	width  int    // entries per node at most: fanout, in tests also fewer, but at least 6
	// epoch rises with each snapshot. Nodes of an older epoch may belong to one and are copied before they change.
	epoch uint32
}

// NewExtentTree returns an empty tree for blocks below limit.
func NewExtentTree(limit uint64) *ExtentTree {
	t := &ExtentTree{limit: limit, width: fanout}
	t.root = t.newNode(true)
	return t
}

// Len returns the number of extents.
func (t *ExtentTree) Len() int { return t.count }

// Blocks returns the number of free blocks.
func (t *ExtentTree) Blocks() uint64 { return t.blocks }

// Largest returns the longest extent, the first if there are several; its Count is 0 if the tree is empty.
func (t *ExtentTree) Largest() Extent {
	n, count := t.root, t.root.longest()
	for n.n > 0 {
		for i, e := range n.at[:n.n] {
			if e.Count != count {
				continue
			}
			if n.kids == nil {
				return e
			}
			n = n.kids[i]
			break
		}
	}
	return Extent{}
}

// All calls yield for each extent in the order of offsets, until it returns false. The tree must not change meanwhile.
func (t *ExtentTree) All(yield func(Extent) bool) { t.from(0)(yield) }

// from returns all extents, in order, that are not wholly before block.
func (t *ExtentTree) from(block uint64) func(yield func(Extent) bool) {
	return func(yield func(Extent) bool) {
		p, ok := t.firstEndingAfter(block)
		for ; ok; ok = p.next() {
			if !yield(p.extent()) {
				return
			}
		}
	}
}

// firstEndingAfter returns the position of the first extent that is not wholly before block: the one that contains
// block, or else the next.
func (t *ExtentTree) firstEndingAfter(block uint64) (p position, ok bool) {
	p, ok = t.lastStartingBy(block)
	if ok && p.extent().End() > block {
		return p, true
	}
	return p, p.next()
}

// lastStartingBy returns the position of the last extent that begins at or before block. If there is none, the position
// is the one before the first.
func (t *ExtentTree) lastStartingBy(block uint64) (p position, ok bool) {
	p = t.seek(block)
	return p, p.valid() || p.prev()
}

// freeAt returns how many blocks are free from block on, without a gap.
func (t *ExtentTree) freeAt(block uint64) uint64 {
	p, ok := t.lastStartingBy(block)
	if !ok || p.extent().End() <= block {
		return 0
	}
	return p.extent().End() - block
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
	here := t.seek(e.Start)
	before, after := here, here
	haveBefore, haveAfter := before.valid() || before.prev(), after.next()
	var common Extent
	if haveBefore {
		common = e.intersect(before.extent())
	}
	if haveAfter && common.Count == 0 {
		common = e.intersect(after.extent())
	}
	if common.Count > 0 {
		return fmt.Errorf("%v: %w", common, ErrAlreadyFree)
	}

	t.blocks += e.Count
	joinsBefore := haveBefore && before.extent().End() == e.Start
	joinsAfter := haveAfter && after.extent().Start == e.End()
	switch {
	case joinsBefore && joinsAfter:
		b, a := before.extent(), after.extent()
		t.replace(b, Extent{b.Start, b.Count + e.Count + a.Count})
		t.drop(a)
	case joinsBefore:
		b := before.extent()
		t.replace(b, Extent{b.Start, b.Count + e.Count})
	case joinsAfter && after.leaf().n == here.leaf().n:
		a := after.extent()
		t.replace(a, Extent{e.Start, e.Count + a.Count})
	case joinsAfter: // its new start belongs into another leaf
		a := after.extent()
		t.drop(a)
		t.put(Extent{e.Start, e.Count + a.Count})
	default:
		t.put(e)
	}
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
	p, ok := t.firstEndingAfter(e.Start)
	if !ok || p.extent().Start >= e.End() {
		return fmt.Errorf("%v: %w", e, ErrNotFree)
	}
	f := p.extent()
	if f.Start > e.Start {
		return fmt.Errorf("%v: %w", Extent{e.Start, f.Start - e.Start}, ErrNotFree)
	}
	if f.End() < e.End() {
		missing := Extent{f.End(), e.End() - f.End()} // up to the next extent at most
		if p.next() {
			missing.Count = min(missing.Count, p.extent().Start-f.End())
		}
		return fmt.Errorf("%v: %w", missing, ErrNotFree)
	}

	t.blocks -= e.Count
	left := Extent{f.Start, e.Start - f.Start}
	right := Extent{e.End(), f.End() - e.End()}
	switch {
	case left.Count > 0 && right.Count > 0:
		t.replace(f, left)
		t.put(right)
	case left.Count > 0:
		t.replace(f, left)
	case right.Count > 0 && p.leads(right.Start):
		t.replace(f, right)
	case right.Count > 0: // its new start belongs into another leaf
		t.drop(f)
		t.put(right)
	default:
		t.drop(f)
	}
	return nil
}

// FindFreeExtent returns count contiguous free blocks, without taking them out, or false if no extent has that many.
// They are those that begin at hint, if they are free. Otherwise they are the front of the best fitting extent (the
// shortest that is long enough) among its neighbours: those of one node of the tree, which are usually about 90, and of
// the nodes that have an extent that is long enough, the one nearest to hint.
func (t *ExtentTree) FindFreeExtent(count, hint uint64) (Extent, bool) {
	if count == 0 {
		return Extent{}, false
	}
	p := t.seek(hint)
	around := p
	if around.valid() || around.prev() {
		if e := around.extent(); hint < e.End() && e.End()-hint >= count {
			return Extent{hint, count}, true
		}
	}
	leaf := p.leaf().n
	best, ok := leaf.bestFit(count, hint)
	if !ok {
		if leaf = p.nearestLeaf(count, hint); leaf == nil {
			return Extent{}, false
		}
		best, ok = leaf.bestFit(count, hint)
	}
	return Extent{best.Start, count}, ok
}

// nearestLeaf returns the leaf nearest to that of p, which has none, with an extent of at least count blocks; nil if
// there is none. Of one to the left and one to the right under the same node it takes the one nearer to hint.
func (p *position) nearestLeaf(count, hint uint64) *node {
	for level := p.depth - 1; level >= 0; level-- {
		n, i := p.way[level].n, p.way[level].i
		left, right := n.lastLong(i, count), n.firstLong(i+1, count)
		switch {
		case left < 0 && right < 0:
			continue
		case right < 0 || left >= 0 && hint-min(hint, n.at[left+1].Start) <= n.at[right].Start-min(hint, n.at[right].Start):
			// The blocks of the left child end at the next key.
			for n = n.kids[left]; n.kids != nil; {
				n = n.kids[n.lastLong(int(n.n), count)]
			}
		default:
			for n = n.kids[right]; n.kids != nil; {
				n = n.kids[n.firstLong(0, count)]
			}
		}
		return n
	}
	return nil
}

// firstLong returns the first index from i on with a value of at least count, -1 if there is none.
func (n *node) firstLong(i int, count uint64) int {
	for ; i < int(n.n); i++ {
		if n.at[i].Count >= count {
			return i
		}
	}
	return -1
}

// lastLong returns the last index before i with a value of at least count, -1 if there is none.
func (n *node) lastLong(i int, count uint64) int {
	for i--; i >= 0 && n.at[i].Count < count; i-- {
	}
	return i
}

// bestFit returns the shortest extent of a leaf with at least count blocks, of several the nearest to hint, of two
// the lower one.
func (n *node) bestFit(count, hint uint64) (best Extent, ok bool) {
	distance := func(e Extent) uint64 { return max(e.Start, hint) - min(e.Start, hint) }
	for _, e := range n.at[:n.n] {
		if e.Count < count || ok && e.Count > best.Count {
			continue
		}
		if !ok || cmp.Or(cmp.Compare(e.Count, best.Count), cmp.Compare(distance(e), distance(best))) < 0 {
			best, ok = e, true
		}
	}
	return best, ok
}

// snapshot returns a copy to be read, while t changes, by one goroutine or many. Taking it costs nothing; afterwards
// each node that t changes is copied once.
func (t *ExtentTree) snapshot() *ExtentTree {
	s := *t
	t.epoch++
	return &s
}

// treeLoader makes a tree from extents in rising order, faster and with fuller nodes than Insert.
type treeLoader struct {
	tree *ExtentTree
	// level has the finished nodes of the level being built, the last one still being filled.
	level []*node
}

// loadFill is how many entries a loader puts into a node, to leave some room for what comes.
func (l *treeLoader) loadFill() int { return l.tree.width * 7 / 8 }

// add appends e, which must lie behind everything added before without touching it, and below the limit.
func (l *treeLoader) add(e Extent) {
	last := len(l.level) - 1
	if last < 0 || int(l.level[last].n) >= l.loadFill() {
		l.level = append(l.level, l.tree.newNode(true))
		last++
	}
	leaf := l.level[last]
	leaf.insertAt(int(leaf.n), e, nil)
	l.tree.count++
	l.tree.blocks += e.Count
}

// finish puts the inner nodes on top.
func (l *treeLoader) finish() {
	if len(l.level) == 0 {
		return
	}
	if n := len(l.level); n > 1 { // the last leaf may hold too little
		left, right := l.level[n-2], l.level[n-1]
		if missing := int(left.n+right.n)/2 - int(right.n); missing > 0 {
			right.prependFrom(left, int(left.n)-missing, missing)
			left.removeAt(int(left.n)-missing, missing)
		}
	}
	for len(l.level) > 1 {
		parents := (len(l.level) + l.loadFill() - 1) / l.loadFill()
		next := make([]*node, parents)
		for i := range next {
			next[i] = l.tree.newNode(false)
			for _, kid := range l.level[i*len(l.level)/parents : (i+1)*len(l.level)/parents] {
				next[i].insertAt(int(next[i].n), kid.summary(), kid)
			}
		}
		l.level = next
	}
	l.tree.root = l.level[0]
	l.level = nil
}
