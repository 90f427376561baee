package png

import (
	"fmt"
	"math/bits"
)

// strategy is a way to choose the filter of every row.
type strategy uint8

const (
	// The first five apply one filter type to all rows and have its value.
	strategyNone    = strategy(filterNone)
	strategySub     = strategy(filterSub)
	strategyUp      = strategy(filterUp)
	strategyAverage = strategy(filterAverage)
	strategyPaeth   = strategy(filterPaeth)

	// strategyStored repeats the choice that the file came with.
	strategyStored = strategy(iota)
	// strategyMinSum takes the filter with the smallest sum of absolute
	// differences (PNG, 12.7).
	strategyMinSum
	// strategyEntropy takes the filter whose bytes have the least entropy.
	strategyEntropy
	// strategyBigrams takes the filter with the fewest different pairs of bytes.
	strategyBigrams
)

func (s strategy) String() string {
	switch s {
	case strategyNone:
		return "none"
	case strategySub:
		return "sub"
	case strategyUp:
		return "up"
	case strategyAverage:
		return "average"
	case strategyPaeth:
		return "paeth"
	case strategyStored:
		return "stored"
	case strategyMinSum:
		return "min-sum"
	case strategyEntropy:
		return "entropy"
	case strategyBigrams:
		return "bigrams"
	}
	return fmt.Sprintf("strategy(%d)", uint8(s))
}

// filterer applies strategies; its buffers are used again from row to row.
type filterer struct {
	tried  [filterTypes][]byte
	bigram [1 << 16 / 64]uint64
	counts [256]uint32
	looked [2][]byte // rows whose samples were looked up in a table
}

// apply writes the filtered picture, a filter byte before every row, to dst,
// which must have room for ra.filteredSize() bytes, and gives the part that
// was written.
func (fl *filterer) apply(dst []byte, ra *raster, s strategy, b *budget) ([]byte, error) {
	dst = dst[:ra.filteredSize()]
	out, pix, row := dst, ra.pix, 0
	dist := ra.hdr.filterDistance()
	zero := make([]byte, ra.widest())
	for i := range fl.tried {
		if s >= strategyMinSum && cap(fl.tried[i]) < len(zero) {
			fl.tried[i] = make([]byte, len(zero))
		}
	}
	for i := range fl.looked {
		if ra.table != nil && cap(fl.looked[i]) < len(zero) {
			fl.looked[i] = make([]byte, len(zero))
		}
	}
	for _, p := range ra.passes {
		prev := zero[:p.rowBytes]
		for range p.height {
			cur := pix[:p.rowBytes]
			if ra.table != nil {
				to := fl.looked[row&1][:len(cur)]
				for i, v := range cur {
					to[i] = ra.table[v]
				}
				cur = to
			}
			switch s {
			case strategyMinSum, strategyEntropy, strategyBigrams:
				f := fl.choose(s, cur, prev, dist)
				out[0] = f
				copy(out[1:], fl.tried[f][:len(cur)])
			default:
				f := byte(s)
				if s == strategyStored {
					f = ra.stored[row]
				}
				out[0] = f
				applyFilter(f, out[1:1+len(cur)], cur, prev, dist)
			}
			if err := b.spend(len(cur)); err != nil {
				return nil, err
			}
			prev, pix, out = cur, pix[p.rowBytes:], out[1+p.rowBytes:]
			row++
		}
	}
	return dst, nil
}

// choose filters one row in all ways, leaves them in fl.tried and gives
// the best; the lower type wins a tie.
func (fl *filterer) choose(s strategy, cur, prev []byte, dist int) byte {
	best, bestScore := filterNone, ^uint64(0)
	for f := filterNone; f < filterTypes; f++ {
		t := fl.tried[f][:len(cur)]
		applyFilter(f, t, cur, prev, dist)
		var score uint64
		switch s {
		case strategyMinSum:
			score = sumAbs(t)
		case strategyEntropy:
			score = fl.entropy(t)
		default:
			score = fl.bigrams(t)
		}
		if score < bestScore {
			best, bestScore = f, score
		}
	}
	return best
}

func sumAbs(row []byte) uint64 {
	var sum uint64
	for _, v := range row {
		x := int8(v)
		m := x >> 7
		sum += uint64(uint8((x ^ m) - m))
	}
	return sum
}

// entropy gives a number that grows with the order-0 entropy of the row:
// the sum of n log2 n over the byte counts, negated, plus a constant of the
// row's length.
func (fl *filterer) entropy(row []byte) uint64 {
	clear(fl.counts[:])
	for _, v := range row {
		fl.counts[v]++
	}
	var sum uint64
	for _, n := range fl.counts {
		if n > 1 {
			sum += uint64(n) * uint64(log2(n))
		}
	}
	return uint64(len(row))*(32<<8) - sum
}

// log2Fraction has round(256 * log2(1 + i/64)).
var log2Fraction = [64]uint8{
	0, 6, 11, 17, 22, 28, 33, 38, 44, 49, 54, 59, 63, 68, 73, 78,
	82, 87, 92, 96, 100, 105, 109, 113, 118, 122, 126, 130, 134, 138, 142, 146,
	150, 154, 157, 161, 165, 169, 172, 176, 179, 183, 186, 190, 193, 197, 200, 203,
	207, 210, 213, 216, 220, 223, 226, 229, 232, 235, 238, 241, 244, 247, 250, 253,
}

// log2 gives 256 * log2(n), cut to the precision of log2Fraction. It is integer
// arithmetic so that every machine makes the same choice.
func log2(n uint32) uint32 {
	e := uint32(bits.Len32(n) - 1)
	frac := uint64(n) << 6 >> e & 63
	return e<<8 + uint32(log2Fraction[frac])
}

func (fl *filterer) bigrams(row []byte) uint64 {
	clear(fl.bigram[:])
	var n uint64
	var pair uint16
	for i, v := range row {
		pair = pair<<8 | uint16(v)
		if i == 0 {
			continue
		}
		word, bit := &fl.bigram[pair>>6], uint64(1)<<(pair&63)
		if *word&bit == 0 {
			*word |= bit
			n++
		}
	}
	return n
}
