package deflate

import (
	"errors"
	"fmt"
	"math/bits"
)

// ErrTooLong is what Append gives when the output would pass the limit.
var ErrTooLong = errors.New("deflate: the output is longer than the limit")

// Params say how much work is done. Start from one of the sets below.
type Params struct {
	Depth int // most candidates looked at for a position: 1 or more
	// Mean is how many of them are looked at for a byte of the input on average, at most: what most positions leave, some may
	// take. 1 to Depth; 0 is Depth. For chains only.
	Mean int
	Nice int // a match of this length is taken without looking on: 4 to 258
	// Skip is how long a match must be for the positions inside of it not to be looked up: 4 to 258; 0 is Nice.
	Skip int
	// Order is how many bytes of a position the binary trees sort by, 4 to 258;
	// 0 takes chains instead of trees, which find less and are faster.
	Order int
	// Passes is how often at most the cheapest sequence of a block is
	// searched: 0 or more, after one search over the whole
	// chunk that tells where to split it. With 0 the sequence is that of a lazy search.
	Passes int
}

// Sets of parameters.
var (
	Swift    = Params{Depth: 8, Nice: 32, Passes: 1}
	Quick    = Params{Depth: 16, Mean: 8, Nice: 48, Passes: 1}
	Normal   = Params{Depth: 48, Nice: 150, Order: 150, Passes: 1}
	Thorough = Params{Depth: 24, Nice: 128, Order: 128, Passes: 2}
	// Sketch and Flat are for data that deflates to a small part: long matches cover most of it, and the few positions that are left may look
	// through long chains.
	Sketch = Params{Depth: 256, Mean: 4, Nice: maxMatch, Skip: 16}
	Flat   = Params{Depth: 4096, Mean: 8, Nice: maxMatch, Skip: 64, Passes: 1}
)

func (p Params) validate() error {
	if p.Depth < 1 || p.Mean < 0 || p.Mean > p.Depth || p.Nice < 4 || p.Nice > maxMatch || p.Skip != 0 && p.Skip < 4 || p.Skip > maxMatch ||
		p.Order != 0 && p.Order < 4 || p.Order > maxMatch || p.Passes < 0 {
		return fmt.Errorf("deflate: parameters %+v are out of range", p)
	}
	return nil
}

const (
	// chunkSize is how many bytes are parsed as a whole.
	chunkSize = 1 << 18
	// maxMatches bounds the matches that are kept; a chunk ends early when
	// it has more.
	maxMatches = 1 << 20
	// maxInput keeps positions and costs inside of 31 bits.
	maxInput = 1<<31 - 1<<20
)

// Encoder holds the memory that encoding takes, about 8 MiB for inputs
// larger than a chunk and less for smaller ones, to be used again. It is not safe
// for concurrent use. The zero value is ready.
type Encoder struct {
	finder finder
	chunk  chunk
	guess  costs // of the first search
	costs  costs
	pieces []piece
	saved  []int64
	block  dynamic
	h      histogram
	prior  histogram // of the chunk before; without counts at the start of a stream
}

// Append deflates src, appends it to dst as a whole stream and gives the
// result; dst must not overlap src. It fails with ErrTooLong as soon as more than limit bytes
// would be appended. stop is called from time to time; its error ends the work and
// is given back; nil means never. With any error the result is nil.
func (e *Encoder) Append(dst, src []byte, p Params, limit int, stop func() error) ([]byte, error) {
	return e.append(bitWriter{out: dst}, src, p, limit, stop)
}

// AppendMarked is Append with an empty block with fixed codes in front, which
// decoders skip: 10 bits that tell the stream from others.
func (e *Encoder) AppendMarked(dst, src []byte, p Params, limit int, stop func() error) ([]byte, error) {
	w := bitWriter{out: dst}
	w.header(typeFixed, false)
	w.put(0, 7) // the fixed code of the end of block
	return e.append(w, src, p, limit, stop)
}

// IsMarked tells whether a stream begins with an empty block with fixed codes.
func IsMarked(stream []byte) bool {
	return len(stream) >= 2 && stream[0] == typeFixed<<1 && stream[1]&3 == 0
}

func (e *Encoder) append(w bitWriter, src []byte, p Params, limit int, stop func() error) ([]byte, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	if len(src) > maxInput {
		return nil, fmt.Errorf("deflate: %d bytes of input are more than %d", len(src), maxInput)
	}
	base := len(w.out)
	e.finder.reset(src, p)
	e.prior = histogram{}
	defer func() { e.finder.src, e.chunk.src = nil, nil }()
	if len(src) == 0 {
		w.header(typeFixed, true)
		w.put(0, 7)
	}
	for pos := 0; pos < len(src); pos += e.chunk.n {
		if stop != nil {
			if err := stop(); err != nil {
				return nil, err
			}
		}
		e.gather(src, pos, p)
		e.parse(&w, p, pos+e.chunk.n == len(src))
		if len(w.out)-base > limit {
			return nil, ErrTooLong
		}
	}
	w.align()
	if len(w.out)-base > limit {
		return nil, ErrTooLong
	}
	return w.out, nil
}

