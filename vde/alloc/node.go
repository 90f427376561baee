package alloc

// fanout is how many entries a node holds at most: as many as fit into 2 KiB.
const fanout = 126

// node is a node of the B-tree of an ExtentTree.
//
// The entries of a leaf are free extents. Those of an inner node stand for its children: Start is a lower bound of the
// starts in the child, Count the longest count in it. Key is short for Start and value for Count below.
//
// Invariants, for the entries [0, n):
//   - keys rise; a key of an inner node is not above any key in its child, the next one above all of them (though an
//     extent may reach past the next one);
//   - the value in an inner node is the highest value in its child;
//   - all leaves are equally far from the root, and all nodes but the root hold at least minFill entries.
type node struct {
	kids  *[fanout]*node // nil in a leaf; see innerNode
	n     int32
	epoch uint32 // the epoch of the tree in which the node was made or copied
	at    [fanout]Extent
}

// search returns the index of the last key that is not above key, -1 if there is none.
//
// It looks at one entry of each cache line and then at one line, instead of halving: as no load depends on another,
// those that miss the caches overlap, and those misses are what the time of a large tree is made of.
func (n *node) search(key uint64) int {
	const line = 4
	count := int(n.n)
	lines := 0
	for i := line - 1; i < count; i += line {
		if n.at[i].Start <= key {
			lines += line
		}
	}
	found := lines - 1
	for i := lines; i < min(lines+line, count); i++ {
		if n.at[i].Start <= key {
			found = i
		}
	}
	return found
}

// longest returns the highest value; 0 if there are no entries.
func (n *node) longest() (longest uint64) {
	for _, e := range n.at[:n.n] {
		longest = max(longest, e.Count)
	}
	return longest
}

// summary returns the entry that stands for n in its parent. n must not be empty.
func (n *node) summary() Extent { return Extent{n.at[0].Start, n.longest()} }

// insertAt makes room at index i for an entry. There must be some.
func (n *node) insertAt(i int, e Extent, kid *node) {
	count := int(n.n)
	copy(n.at[i+1:count+1], n.at[i:count])
	n.at[i] = e
	if n.kids != nil {
		copy(n.kids[i+1:count+1], n.kids[i:count])
		n.kids[i] = kid
	}
	n.n++
}

// removeAt closes the gap that the count entries from index i on leave.
func (n *node) removeAt(i, count int) {
	end := int(n.n)
	copy(n.at[i:], n.at[i+count:end])
	if n.kids != nil {
		copy(n.kids[i:], n.kids[i+count:end])
		clear(n.kids[end-count : end])
	}
	n.n -= int32(count)
}

// appendFrom appends count entries of another node, from index i on.
func (n *node) appendFrom(o *node, i, count int) {
	end := int(n.n)
	copy(n.at[end:], o.at[i:i+count])
	if n.kids != nil {
		copy(n.kids[end:], o.kids[i:i+count])
	}
	n.n += int32(count)
}

// prependFrom puts count entries of another node, from index i on, before all others.
func (n *node) prependFrom(o *node, i, count int) {
	end := int(n.n)
	copy(n.at[count:], n.at[:end])
	copy(n.at[:], o.at[i:i+count])
	if n.kids != nil {
		copy(n.kids[count:], n.kids[:end])
		copy(n.kids[:], o.kids[i:i+count])
	}
	n.n += int32(count)
}

// innerNode lays the kids of a node beside it, so that the way down meets one place in memory per level.
type innerNode struct {
	node
	array [fanout]*node
}

func (t *ExtentTree) newNode(leaf bool) *node {
	if leaf {
		return &node{epoch: t.epoch}
	}
	n := new(innerNode)
	n.epoch = t.epoch
	n.kids = &n.array
	return &n.node
}

// own returns the node at p for writing: a copy, put in its place, if a snapshot may be reading it.
func (t *ExtentTree) own(p **node) *node {
	n := *p
	if n.epoch == t.epoch {
		return n
	}
	c := t.newNode(n.kids == nil)
	c.appendFrom(n, 0, int(n.n))
	*p = c
	return c
}

func (t *ExtentTree) minFill() int { return t.width / 3 }

// put adds e, which must not begin where another extent does.
func (t *ExtentTree) put(e Extent) {
	root := t.own(&t.root)
	if right := t.putBelow(root, e); right != nil {
		t.root = t.newNode(false)
		t.root.insertAt(0, root.summary(), root)
		t.root.insertAt(1, right.summary(), right)
	}
	t.count++
}

// putBelow adds e below n and returns what was split off n to its right, if anything was.
func (t *ExtentTree) putBelow(n *node, e Extent) (right *node) {
	i := n.search(e.Start)
	if n.kids == nil {
		return t.insertEntry(n, i+1, e, nil)
	}
	if i < 0 {
		i, n.at[0].Start = 0, e.Start
	}
	kid := t.own(&n.kids[i])
	split := t.putBelow(kid, e)
	if split == nil {
		n.at[i].Count = max(n.at[i].Count, e.Count)
		return nil
	}
	n.at[i].Count = kid.longest()
	return t.insertEntry(n, i+1, split.summary(), split)
}

