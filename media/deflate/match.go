package deflate

import (
	"encoding/binary"
	"math/bits"
)

// A match is the length in the low 9 bits, the distance less 1 in the next
// 15, the symbol of the distance in the next 5, and whether it is whole.
type match uint32

// whole marks a match that goes on from the position before: no shorter part of it is worth a try.
const whole match = 1 << 29

func newMatch(length int, distance uint32) match {
	return match(uint32(length) | (distance-1)<<9 | distanceSlot(distance)<<24)
}

func (m match) length() int      { return int(m & 0x1ff) }
func (m match) distance() uint32 { return uint32(m)>>9&0x7fff + 1 }
func (m match) slot() uint32     { return uint32(m) >> 24 & 0x1f }

const (
	hash3Bits = 14
	hash4Bits = 15
	treeBits  = 16
)

// none is a position that is outside of every window.
const none = -1 << 30

// treeBytes is how many bytes the positions of a tree share, up to the collisions of a hash. Of what shares
// less, the nearest position is known.
const treeBytes = 5

// finder finds matches in the window before a position. Positions with the
// same 5-byte hash form a binary tree, sorted by the first bytes that follow,
// in which every node is nearer than its children: a search visits the nearest
// candidates first and leaves the tree with the new position as its root. With
// an order of 0, positions with the same 4-byte hash form a chain instead, the nearest first.
type finder struct {
	src   []byte
	depth int // most nodes visited in a search
	mean  int // nodes of chains that each byte pays for
	paid  int // position up to which the bytes have paid
	spare int // nodes that are paid for and have not been visited
	nice  int // a match of this length ends a search
	// order is how many bytes the order of a tree takes into account: at most
	// nice. What is equal that far may stand in any order, and inserting a
	// position compares no further, which makes long runs cheap.
	order int

	// A position that is known to share so many bytes with the one that is looked at: where the match of the position
	// before goes on. 0 bytes: none is known.
	known, shared int

	shift3, shift4, shiftTree uint // of the hashes: small inputs use a part of the tables

	last3 [1 << hash3Bits]int32 // the latest position of each 3-byte hash
	last4 [1 << hash4Bits]int32 // the latest position of each 4-byte hash, or the head of each chain
	root  [1 << treeBits]int32  // the root of each tree
	// child has the smaller and the larger child of the position p at
	// 2*(p&windowMask), or the next of its chain at p&windowMask.
	child [2 * windowSize]int32
}

func (f *finder) reset(src []byte, p Params) {
	f.src, f.depth, f.nice, f.order = src, p.Depth, p.Nice, min(p.Order, p.Nice)
	f.known, f.shared = 0, 0
	f.mean, f.paid, f.spare = p.Mean, -1, 0
	if f.mean == 0 {
		f.mean = p.Depth
	}
	size := uint(bits.Len(uint(len(src)))) + 1 // so many bits that collisions are rare
	bits3, bits4, bitsTree := min(size, hash3Bits), min(size, hash4Bits), min(size, treeBits)
	f.shift3, f.shift4, f.shiftTree = 32-bits3, 32-bits4, 64-bitsTree
	vacate(f.last3[:1<<bits3])
	vacate(f.last4[:1<<bits4])
	if f.order > 0 {
		vacate(f.root[:1<<bitsTree])
	}
}

func vacate(table []int32) {
	for i := range table {
		table[i] = none
	}
}

const hashFactor = 0x9e3779b1

func (f *finder) head3(next uint32) *int32 {
	return &f.last3[next<<8*hashFactor>>(f.shift3&31)&(1<<hash3Bits-1)]
}

func (f *finder) head4(next uint32) *int32 {
	return &f.last4[next*hashFactor>>(f.shift4&31)&(1<<hash4Bits-1)]
}

func (f *finder) tree(next uint64) *int32 {
	return &f.root[next<<(64-8*treeBytes)*0x9e3779b97f4a7c15>>(f.shiftTree&63)&(1<<treeBits-1)]
}

// treeRest is how many bytes from a position on there must be for it to be put into a tree.
const treeRest = 8

// find inserts position i and appends its matches to out: rising lengths, each
// with the smallest distance found for it. Positions must come in order,
// each once, by find or skip.
func (f *finder) find(i int, out []match) []match {
	limit := min(maxMatch, len(f.src)-i)
	if limit < 4 {
		return out
	}
	next := binary.LittleEndian.Uint32(f.src[i:])
	best := minMatch - 1
	h := f.head3(next)
	if p := int(*h); i-p <= windowSize && binary.LittleEndian.Uint32(f.src[p:])<<8 == next<<8 {
		out = append(out, newMatch(minMatch, uint32(i-p)))
		best = minMatch
	}
	*h = int32(i)
	h = f.head4(next)
	p := int(*h)
	*h = int32(i)
	if f.order == 0 {
		f.child[i&windowMask] = int32(p)
		return f.follow(i, p, limit, next, best, out)
	}
	if i-p < windowSize && binary.LittleEndian.Uint32(f.src[p:]) == next {
		n := 4
		if p == f.known {
			n = max(n, min(f.shared, limit))
		}
		best = extend(f.src, p, i, n, limit)
		out = append(out, newMatch(best, uint32(i-p)))
		if best > f.shared {
			f.known, f.shared = p, best
		}
	}
	if limit < treeRest {
		return out
	}
	return f.search(i, limit, min(f.nice, limit), best, out)
}

