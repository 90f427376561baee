package deflate

import "math/bits"

// Limits of RFC 1951.
const (
	windowSize = 1 << 15
	windowMask = windowSize - 1
	minMatch   = 3
	maxMatch   = 258

	endOfBlock    = 256
	firstLength   = 257 // symbol of length 3
	literalCodes  = 286 // literals, end of block, lengths
	fixedCodes    = 288 // the fixed code has two more
	distanceCodes = 30
	lengthCodes   = 19 // the code of the code lengths

	maxCodeBits       = 15
	maxLengthCodeBits = 7
	maxStored         = 1<<16 - 1
)

// lengthExtra and distanceExtra are the extra bits of the symbols (3.2.5).
var lengthExtra = [literalCodes - firstLength]uint8{
	0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
}

var distanceExtra = [distanceCodes]uint8{
	0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13,
}

// lengthCodeOrder is the order in which the lengths of the code length
// code are sent (3.2.7).
var lengthCodeOrder = [lengthCodes]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// Made from the tables above: the smallest value of each symbol, and the
// symbol of each length, less firstLength.
var (
	lengthBase   [literalCodes - firstLength]uint16
	lengthSlot   [maxMatch + 1]uint8
	distanceBase [distanceCodes]uint16
)

func init() {
	v := minMatch
	for s, extra := range lengthExtra {
		lengthBase[s] = uint16(v)
		for i := 0; i < 1<<extra && v <= maxMatch; i++ {
			lengthSlot[v] = uint8(s)
			v++
		}
	}
	// Length 258 has a symbol of its own; the one before could say it too.
	last := len(lengthBase) - 1
	lengthBase[last], lengthSlot[maxMatch] = maxMatch, uint8(last)
	v = 1
	for s, extra := range distanceExtra {
		distanceBase[s] = uint16(v)
		v += 1 << extra
	}
}

// distanceSlot gives the symbol of a distance: two symbols for every
// power of two.
func distanceSlot(d uint32) uint32 {
	if d <= 2 {
		return d - 1
	}
	d--
	top := uint32(bits.Len32(d)) - 1
	return 2*top + d>>(top-1)&1
}