// insertEntry puts an entry at index i of n, or, if n is full, of one of its halves, and returns the right half.
func (t *ExtentTree) insertEntry(n *node, i int, e Extent, kid *node) (right *node) {
	if int(n.n) < t.width {
		n.insertAt(i, e, kid)
		return nil
	}
	half := int(n.n) / 2
	right = t.newNode(n.kids == nil)
	right.appendFrom(n, half, int(n.n)-half)
	n.removeAt(half, int(n.n)-half)
	if i <= half {
		n.insertAt(i, e, kid)
	} else {
		right.insertAt(i-half, e, kid)
	}
	return right
}

// drop takes e out, which must be an extent of the tree.
func (t *ExtentTree) drop(e Extent) {
	root := t.own(&t.root)
	t.dropBelow(root, e)
	if root.kids != nil && root.n == 1 {
		t.root = root.kids[0]
	}
	t.count--
}

func (t *ExtentTree) dropBelow(n *node, e Extent) {
	i := n.search(e.Start)
	if n.kids == nil {
		n.removeAt(i, 1)
		return
	}
	kid := t.own(&n.kids[i])
	t.dropBelow(kid, e)
	n.lengthChanged(i, e.Count, 0)
	if int(kid.n) < t.minFill() {
		t.refill(n, i)
	}
}

// refill joins the child i of n, which holds too few entries, with its neighbour, or evens them out if both do not fit
// well into one.
func (t *ExtentTree) refill(n *node, i int) {
	i = min(i, int(n.n)-2)
	left, right := t.own(&n.kids[i]), t.own(&n.kids[i+1])
	l, r := int(left.n), int(right.n)
	if l+r <= t.width*3/4 {
		left.appendFrom(right, 0, r)
		n.removeAt(i+1, 1)
		n.at[i].Count = left.longest()
		return
	}
	if half := (l + r) / 2; l < half {
		left.appendFrom(right, 0, half-l)
		right.removeAt(0, half-l)
	} else {
		right.prependFrom(left, half, l-half)
		left.removeAt(half, l-half)
	}
	n.at[i].Count, n.at[i+1] = left.longest(), right.summary()
}

// replace puts after in the place of before, which must be an extent of the tree. No other may begin between the starts
// of the two, and a search for the start of after must lead to the leaf of before.
func (t *ExtentTree) replace(before, after Extent) {
	t.replaceBelow(t.own(&t.root), before, after)
}

func (t *ExtentTree) replaceBelow(n *node, before, after Extent) {
	i := n.search(before.Start)
	if n.kids == nil {
		n.at[i] = after
		return
	}
	n.at[0].Start = min(n.at[0].Start, after.Start)
	t.replaceBelow(t.own(&n.kids[i]), before, after)
	n.lengthChanged(i, before.Count, after.Count)
}

// lengthChanged brings the value of child i up to date after a value below it was replaced.
func (n *node) lengthChanged(i int, before, after uint64) {
	if n.at[i].Count == before && after < before {
		n.at[i].Count = n.kids[i].longest()
	} else {
		n.at[i].Count = max(n.at[i].Count, after)
	}
}

// maxDepth is more than a tree can have: with at least 42 entries in a node it holds 10^16 extents.
const maxDepth = 10

// position is a place in a tree: the way from the root to an entry of a leaf. It is not valid after a change.
type position struct {
	way   [maxDepth]step
	depth int // of the leaf
}

type step struct {
	n *node
	i int
}

// seek returns the position of the last extent in its leaf that begins at or before block. Its index is -1 if the
// leaf has none: the extent may then be the last of the leaf before.
func (t *ExtentTree) seek(block uint64) (p position) {
	n := t.root
	for n.kids != nil {
		i := max(n.search(block), 0)
		p.way[p.depth] = step{n, i}
		p.depth++
		n = n.kids[i]
	}
	p.way[p.depth] = step{n, n.search(block)}
	return p
}

func (p *position) leaf() *step { return &p.way[p.depth] }

// valid reports whether p is at an extent.
func (p *position) valid() bool {
	s := p.leaf()
	return s.i >= 0 && s.i < int(s.n.n)
}

// extent returns the extent at p, which must be valid.
func (p *position) extent() Extent {
	s := p.leaf()
	return s.n.at[s.i]
}

// leads reports whether a search for block, which must not lie before p, leads to the leaf of p.
func (p *position) leads(block uint64) bool {
	for level := p.depth - 1; level >= 0; level-- {
		if s := p.way[level]; s.i+1 < int(s.n.n) {
			return block < s.n.at[s.i+1].Start
		}
	}
	return true
}

// next moves to the following extent, or returns false if there is none.
func (p *position) next() bool {
	level := p.depth
	for ; level >= 0; level-- {
		if s := &p.way[level]; s.i+1 < int(s.n.n) {
			s.i++
			break
		}
	}
	if level < 0 {
		return false
	}
	for ; level < p.depth; level++ {
		s := p.way[level]
		p.way[level+1] = step{s.n.kids[s.i], 0}
	}
	return true
}

// prev moves to the preceding extent, or returns false if there is none.
func (p *position) prev() bool {
	level := p.depth
	for ; level >= 0; level-- {
		if s := &p.way[level]; s.i > 0 {
			s.i--
			break
		}
	}
	if level < 0 {
		return false
	}
	for ; level < p.depth; level++ {
		s := p.way[level]
		kid := s.n.kids[s.i]
		p.way[level+1] = step{kid, int(kid.n) - 1}
	}
	return true
}