// runDistance is up to what distance a long match is taken for a part of a run:
// what follows its positions is what follows those that are in the finder already,
// unless the end of the run is near.
const runDistance = 8

// gather finds the matches of the chunk that starts at pos. Positions inside of a match that is long enough have the rest of it only.
func (e *Encoder) gather(src []byte, pos int, p Params) {
	c := &e.chunk
	n := min(chunkSize, len(src)-pos)
	// A small rest is not worth a chunk of its own.
	if rest := len(src) - pos - n; rest > 0 && rest < chunkSize/8 {
		n /= 2
	}
	if cap(c.steps) < n {
		room := min(1<<bits.Len(uint(n)), chunkSize)
		c.steps, c.first, c.cost = make([]step, room), make([]int32, room+1), make([]uint32, room+1)
		c.matches = make([]match, 0, maxMatches/chunkSize*room)
	}
	c.src, c.start = src, pos
	c.steps, c.first, c.cost = c.steps[:n], c.first[:n+1], c.cost[:n+1]
	c.matches = c.matches[:0]
	enough := p.Skip
	if enough == 0 {
		enough = p.Nice
	}
	var longest match // of the position before
	i := 0
	for i < n && len(c.matches) < maxMatches-2*maxMatch {
		c.first[i] = int32(len(c.matches))
		if longest.length() > 0 {
			longest--
		}
		e.finder.known, e.finder.shared = pos+i-int(longest.distance()), longest.length()
		c.matches = e.finder.find(pos+i, c.matches)
		i++
		k := len(c.matches)
		if k == int(c.first[i-1]) {
			continue
		}
		if longest = c.matches[k-1]; longest.length() >= enough {
			to := min(i+longest.length()-1, n)
			e.pass(i, to, longest)
			longest -= match(to - i)
			i = to
		}
	}
	c.first[i] = int32(len(c.matches))
	c.n = i
}

// pass goes over the positions of the chunk from one to another, which are inside of m, a match of the position before the first.
func (e *Encoder) pass(from, to int, m match) {
	c := &e.chunk
	inserted := from
	if m.distance() <= runDistance && e.finder.goesOn(c.start+from-1+m.length(), m.distance()) {
		inserted = max(from, to-runDistance)
	}
	e.finder.skip(c.start+inserted, c.start+to, m-match(inserted-from))
	for i := from; i < to; i++ {
		m--
		c.first[i] = int32(len(c.matches))
		if m.length() >= minMatch {
			c.matches = append(c.matches, m|whole)
		}
	}
}

// parse finds the sequences of the chunk and writes its blocks.
func (e *Encoder) parse(w *bitWriter, p Params, final bool) {
	c := &e.chunk
	if known := e.prior.literal[endOfBlock] > 0; !known || p.Passes == 0 {
		c.lazy()
		c.count(0, c.n, &e.prior)
		e.prior.mixLiterals(c.src[c.start : c.start+c.n])
	}
	if p.Passes > 0 {
		// The chunk before tells more of what is cheap than a lazy search.
		e.guess.entropyCosts(&e.prior)
		c.cheapest(0, c.n, &e.guess)
	}
	ps := e.split(c)
	e.prior = histogram{}
	for i := range ps {
		from, to := ps[i].from, ps[i].to
		h := &ps[i].h
		last := e.guess.of(h)
		for n := range p.Passes {
			e.costs.entropyCosts(h)
			if (n > 0 || p.Passes == 1) && e.costs.of(h)+last/settled >= last {
				break // the costs are what they were
			}
			last = c.cheapest(from, to, &e.costs)
			c.count(from, to, h)
		}
		e.prior.add(h)
		e.write(w, from, to, h, final && i == len(ps)-1)
	}
}

// settled is the part of its cost by which a sequence must become cheaper, when its own statistics give the costs, for another search. Where
// Passes allows several, the first of them is made in any case.
const settled = 128

// smallBlock is up to how many bytes a block is also parsed for the fixed codes.
const smallBlock = 2048

// write sends a block in its shortest form.
func (e *Encoder) write(w *bitWriter, from, to int, h *histogram, final bool) {
	c := &e.chunk
	e.block.build(h)
	bits := e.block.headerBits + e.block.bits(h)
	if to-from <= smallBlock {
		e.costs.fixedCosts()
		kept := append([]step(nil), c.steps[from:to]...)
		c.cheapest(from, to, &e.costs)
		c.count(from, to, &e.h)
		if n := fixed.bits(&e.h); n < bits && n < storedBits(to-from) {
			w.header(typeFixed, final)
			w.symbols(c, from, to, fixed)
			return
		}
		copy(c.steps[from:to], kept)
	}
	if storedBits(to-from) < 3+bits {
		w.stored(c.src[c.start+from:c.start+to], final)
		return
	}
	w.header(typeDynamic, final)
	e.block.writeHeader(w)
	w.symbols(c, from, to, &e.block.codes)
}
