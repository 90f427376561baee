package deflate

import "math/bits"

// histogram counts the symbols of a block.
type histogram struct {
	literal  [literalCodes]uint32 // literals, end of block, lengths
	distance [distanceCodes]uint32
}

func (h *histogram) add(o *histogram) {
	for i, n := range o.literal {
		h.literal[i] += n
	}
	for i, n := range o.distance {
		h.distance[i] += n
	}
}

// fewBytes is below how many different bytes literals are so cheap that no more should be made of them.
const fewBytes = 8

// mixLiterals adds half of the bytes of the data as if they were literals. A sequence that was made without costs has
// matches wherever there are any, so literals seem rare and dear, and the cheapest sequence by those costs has as many matches
// again: in data like noise it takes a dozen passes to leave that, where this takes one.
func (h *histogram) mixLiterals(data []byte) {
	var count [256]uint32
	for _, b := range data {
		count[b]++
	}
	different := 0
	for _, n := range count {
		if n > 0 {
			different++
		}
	}
	if different < fewBytes {
		return
	}
	for s := range h.literal {
		h.literal[s] *= 2
	}
	for s := range h.distance {
		h.distance[s] *= 2
	}
	for s, n := range count {
		h.literal[s] += n
	}
}

// costScale is the price of one bit in a cost model.
const costScale = 1 << costBits

const costBits = 8

// costs is what a symbol costs, its extra bits included, in 1/costScale bits.
type costs struct {
	literal  [256]uint32
	length   [maxMatch + 1]uint32
	distance [32]uint32 // by symbol; two more than there are, for the bounds check
}

// log2Table has costScale * log2(1 + i/256), rounded down.
var log2Table = makeLog2Table()

// makeLog2Table finds each logarithm bit by bit, by squaring, in integers:
// the same on every machine.
func makeLog2Table() (t [257]uint16) {
	for i := range t {
		x := uint64(256+i) << 22 // 1 + i/256 with 30 bits after the point
		var log uint16
		if x >= 2<<30 {
			t[i] = costScale
			continue
		}
		for range costBits {
			x = x * x >> 30
			log <<= 1
			if x >= 2<<30 {
				log |= 1
				x >>= 1
			}
		}
		t[i] = log
	}
	return t
}

// log2 gives costScale * log2(n) for n > 0, within 1/128 bit.
func log2(n uint32) uint32 {
	top := bits.Len32(n) - 1
	mantissa := uint64(n) << 32 >> top >> 24 & 0xff
	return uint32(top)<<costBits + uint32(log2Table[mantissa])
}

// shares tells how a prefix code divides the room: a symbol that makes up more
// than half of what is left gets the next bit alone, however frequent it
// is, and the others share what remains by their counts. Without this, a code in
// which one symbol prevails would seem to cost much less than it does.
type shares struct {
	peeled [maxPeeled]uint16 // symbols with a code of 1, 2, ... bits
	depth  uint32            // how many of them there are
	rest   uint32            // sum of the counts of all the others
}

const maxPeeled = 8

func newShares(count []uint32) (sh shares) {
	var first [maxPeeled]uint32 // the largest counts, falling
	var at [maxPeeled]uint16
	for s, n := range count {
		sh.rest += n
		if n <= first[maxPeeled-1] {
			continue
		}
		i := maxPeeled - 1
		for ; i > 0 && first[i-1] < n; i-- {
			first[i], at[i] = first[i-1], at[i-1]
		}
		first[i], at[i] = n, uint16(s)
	}
	for sh.depth < maxPeeled && 2*uint64(first[sh.depth]) > uint64(sh.rest) && first[sh.depth] < sh.rest {
		sh.peeled[sh.depth] = at[sh.depth]
		sh.rest -= first[sh.depth]
		sh.depth++
	}
	return sh
}

// entropyCosts sets each symbol's cost to its share of information.
func (c *costs) entropyCosts(h *histogram) {
	price := func(count []uint32, set func(symbol int, cost uint32)) {
		sh := newShares(count)
		// A symbol that did not come up costs as much as one that came up
		// half a time: dear, but not so dear that it is never tried again.
		top := log2(2*sh.rest+2) + sh.depth*costScale
		for s, n := range count {
			set(s, min(max(top-log2(max(2*n, 1)), costScale), 16*costScale))
		}
		for k, s := range sh.peeled[:sh.depth] {
			set(int(s), uint32(k+1)*costScale)
		}
	}
	var lengths [literalCodes - firstLength]uint32
	price(h.literal[:], func(s int, cost uint32) {
		switch {
		case s < endOfBlock:
			c.literal[s] = cost
		case s >= firstLength:
			s -= firstLength
			lengths[s] = cost + uint32(lengthExtra[s])*costScale
		}
	})
	for l := minMatch; l <= maxMatch; l++ {
		c.length[l] = lengths[lengthSlot[l]]
	}
	price(h.distance[:], func(s int, cost uint32) {
		c.distance[s] = cost + uint32(distanceExtra[s])*costScale
	})
}

// of gives the cost of a block's sequence, without its end.
func (c *costs) of(h *histogram) uint32 {
	var sum uint32
	for s, n := range h.literal[:endOfBlock] {
		sum += n * c.literal[s]
	}
	for s, n := range h.literal[firstLength:] {
		sum += n * c.length[lengthBase[s]]
	}
	for s, n := range h.distance {
		sum += n * c.distance[s]
	}
	return sum
}

// fixedCosts sets the costs of the fixed code (3.2.6).
func (c *costs) fixedCosts() {
	for s := range c.literal {
		c.literal[s] = uint32(fixedBits(s)) * costScale
	}
	for l := minMatch; l <= maxMatch; l++ {
		s := int(lengthSlot[l])
		c.length[l] = uint32(fixedBits(firstLength+s)+int(lengthExtra[s])) * costScale
	}
	for s := range distanceExtra {
		c.distance[s] = uint32(5+int(distanceExtra[s])) * costScale
	}
}

// fixedBits is the length of a symbol in the fixed code.
func fixedBits(s int) int {
	switch {
	case s < 144:
		return 8
	case s < 256:
		return 9
	case s < 280:
		return 7
	}
	return 8
}
