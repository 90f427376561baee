package png

import (
	"slices"
	"testing"
)

// TestEdgeFirst: the entry that most rows begin with comes first, and the others keep their order or the opposite one.
func TestEdgeFirst(t *testing.T) {
	for _, c := range []struct {
		begin       []byte
		order, want []int
	}{
		{[]byte{3, 2, 2, 1}, []int{3, 0, 1, 2}, []int{2, 1, 0, 3}},
		{[]byte{3, 2, 3, 1}, []int{0, 2, 1, 3}, []int{3, 1, 2, 0}},
		{[]byte{0, 0, 3, 3}, []int{1, 0, 2, 3}, []int{0, 1, 2, 3}}, // as often: what came first
		{[]byte{3, 3, 3, 3}, []int{3, 0, 1, 2}, []int{3, 0, 1, 2}},
	} {
		ra := &raster{hdr: header{depth: 8, ctype: indexed}, passes: []pass{{width: 2, height: 3, rowBytes: 2}, {width: 1, height: 1, rowBytes: 1}},
			pix: []byte{c.begin[0], 1, c.begin[1], 1, c.begin[2], 1, c.begin[3]}}
		if got := ra.edgeFirst(slices.Clone(c.order)); !slices.Equal(got, c.want) {
			t.Errorf("rows that begin with %v: %v became %v instead of %v", c.begin, c.order, got, c.want)
		}
	}
}

// TestReorderedPacked: several indices in a byte, and unused bits behind the last one.
func TestReorderedPacked(t *testing.T) {
	for _, depth := range []uint8{1, 2, 4} {
		h := header{width: 5, height: 3, depth: depth, ctype: indexed}
		ra := &raster{hdr: h, passes: h.passes()}
		n := 1 << depth
		for i := range n {
			ra.plte = append(ra.plte, byte(i), byte(i), byte(i))
		}
		width := ra.passes[0].rowBytes
		ra.pix = make([]byte, 3*width)
		at := func(row []byte, x int) uint8 { return sampleAt(row, x, depth) }
		for y := range 3 {
			for x := range 5 {
				v := uint8(n - 1)
				if x > 0 {
					v = uint8((x + y) % n)
				}
				putSample(ra.pix[y*width:][:width], x, depth, v)
			}
		}
		r := ra.reordered(ra.edgeSwapped())
		if r == nil || r.plte[0] != byte(n-1) || r.plte[3*(n-1)] != 0 {
			t.Fatalf("depth %d: the entry that rows begin with is not the first: %v", depth, r)
		}
		row := 0
		err := new(filterer).eachRow(r, &budget{ctx: t.Context()}, func(cur, _ []byte, _ int) {
			for x := range 5 {
				if was, is := at(ra.pix[row*width:][:width], x), at(cur, x); ra.plte[3*int(was)] != r.plte[3*int(is)] {
					t.Errorf("depth %d, pixel %d,%d: entry %d became %d", depth, x, row, was, is)
				}
			}
			if used := 5 * int(depth) % 8; used > 0 && cur[width-1]<<used != 0 {
				t.Errorf("depth %d: unused bits of %#x are not 0", depth, cur[width-1])
			}
			row++
		})
		if err != nil || row != 3 {
			t.Errorf("depth %d: %d rows, %v", depth, row, err)
		}
	}
}

// TestJudgeWithoutMatches: where nothing repeats, the judge still sees which bytes are frequent.
func TestJudgeWithoutMatches(t *testing.T) {
	var even, skewed []byte
	for i := range 2000 {
		x, y := mixed(i, 1, 0), mixed(i, 2, 0)
		even = append(even, byte(x))
		skewed = append(skewed, byte(x)&byte(y)&15)
	}
	e, b := new(encoder), &budget{ctx: t.Context()}
	size := func(data []byte) int {
		n, err := e.judged(data, b)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := size(even); n < 2000 || n > 2100 {
		t.Errorf("2000 even bytes are judged to take %d", n)
	}
	if n := size(skewed); n > 1000 {
		t.Errorf("2000 bytes of 16 values are judged to take %d", n)
	}
	var short []byte // every pair of bytes once at most
	for i := range 100 {
		short = append(short, byte(i%10), byte(i/10))
	}
	if n, bytes := size(short), e.fl.literals(short); n > bytes {
		t.Errorf("%d bytes are judged to take %d; a code makes %d of them", len(short), n, bytes)
	}
}
