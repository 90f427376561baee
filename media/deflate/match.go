package deflate

import (
	"encoding/binary"
	"math/bits"
)

// A match is the length in the low 9 bits, the distance less 1 in the next
// 15, and the symbol of the distance in the next 5.
type match uint32

func newMatch(length int, distance uint32) match {
	return match(uint32(length) | (distance-1)<<9 | distanceSlot(distance)<<24)
}

func (m match) length() int      { return int(m & 0x1ff) }
func (m match) distance() uint32 { return uint32(m)>>9&0x7fff + 1 }
func (m match) slot() uint32     { return uint32(m) >> 24 & 0x1f }

const (
	hash3Bits = 14
	hash4Bits = 15
)

// none is a position that is outside of every window.
const none = -1 << 30

// finder finds matches in the window before a position. Positions with the
// same 4-byte hash form a binary tree, sorted by the first bytes that follow,
// in which every node is nearer than its children: a search visits the nearest
// candidates first and leaves the tree with the new position as its root. With
// an order of 0 they form a chain instead, the nearest first.
type finder struct {
	src   []byte
	depth int // most nodes visited in a search
	nice  int // a match of this length ends a search
	// order is how many bytes the order of a tree takes into account: at most
	// nice. What is equal that far may stand in any order, and inserting a
	// position compares no further, which makes long runs cheap.
	order int

	last3 [1 << hash3Bits]int32 // the latest position of each 3-byte hash
	root  [1 << hash4Bits]int32 // the root of each tree, or the head of each chain
	// child has the smaller and the larger child of the position p at
	// 2*(p&windowMask), or the next of its chain at p&windowMask.
	child [2 * windowSize]int32
}

func (f *finder) reset(src []byte, p Params) {
	f.src, f.depth, f.nice, f.order = src, p.Depth, p.Nice, min(p.Order, p.Nice)
	for i := range f.last3 {
		f.last3[i] = none
	}
	for i := range f.root {
		f.root[i] = none
	}
}

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
	h := &f.last3[next<<8*0x9e3779b1>>(32-hash3Bits)]
	if p := int(*h); i-p <= windowSize && binary.LittleEndian.Uint32(f.src[p:])<<8 == next<<8 {
		out = append(out, newMatch(minMatch, uint32(i-p)))
		best = minMatch
	}
	*h = int32(i)
	if f.order == 0 {
		return f.follow(i, limit, next, best, out)
	}
	return f.search(i, limit, min(f.nice, limit), next, best, out)
}

// skip inserts position i without looking for its matches.
func (f *finder) skip(i int) {
	limit := min(maxMatch, len(f.src)-i)
	if limit < 4 {
		return
	}
	next := binary.LittleEndian.Uint32(f.src[i:])
	f.last3[next<<8*0x9e3779b1>>(32-hash3Bits)] = int32(i)
	if f.order == 0 {
		r := &f.root[next*0x9e3779b1>>(32-hash4Bits)]
		f.child[i&windowMask] = *r
		*r = int32(i)
		return
	}
	limit = min(limit, f.order)
	f.search(i, limit, limit, next, maxMatch, nil)
}

// goesOn tells whether from position i on as many bytes as a match can have are
// those that stand distance in front of them.
func (f *finder) goesOn(i int, distance uint32) bool {
	return i+maxMatch <= len(f.src) && extend(f.src, i-int(distance), i, 0, maxMatch) == maxMatch
}

// follow walks along the chain of position i, which becomes its new head, and
// appends the matches longer than best.
func (f *finder) follow(i, limit int, next uint32, best int, out []match) []match {
	src := f.src
	r := &f.root[next*0x9e3779b1>>(32-hash4Bits)]
	p := int(*r)
	f.child[i&windowMask] = int32(p)
	*r = int32(i)
	for depth := f.depth; i-p < windowSize && depth > 0 && best < limit; depth-- {
		if src[p+best] == src[i+best] && binary.LittleEndian.Uint32(src[p:]) == next {
			if n := extend(src, p, i, 4, limit); n > best {
				best = n
				out = append(out, newMatch(n, uint32(i-p)))
				if n >= f.nice {
					break
				}
			}
		}
		p = int(f.child[p&windowMask])
	}
	return out
}

// search walks down the tree of position i, which becomes its new root, and
// appends the matches longer than best. It compares limit bytes at most and ends at
// a match of nice or more.
func (f *finder) search(i, limit, nice int, next uint32, best int, out []match) []match {
	src := f.src
	r := &f.root[next*0x9e3779b1>>(32-hash4Bits)]
	p := int(*r)
	*r = int32(i)
	// Where the next smaller and the next larger position found belong, and how
	// many bytes the last ones of each side share with position i.
	smaller, larger := 2*(i&windowMask), 2*(i&windowMask)+1
	sharedSmaller, sharedLarger := 0, 0
	for depth := f.depth; i-p < windowSize && depth > 0; depth-- {
		// All between the two is sorted, so it shares what both share.
		n := min(sharedSmaller, sharedLarger, f.order)
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
