package png

import "encoding/binary"

// Filter types (PNG, 9.2).
const (
	filterNone byte = iota
	filterSub
	filterUp
	filterAverage
	filterPaeth
	filterTypes = 5
)

// unfilter turns a filtered row into its samples, in place. prev is the row
// before, of the same length, zeros before the first row of a pass; dist is
// header.filterDistance.
func unfilter(filter byte, row, prev []byte, dist int) {
	n := len(row)
	prev = prev[:n]
	head := min(dist, n) // bytes that have no pixel to their left
	switch filter {
	case filterSub:
		for i := dist; i < n; i++ {
			row[i] += row[i-dist]
		}
	case filterUp:
		for i, p := range prev {
			row[i] += p
		}
	case filterAverage:
		for i := 0; i < head; i++ {
			row[i] += prev[i] / 2
		}
		for i := dist; i < n; i++ {
			row[i] += uint8((int(row[i-dist]) + int(prev[i])) / 2)
		}
	case filterPaeth:
		for i := 0; i < head; i++ {
			row[i] += prev[i] // left and upper left are 0: up is the nearest
		}
		for i := dist; i < n; i++ {
			row[i] += paeth(row[i-dist], prev[i], prev[i-dist])
		}
	}
}

// applyFilter writes the filtered form of row to dst, which has the same
// length and does not overlap.
func applyFilter(filter byte, dst, row, prev []byte, dist int) {
	n := len(row)
	dst, prev = dst[:n], prev[:n]
	head := min(dist, n)
	switch filter {
	case filterNone:
		copy(dst, row)
	case filterSub:
		copy(dst, row[:head])
		subtract(dst[head:], row[head:], row)
	case filterUp:
		subtract(dst, row, prev)
	case filterAverage:
		for i := 0; i < head; i++ {
			dst[i] = row[i] - prev[i]/2
		}
		subtractMean(dst[head:], row[head:], row, prev[head:])
	case filterPaeth:
		for i := 0; i < head; i++ {
			dst[i] = row[i] - prev[i]
		}
		for i := head; i < n; i++ {
			dst[i] = row[i] - paeth(row[i-dist], prev[i], prev[i-dist])
		}
	}
}

// Eight bytes at a time in one word: the high bit of each, and the others.
const (
	highBits = 0x8080808080808080
	lowBits  = ^uint64(highBits)
)

// subtract8 subtracts each of the 8 bytes of y from that of x, modulo 256.
func subtract8(x, y uint64) uint64 {
	return (x | highBits) - (y & lowBits) ^ (x^^y)&highBits
}

// subtract sets dst to a - b, byte by byte, over the length of dst.
func subtract(dst, a, b []byte) {
	i := 0
	for ; i+8 <= len(dst); i += 8 {
		binary.LittleEndian.PutUint64(dst[i:], subtract8(binary.LittleEndian.Uint64(a[i:]), binary.LittleEndian.Uint64(b[i:])))
	}
	for ; i < len(dst); i++ {
		dst[i] = a[i] - b[i]
	}
}

// subtractMean sets dst to a less the mean of b and c, rounded down.
func subtractMean(dst, a, b, c []byte) {
	i := 0
	for ; i+8 <= len(dst); i += 8 {
		x, y := binary.LittleEndian.Uint64(b[i:]), binary.LittleEndian.Uint64(c[i:])
		mean := x&y + (x^y)>>1&lowBits // the bits both have, and half of those one has
		binary.LittleEndian.PutUint64(dst[i:], subtract8(binary.LittleEndian.Uint64(a[i:]), mean))
	}
	for ; i < len(dst); i++ {
		dst[i] = a[i] - uint8((int(b[i])+int(c[i]))/2)
	}
}

// paeth gives whichever of left, up and upper left is nearest to
// left + up - upper left; ties go in this order (PNG, 9.4).
func paeth(a, b, c uint8) uint8 {
	pb := int(a) - int(c) // p - b, where p = a + b - c
	pa := int(b) - int(c) // p - a
	pc := abs(pa + pb)
	pa, pb = abs(pa), abs(pb)
	if pa <= pb && pa <= pc {
		return a
	}
	if pb <= pc {
		return b
	}
	return c
}

func abs(x int) int {
	if x < 0 {
		return -x
	}
	return x
}
