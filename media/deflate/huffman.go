package deflate

import (
	"math/bits"
	"slices"
)

// codeLengths sets lengths to those of an optimal prefix code with at most
// limit bits. A code has at least two symbols: where fewer have a count, the
// first others join with one bit, since old decoders refuse a code that is not complete.
func codeLengths(lengths []uint8, count []uint32, limit int) {
	clear(lengths)
	var buf [fixedCodes]uint64
	leaves := buf[:0] // count above, symbol below
	for s, n := range count {
		if n > 0 {
			leaves = append(leaves, uint64(n)<<16|uint64(s))
		}
	}
	if len(leaves) < 2 {
		for s := 0; len(leaves) < 2; s++ {
			if count[s] == 0 {
				leaves = append(leaves, uint64(s))
			}
		}
		lengths[leaves[0]&0xffff], lengths[leaves[1]&0xffff] = 1, 1
		return
	}
	slices.Sort(leaves)
	if !unlimited(lengths, leaves, limit) {
		packageMerge(lengths, leaves, limit)
	}
}

// unlimited builds the Huffman code, and gives up when it is longer than limit.
func unlimited(lengths []uint8, leaves []uint64, limit int) bool {
	n := len(leaves)
	var weight [fixedCodes]uint64 // of inner nodes, in the order they are made: rising
	var parent [2 * fixedCodes]uint16
	leaf, inner := 0, 0
	for made := 0; made < n-1; made++ {
		var w uint64
		for range 2 {
			if inner >= made || leaf < n && leaves[leaf]>>16 <= weight[inner] {
				w += leaves[leaf] >> 16
				parent[leaf] = uint16(made)
				leaf++
			} else {
				w += weight[inner]
				parent[fixedCodes+inner] = uint16(made)
				inner++
			}
		}
		weight[made] = w
	}
	var depth [fixedCodes]uint8
	for i := n - 3; i >= 0; i-- {
		depth[i] = depth[parent[fixedCodes+i]] + 1
	}
	for i, l := range leaves {
		d := depth[parent[i]] + 1
		if int(d) > limit {
			clear(lengths)
			return false
		}
		lengths[l&0xffff] = d
	}
	return true
}

// packageMerge finds the best lengths under a limit (Larmore and
// Hirschberg): in limit rounds the cheapest pairs of the round before are
// merged with the leaves; a symbol's length is how often it is among the
// 2n-2 cheapest of the last round.
func packageMerge(lengths []uint8, leaves []uint64, limit int) {
	type item struct {
		weight      uint64
		leaf        int // index, or -1 for a package
		left, right int // of the round before
	}
	n := len(leaves)
	rounds := make([][]item, limit)
	for r := range rounds {
		var packages []item
		if r > 0 {
			prev := rounds[r-1]
			for i := 0; i+1 < len(prev); i += 2 {
				packages = append(packages, item{prev[i].weight + prev[i+1].weight, -1, i, i + 1})
			}
		}
		list := make([]item, 0, n+len(packages))
		for i := 0; i < n || len(packages) > 0; {
			if len(packages) == 0 || i < n && leaves[i]>>16 <= packages[0].weight {
				list = append(list, item{leaves[i] >> 16, i, 0, 0})
				i++
			} else {
				list = append(list, packages[0])
				packages = packages[1:]
			}
		}
		rounds[r] = list
	}
	var take func(round, i int)
	take = func(round, i int) {
		it := rounds[round][i]
		if it.leaf >= 0 {
			lengths[leaves[it.leaf]&0xffff]++
			return
		}
		take(round-1, it.left)
		take(round-1, it.right)
	}
	for i := range 2*n - 2 {
		take(limit-1, i)
	}
}

// canonical gives each symbol its code (3.2.2), with the bits reversed, since
// codes are sent from their highest bit.
func canonical(codes []uint16, lengths []uint8) {
	var number, next [maxCodeBits + 1]uint16
	for _, l := range lengths {
		number[l]++
	}
	number[0] = 0
	for l := 1; l <= maxCodeBits; l++ {
		next[l] = (next[l-1] + number[l-1]) << 1
	}
	for s, l := range lengths {
		if l > 0 {
			codes[s] = bits.Reverse16(next[l]) >> (16 - l)
			next[l]++
		}
	}
}
