package deflate

// piece is a part of a chunk: a block, or one that may be joined to its
// neighbour.
type piece struct {
	from, to int
	h        histogram
	bits     uint64 // as a block with codes of its own
}

const (
	// pieceSymbols is how many symbols a piece has at least before joining.
	pieceSymbols = 256
	// maxPieces bounds the work of joining, which grows with its square.
	maxPieces = 200
)

// split cuts the sequence of the chunk into blocks: into small pieces at first,
// then, as long as it saves bits, the two neighbours are joined that save most.
func (e *Encoder) split(c *chunk) []piece {
	e.pieces = cut(e.pieces[:0], c)
	ps := e.pieces
	for i := range ps {
		ps[i].bits = estimate(&ps[i].h)
	}
	// saved[i] is what joining ps[i] and ps[i+1] saves.
	saved := e.saved[:0]
	for i := 0; i+1 < len(ps); i++ {
		saved = append(saved, joinSaves(&ps[i], &ps[i+1]))
	}
	for len(saved) > 0 {
		best := 0
		for i, s := range saved {
			if s > saved[best] {
				best = i
			}
		}
		if saved[best] < 0 {
			break
		}
		a := &ps[best]
		a.bits += ps[best+1].bits - uint64(saved[best])
		a.to = ps[best+1].to
		a.h.add(&ps[best+1].h)
		a.h.literal[endOfBlock] = 1
		ps = append(ps[:best+1], ps[best+2:]...)
		saved = append(saved[:best], saved[best+1:]...)
		if best > 0 {
			saved[best-1] = joinSaves(&ps[best-1], a)
		}
		if best < len(saved) {
			saved[best] = joinSaves(a, &ps[best+1])
		}
	}
	e.saved = saved
	return ps
}

// cut gives the pieces of a sequence, all but the last one of the same
// number of symbols.
func cut(ps []piece, c *chunk) []piece {
	total := 0
	for i := 0; i < c.n; i += c.steps[i].length() {
		total++
	}
	each := max(pieceSymbols, (total+maxPieces-1)/maxPieces)
	for from := 0; from < c.n; {
		to, n := from, 0
		for to < c.n && n < each {
			to += c.steps[to].length()
			n++
		}
		ps = append(ps, piece{from: from, to: to})
		p := &ps[len(ps)-1]
		c.count(from, to, &p.h)
		from = to
	}
	return ps
}

func joinSaves(a, b *piece) int64 {
	h := a.h
	h.add(&b.h)
	h.literal[endOfBlock] = 1
	return int64(a.bits+b.bits) - int64(estimate(&h))
}

// estimate is about the length of a block with codes of its own: the share of
// information of its symbols, and what sending the codes takes.
func estimate(h *histogram) uint64 {
	body, literals := information(h.literal[:])
	more, distances := information(h.distance[:])
	extra := uint64(0)
	for s, n := range h.literal[firstLength:] {
		extra += uint64(n) * uint64(lengthExtra[s])
	}
	for s, n := range h.distance {
		extra += uint64(n) * uint64(distanceExtra[s])
	}
	return (body+more)>>costBits + extra + headerBase + headerPerSymbol*uint64(literals+distances)
}

// What a header takes, as measured: so many bits, and so many for each
// symbol that the block has.
const (
	headerBase      = 90
	headerPerSymbol = 4
)

// information gives the sum of n log2(total/n), scaled as costs are, and how
// many symbols have a count.
func information(count []uint32) (sum uint64, symbols int) {
	sh := newShares(count)
	var part uint64
	for _, n := range count {
		if n > 0 {
			symbols++
			part += uint64(n) * uint64(log2(n))
		}
	}
	if symbols == 0 {
		return 0, 0
	}
	for k, s := range sh.peeled[:sh.depth] {
		n := count[s]
		sum += uint64(n) * uint64(k+1) * costScale
		part -= uint64(n) * uint64(log2(n))
	}
	rest := uint64(sh.rest)
	if symbols == 1 {
		return rest * costScale, 1
	}
	return sum + rest*uint64(log2(sh.rest)+sh.depth*costScale) - part, symbols
}
