package png

import (
	"cmp"
	"slices"
)

// The order of a palette decides how well filtered indices deflate: where
// neighbouring pixels have neighbouring indices, their differences are small.

// reordered gives the same picture with its palette in another order, or nil
// where nothing would change. It shares the samples, which are looked up in
// a table as they are filtered, as many at once as a byte holds. order has old indices in their new order.
func (ra *raster) reordered(order []int) *raster {
	old := ra.entries()
	r := &raster{hdr: ra.hdr, passes: ra.passes, pix: ra.pix, table: new([256]uint8)}
	list := make([]entry, len(order))
	moved := false
	var to [256]uint8
	for i, from := range order {
		list[i] = old[from]
		to[from] = uint8(i)
		moved = moved || from != i
	}
	if !moved {
		return nil
	}
	depth := uint(ra.hdr.depth)
	for v := range r.table {
		for shift := uint(0); shift < 8; shift += depth {
			r.table[v] |= to[v>>shift&(1<<depth-1)] << shift
		}
	}
	r.setPalette(list)
	return r
}

// byLuma puts entries that are not opaque first, then dark before light.
func byLuma(list []entry) []int {
	order := make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := list[i], list[j]
		if a.opaque() != b.opaque() {
			if a.opaque() {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(a.luma(), b.luma()), cmp.Compare(a, b))
	})
	return order
}

// byNeighbours puts colours that often lie side by side close together
// (Zeng, Li and Lei; Pinho and Neves): starting with the two that touch
// most, the colour that touches those placed so far most is put at the end of the row
// that it is nearer to. Samples have 8 bits.
func (ra *raster) byNeighbours() []int {
	n := len(ra.plte) / 3
	touch := ra.touching(n)
	a, b, most := 0, 1, uint32(0)
	for i := range n {
		for j := i + 1; j < n; j++ {
			if t := touch[i*n+j]; t > most {
				a, b, most = i, j, t
			}
		}
	}
	// row grows to both sides from the middle.
	row := make([]int, 2*n)
	from, to := n, n+2
	row[from], row[from+1] = a, b
	weight := make([]uint64, n) // how often a colour touches those in the row
	placed := make([]bool, n)
	placed[a], placed[b] = true, true
	for i := range n {
		weight[i] = uint64(touch[i*n+a]) + uint64(touch[i*n+b])
	}
	for to-from < n {
		next := -1
		for i := range n {
			if !placed[i] && (next < 0 || weight[i] > weight[next]) {
				next = i
			}
		}
		left := int64(0) // above 0 where the left end is nearer
		for i := from; i < to; i++ {
			left += int64(to-1-i-(i-from)) * int64(touch[next*n+row[i]])
		}
		if left > 0 {
			from--
			row[from] = next
		} else {
			row[to] = next
			to++
		}
		placed[next] = true
		for i := range n {
			weight[i] += uint64(touch[i*n+next])
		}
	}
	order := row[from:to:to]
	// tRNS ends with the last entry that is not opaque.
	list := ra.entries()
	transparent := func(i int) bool { return !list[i].opaque() }
	if first := slices.IndexFunc(order, transparent); first >= 0 {
		last := 0
		for i, e := range order {
			if transparent(e) {
				last = i
			}
		}
		if n-1-first < last {
			slices.Reverse(order)
		}
	}
	return order
}

// edgeFirst moves the entry that most rows begin with to the front of an order, which is turned round before where that is the nearer way. In filtered rows
// what follows the filter byte is small then.
func (ra *raster) edgeFirst(order []int) []int {
	most := ra.edge()
	at := slices.Index(order, most)
	if at >= len(order)/2 {
		slices.Reverse(order)
		at = len(order) - 1 - at
	}
	copy(order[1:], order[:at])
	order[0] = most
	return order
}

// edge gives the entry that most rows begin with.
func (ra *raster) edge() int {
	var count [256]int
	pix, most := ra.pix, 0
	for _, p := range ra.passes {
		for range p.height {
			first := int(pix[0] >> (8 - ra.hdr.depth))
			if count[first]++; count[first] > count[most] {
				most = first
			}
			pix = pix[p.rowBytes:]
		}
	}
	return most
}

// edgeSwapped gives the order in which the entry that most rows begin with and the first one have changed places. In rows without a filter, a background of that entry
// goes on through the filter bytes then.
func (ra *raster) edgeSwapped() []int {
	order := make([]int, len(ra.plte)/3)
	for i := range order {
		order[i] = i
	}
	if most := ra.edge(); most < len(order) {
		order[0], order[most] = most, 0
	}
	return order
}

// touching counts, for every two of n indices, at i*n+j and j*n+i, how often
// one is left of or above the other.
func (ra *raster) touching(n int) []uint32 {
	touch := make([]uint32, n*n)
	pix := ra.pix
	for _, p := range ra.passes {
		var above []byte
		for range p.height {
			row := pix[:p.rowBytes]
			pix = pix[p.rowBytes:]
			for x := 1; x < len(row); x++ {
				if a, b := int(row[x-1]), int(row[x]); a != b {
					touch[a*n+b]++
				}
			}
			for x, a := range above {
				if b := row[x]; a != b {
					touch[int(a)*n+int(b)]++
				}
			}
			above = row
		}
	}
	for i := range n {
		for j := range i {
			sum := touch[i*n+j] + touch[j*n+i]
			touch[i*n+j], touch[j*n+i] = sum, sum
		}
	}
	return touch
}
