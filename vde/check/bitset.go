package check

import "math/bits"

// bitsPerPage is the number of bits of one page of a bitset: as many as a block of the bitmap region holds.
const bitsPerPage = 4096 * 8

// bitset is a set of block numbers below a limit; pages in which nothing is set take no memory.
type bitset []*[bitsPerPage / 64]uint64

func newBitset(limit uint64) bitset { return make(bitset, (limit+bitsPerPage-1)/bitsPerPage) }

// words calls f for the words that hold [start, start+count), with a mask of the bits meant. With alloc, pages are made;
// without, words of pages that are not there are skipped.
func (b bitset) words(start, count uint64, alloc bool, f func(word *uint64, mask, base uint64)) {
	for count > 0 {
		page, bit := start/bitsPerPage, start%bitsPerPage
		n := min(64-bit%64, count)
		if b[page] == nil {
			if !alloc {
				n = min(bitsPerPage-bit, count)
				start, count = start+n, count-n
				continue
			}
			b[page] = new([bitsPerPage / 64]uint64)
		}
		f(&b[page][bit/64], ^uint64(0)>>(64-n)<<(bit%64), start-bit%64)
		start, count = start+n, count-n
	}
}

// add sets the bits of a range and tells whether one of them was set before.
func (b bitset) add(start, count uint64) (twice bool) {
	b.words(start, count, true, func(w *uint64, mask, _ uint64) {
		twice = twice || *w&mask != 0
		*w |= mask
	})
	return twice
}

// runs yields the runs of set bits in a range.
func (b bitset) runs(start, count uint64, yield func(start, count uint64)) {
	var from, n uint64
	b.words(start, count, false, func(w *uint64, mask, base uint64) {
		for x := *w & mask; x != 0; {
			lo := uint64(bits.TrailingZeros64(x))
			k := uint64(bits.TrailingZeros64(^(x >> lo)))
			if n > 0 && from+n == base+lo {
				n += k
			} else {
				if n > 0 {
					yield(from, n)
				}
				from, n = base+lo, k
			}
			if lo+k >= 64 {
				break
			}
			x &^= (1<<k - 1) << lo
		}
	})
	if n > 0 {
		yield(from, n)
	}
}

// len counts the bits set.
func (b bitset) len() (n uint64) {
	for _, p := range b {
		if p != nil {
			for _, w := range p {
				n += uint64(bits.OnesCount64(w))
			}
		}
	}
	return n
}
