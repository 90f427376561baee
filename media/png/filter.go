package png

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
		left := row[:n-head]
		for i, v := range row[head:] {
			dst[head+i] = v - left[i]
		}
	case filterUp:
		for i, v := range row {
			dst[i] = v - prev[i]
		}
	case filterAverage:
		for i := 0; i < head; i++ {
			dst[i] = row[i] - prev[i]/2
		}
		for i := head; i < n; i++ {
			dst[i] = row[i] - uint8((int(row[i-dist])+int(prev[i]))/2)
		}
	case filterPaeth:
		for i := 0; i < head; i++ {
			dst[i] = row[i] - prev[i]
		}
		for i := head; i < n; i++ {
			dst[i] = row[i] - paeth(row[i-dist], prev[i], prev[i-dist])
		}
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
