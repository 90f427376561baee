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

	strategyCount = iota
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
	tried  []byte               // a row filtered in one way
	bigram [1 << 16 / 64]uint64 // a bit for each pair of bytes; all 0 between rows
	counts [256]uint32
	looked [2][]byte // rows whose samples were looked up in a table
}

// rowFilters is the filter of every row of a picture: those of rows, or, where
// that is nil, the same for all.
type rowFilters struct {
	all  byte
	rows []byte
}

func (p rowFilters) of(row int) byte {
	if p.rows == nil {
		return p.all
	}
	return p.rows[row]
}

// eachRow calls fn with every row of a picture and the one before it, or
// zeros; both are valid until the next call.
func (fl *filterer) eachRow(ra *raster, b *budget, fn func(cur, prev []byte, row int)) error {
	widest := ra.widest()
	zero := make([]byte, widest)
	for i := range fl.looked {
		if ra.table != nil && cap(fl.looked[i]) < widest {
			fl.looked[i] = make([]byte, widest)
		}
	}
	pix, row := ra.pix, 0
	for _, p := range ra.passes {
		prev := zero[:p.rowBytes]
		for range p.height {
			cur := pix[:p.rowBytes]
			if ra.table != nil {
				to := fl.looked[row&1][:len(cur)]
				for i, v := range cur {
					to[i] = ra.table[v]
				}
				if unused := 8*len(to) - p.width*ra.hdr.bitsPerPixel(); unused > 0 {
					to[len(to)-1] &= 0xff << unused
				}
				cur = to
			}
			fn(cur, prev, row)
			if err := b.spend(len(cur)); err != nil {
				return err
			}
			prev, pix = cur, pix[p.rowBytes:]
			row++
		}
	}
	return nil
}

// apply writes the filtered picture, a filter byte before every row, to dst,
// which must have room for ra.filteredSize() bytes, and gives the part that
// was written.
func (fl *filterer) apply(dst []byte, ra *raster, p rowFilters, b *budget) ([]byte, error) {
	dst = dst[:ra.filteredSize()]
	out, dist := dst, ra.hdr.filterDistance()
	err := fl.eachRow(ra, b, func(cur, prev []byte, row int) {
		out[0] = p.of(row)
		applyFilter(out[0], out[1:1+len(cur)], cur, prev, dist)
		out = out[1+len(cur):]
	})
	return dst, err
}

// choices gives what each of the strategies does with the rows of a picture.
func (fl *filterer) choices(ra *raster, strategies []strategy, b *budget) ([]rowFilters, error) {
	list := make([]rowFilters, len(strategies))
	judged := false
	for i, s := range strategies {
		switch {
		case s == strategyStored:
			list[i].rows = ra.stored
		case s < strategyStored:
			list[i].all = byte(s)
		default:
			judged = true
			list[i].rows = make([]byte, ra.rowCount())
		}
	}
	if !judged {
		return list, nil
	}
	if widest := ra.widest(); cap(fl.tried) < widest {
		fl.tried = make([]byte, widest)
	}
	dist := ra.hdr.filterDistance()
	var best [strategyCount]uint64
	err := fl.eachRow(ra, b, func(cur, prev []byte, row int) {
		// The lower type wins a tie.
		for f := filterNone; f < filterTypes; f++ {
			t := cur
			if f != filterNone {
				t = fl.tried[:len(cur)]
				applyFilter(f, t, cur, prev, dist)
			}
			for i, s := range strategies {
				if s < strategyMinSum {
					continue
				}
				if score := fl.score(s, t); f == filterNone || score < best[s] {
					best[s], list[i].rows[row] = score, f
				}
			}
		}
	})
	return list, err
}

// score is lower the better a filtered row looks to a strategy.
func (fl *filterer) score(s strategy, row []byte) uint64 {
	switch s {
	case strategyMinSum:
		return sumAbs(row)
	case strategyEntropy:
		return fl.entropy(row)
	}
	return fl.bigrams(row)
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

// literals gives about how many bytes data takes with a code for its bytes and nothing else.
func (fl *filterer) literals(data []byte) int {
	symbols := 0
	sum := uint64(len(data)) * uint64(log2(uint32(max(1, len(data)))))
	clear(fl.counts[:])
	for _, v := range data {
		fl.counts[v]++
	}
	for _, n := range fl.counts {
		if n > 0 {
			symbols++
			sum -= uint64(n) * uint64(log2(n))
		}
	}
	return int(sum>>8)/8 + codeBase + symbols/2
}

// codeBase is about how many bytes the form of a code takes besides half a byte for each symbol.
const codeBase = 12

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

// bigrams counts the different pairs of neighbouring bytes.
func (fl *filterer) bigrams(row []byte) uint64 {
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
	if len(row) >= len(fl.bigram) {
		clear(fl.bigram[:])
		return n
	}
	for _, v := range row {
		pair = pair<<8 | uint16(v)
		fl.bigram[pair>>6] = 0
	}
	return n
}
