package rangelock

// tree is an interval tree of tickets: a treap ordered by (start, seq) in which each node also knows the highest last
// block below it. The tickets carry their own nodes, so it allocates nothing. It is guarded by the mu of its lock.
//
// A treap, because the usual tree of a file holds a handful of ranges, where it costs next to nothing, and it stays
// balanced when a file has thousands. The generic B-trees cannot carry the highest last block, without which ranges
// that start far to the left could not be found.
type tree struct {
	root *Ticket
}

// node is the part of a ticket that belongs to its tree.
//
// Invariants: every ticket in left is before, every one in right behind this one in the order of (start, seq); no
// ticket below has a higher priority; maxLast is the highest last of this ticket and all below.
type node struct {
	left, right *Ticket
	maxLast     uint64
}

// priority spreads the places in the queue evenly over all numbers (the finalizer of SplitMix64), which is all the
// randomness that a treap needs. seq is unique, so priorities are too: the function is a bijection.
func (t *Ticket) priority() uint64 {
	x := t.seq * 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (t *Ticket) before(u *Ticket) bool {
	return t.start < u.start || t.start == u.start && t.seq < u.seq
}

// fix computes maxLast again after a change of the children.
func (t *Ticket) fix() {
	m := t.last
	if c := t.node.left; c != nil {
		m = max(m, c.node.maxLast)
	}
	if c := t.node.right; c != nil {
		m = max(m, c.node.maxLast)
	}
	t.node.maxLast = m
}

func (tr *tree) insert(t *Ticket) { tr.root = insert(tr.root, t) }

func insert(root, t *Ticket) *Ticket {
	switch {
	case root == nil:
		t.node.maxLast = t.last
		return t
	case t.priority() > root.priority():
		t.node.left, t.node.right = split(root, t)
		t.fix()
		return t
	case t.before(root):
		root.node.left = insert(root.node.left, t)
	default:
		root.node.right = insert(root.node.right, t)
	}
	root.fix()
	return root
}

// split parts the tree below root into what is before t and what is behind it.
func split(root, t *Ticket) (before, behind *Ticket) {
	if root == nil {
		return nil, nil
	}
	if root.before(t) {
		root.node.right, behind = split(root.node.right, t)
		before = root
	} else {
		before, root.node.left = split(root.node.left, t)
		behind = root
	}
	root.fix()
	return before, behind
}

// remove takes t, which must be in the tree, out of it.
func (tr *tree) remove(t *Ticket) {
	tr.root = remove(tr.root, t)
	t.node = node{}
}

func remove(root, t *Ticket) *Ticket {
	switch {
	case root == t:
		return join(t.node.left, t.node.right)
	case t.before(root):
		root.node.left = remove(root.node.left, t)
	default:
		root.node.right = remove(root.node.right, t)
	}
	root.fix()
	return root
}

// join makes one tree of two, where all of a is before all of b.
func join(a, b *Ticket) *Ticket {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority() > b.priority():
		a.node.right = join(a.node.right, b)
		a.fix()
		return a
	default:
		b.node.left = join(a, b.node.left)
		b.fix()
		return b
	}
}

// countOverlaps returns how many tickets share a block with [start, last].
func (tr *tree) countOverlaps(start, last uint64) int { return countOverlaps(tr.root, start, last) }

func countOverlaps(n *Ticket, start, last uint64) int {
	count := 0
	for n != nil && n.node.maxLast >= start {
		count += countOverlaps(n.node.left, start, last)
		if n.start > last {
			break // and so does everything to the right
		}
		if n.last >= start {
			count++
		}
		n = n.node.right
	}
	return count
}

// unblockOverlaps tells every ticket that shares a block with t and came after it that t is gone. Those are the ones
// that counted t as a blocker, if they conflict with it: the caller picks the tree.
func (tr *tree) unblockOverlaps(t *Ticket) { unblockOverlaps(tr.root, t) }

func unblockOverlaps(n, t *Ticket) {
	for n != nil && n.node.maxLast >= t.start {
		unblockOverlaps(n.node.left, t)
		if n.start > t.last {
			break
		}
		if n.last >= t.start && n.seq > t.seq {
			n.unblockLocked()
		}
		n = n.node.right
	}
}