// skip inserts the positions from one to another without looking for their matches, in front of chains for matches of 4 and more only. They are inside of m, a match of the position before the first.
func (f *finder) skip(from, to int, m match) {
	to = min(to, len(f.src)-3)
	if f.order == 0 {
		for i := from; i < to; i++ {
			h := f.head4(binary.LittleEndian.Uint32(f.src[i:]))
			f.child[i&windowMask] = *h
			*h = int32(i)
		}
		return
	}
	for i := from; i < to; i++ {
		next := binary.LittleEndian.Uint32(f.src[i:])
		*f.head3(next) = int32(i)
		*f.head4(next) = int32(i)
		if rest := len(f.src) - i; rest >= treeRest {
			limit := min(f.order, rest)
			f.known, f.shared = i-int(m.distance()), m.length()-(i-from+1)
			f.search(i, limit, limit, maxMatch, nil)
		}
	}
}

// goesOn tells whether from position i on as many bytes as a match can have are
// those that stand distance in front of them.
func (f *finder) goesOn(i int, distance uint32) bool {
	return i+maxMatch <= len(f.src) && extend(f.src, i-int(distance), i, 0, maxMatch) == maxMatch
}

// follow walks along the chain that begins with p and appends the matches of position i that are longer than best, and than 3.
func (f *finder) follow(i, p, limit int, next uint32, best int, out []match) []match {
	src := f.src
	best = max(best, minMatch)
	f.spare += f.mean * (i - f.paid)
	f.paid = i
	depth := min(f.depth, f.spare)
	f.spare -= depth
	last := binary.LittleEndian.Uint32(src[i+best-3:]) // the last bytes of a match that is longer than best
	for ; i-p < windowSize && depth > 0; depth-- {
		if binary.LittleEndian.Uint32(src[p+best-3:]) == last && binary.LittleEndian.Uint32(src[p:]) == next {
			if n := extend(src, p, i, 4, limit); n > best {
				best = n
				out = append(out, newMatch(n, uint32(i-p)))
				if n >= f.nice || n == limit {
					break
				}
				last = binary.LittleEndian.Uint32(src[i+best-3:])
			}
		}
		p = int(f.child[p&windowMask])
	}
	f.spare += depth // what was not needed
	return out
}

// search walks down the tree of position i, which becomes its new root, and
// appends the matches longer than best. It compares limit bytes at most and ends at
// a match of nice or more.
func (f *finder) search(i, limit, nice, best int, out []match) []match {
	src := f.src
	r := f.tree(binary.LittleEndian.Uint64(src[i:]))
	p := int(*r)
	*r = int32(i)
	known, shared := f.known, min(f.shared, limit)
	// Where the next smaller and the next larger position found belong, and how
	// many bytes the last ones of each side share with position i.
	smaller, larger := 2*(i&windowMask), 2*(i&windowMask)+1
	sharedSmaller, sharedLarger := 0, 0
	for depth := f.depth; i-p < windowSize && depth > 0; depth-- {
		// All between the two is sorted, so it shares what both share.
		n := min(sharedSmaller, sharedLarger, f.order)
		if p == known {
			n = max(n, shared)
		}
		n = extend(src, p, i, n, limit)
		if n > best {
			best = n
			out = append(out, newMatch(n, uint32(i-p)))
		}
		node := 2 * (p & windowMask)
		if n >= nice {
			// So alike that position i takes the place of p in the tree.
			f.child[smaller], f.child[larger] = f.child[node], f.child[node+1]
			return out
		}
		if src[p+n] < src[i+n] {
			f.child[smaller] = int32(p)
			smaller = node + 1
			p = int(f.child[smaller])
			sharedSmaller = n
		} else {
			f.child[larger] = int32(p)
			larger = node
			p = int(f.child[larger])
			sharedLarger = n
		}
	}
	f.child[smaller], f.child[larger] = none, none
	return out
}

// extend gives how many bytes, at most limit, positions p and i share, n of
// them known; p < i and i+limit is inside of src.
func extend(src []byte, p, i, n, limit int) int {
	for n+8 <= limit {
		x := binary.LittleEndian.Uint64(src[p+n:]) ^ binary.LittleEndian.Uint64(src[i+n:])
		if x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
		n += 8
	}
	for n < limit && src[p+n] == src[i+n] {
		n++
	}
	return n
}
