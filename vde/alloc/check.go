package alloc

import "fmt"

// check returns an error wrapping ErrInvariant if an invariant of the tree or a node does not hold, or a block below
// first is free.
func (t *ExtentTree) check(first uint64) error {
	c := treeCheck{tree: t, first: first, leafDepth: -1}
	if err := c.node(t.root, 0, 0, ^uint64(0)); err != nil {
		return fmt.Errorf("%w: %w", ErrInvariant, err)
	}
	switch {
	case c.count != t.count:
		return fmt.Errorf("%w: there are %d free extents, counted are %d", ErrInvariant, c.count, t.count)
	case c.blocks != t.blocks:
		return fmt.Errorf("%w: the free extents hold %d blocks, counted are %d", ErrInvariant, c.blocks, t.blocks)
	}
	return nil
}

type treeCheck struct {
	tree      *ExtentTree
	first     uint64
	count     int
	blocks    uint64
	end       uint64 // of the last extent
	leafDepth int    // -1 before the first leaf
}

// node checks n, whose keys must lie in [low, high], and all below.
func (c *treeCheck) node(n *node, depth int, low, high uint64) error {
	count := int(n.n)
	if count > c.tree.width || depth > 0 && count < c.tree.minFill() || n.kids != nil && count < 2 {
		return fmt.Errorf("a node of the index has %d entries", count)
	}
	for _, e := range n.at[:count] {
		key := e.Start
		if key < low || key > high {
			return fmt.Errorf("%d in the index by offset is not in [%d, %d]", key, low, high)
		}
		low = key + 1
	}
	if n.kids == nil {
		if c.leafDepth < 0 {
			c.leafDepth = depth
		}
		if depth != c.leafDepth {
			return fmt.Errorf("a leaf of the index has depth %d, another %d", depth, c.leafDepth)
		}
		return c.leaf(n)
	}
	for i, kid := range n.kids[:count] {
		if longest := kid.longest(); longest != n.at[i].Count {
			return fmt.Errorf("the index by length has %d blocks below %d, there are %d", n.at[i].Count, n.at[i].Start, longest)
		}
		to := high
		if i+1 < count {
			to = n.at[i+1].Start - 1
		}
		if err := c.node(kid, depth+1, n.at[i].Start, to); err != nil {
			return err
		}
	}
	return nil
}

func (c *treeCheck) leaf(n *node) error {
	for _, e := range n.at[:n.n] {
		switch {
		case e.Count == 0 || !e.within(c.first, c.tree.limit):
			return fmt.Errorf("%v free at %d, but usable are %d to %d", e, e.Start, c.first, c.tree.limit-1)
		case c.count > 0 && e.Start < c.end:
			return fmt.Errorf("free %v overlap those that end before %d", e, c.end)
		case c.count > 0 && e.Start == c.end:
			return fmt.Errorf("free %v touch those before them", e)
		}
		c.count++
		c.blocks += e.Count
		c.end = e.End()
	}
	return nil
}
