package deflate

// step is how a sequence goes on from a position: a match, of which only
// length and distance count, or literal.
type step = match

// literal is the step over one byte.
const literal step = 1

// chunk is a part of the input that is parsed as a whole.
type chunk struct {
	src   []byte // the whole input
	start int    // first position
	n     int    // number of positions

	matches []match
	first   []int32  // matches of position start+i are matches[first[i]:first[i+1]]
	steps   []step   // the sequence: steps[i] is valid where the sequence comes by
	cost    []uint32 // scratch of cheapest: from position i to the end of the range
}

// lazy makes a sequence without a cost model: the longest match, unless the
// next position has a longer one.
func (c *chunk) lazy() {
	for i := 0; i < c.n; {
		m, ok := c.longest(i)
		if ok && i+1 < c.n {
			if next, ok := c.longest(i + 1); ok && next.length() > m.length() {
				c.steps[i] = literal
				i++
				continue
			}
		}
		if !ok {
			c.steps[i] = literal
			i++
			continue
		}
		c.steps[i] = m
		i += m.length()
	}
}

// longest gives the longest match of a position inside the chunk. Matches of 3
// far away are left out: three literals are cheaper.
func (c *chunk) longest(i int) (match, bool) {
	ms := c.matches[c.first[i]:c.first[i+1]]
	if len(ms) == 0 {
		return 0, false
	}
	m := ms[len(ms)-1]
	if over := i + m.length() - c.n; over > 0 {
		if m.length()-over < minMatch {
			return 0, false
		}
		m -= match(over)
	}
	if m.length() == minMatch && m.distance() > 4096 {
		return 0, false
	}
	return m, true
}

// cheapest makes the sequence from one position to another that costs least,
// and gives its cost.
func (c *chunk) cheapest(from, to int, cs *costs) uint32 {
	// cost[i-from] is known from the end backwards; nothing is beyond to.
	n := to - from
	src, steps, first, matches := c.src[c.start+from:][:n], c.steps[from:to], c.first[from:to+1], c.matches
	cost := c.cost[:n+1]
	cost[n] = 0
	end := first[n]
	for i := n - 1; i >= 0; i-- {
		here := cost[i:]
		// The cost in the high half, the step in the low one: the smaller number is the better step, and is found without a branch.
		best := uint64(here[1]+cs.literal[src[i]])<<32 | uint64(literal)
		length := minMatch
		start := first[i]
		for _, m := range matches[start:end] {
			base := cs.distance[m.slot()]
			reach := min(m.length(), len(here)-1)
			if reach < length {
				continue
			}
			if m&whole != 0 {
				length = reach
			}
			tail := m &^ (whole | 0x1ff)
			prices := cs.length[length : reach+1]
			rest := here[length : reach+1]
			rest = rest[:len(prices)]
			for k, price := range prices {
				best = min(best, uint64(base+price+rest[k])<<32|uint64(tail|match(length+k)))
			}
			length = reach + 1
		}
		end = start
		here[0] = uint32(best >> 32)
		steps[i] = step(best)
	}
	return cost[0]
}

// count counts the symbols of the sequence from one position to another,
// with one end of block.
func (c *chunk) count(from, to int, h *histogram) {
	*h = histogram{}
	h.literal[endOfBlock] = 1
	for i := from; i < to; {
		s := c.steps[i]
		if s == literal {
			h.literal[c.src[c.start+i]]++
			i++
			continue
		}
		l := s.length()
		h.literal[firstLength+int(lengthSlot[l])]++
		h.distance[s.slot()]++
		i += l
	}
}
