package deflate

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// kraft gives the sum of 2^-length in units of 2^-15.
func kraft(lengths []uint8) int {
	sum := 0
	for _, l := range lengths {
		if l > 0 {
			sum += 1 << (15 - l)
		}
	}
	return sum
}

func TestCodeLengthsAreComplete(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 400 {
		count := make([]uint32, 2+rng.IntN(literalCodes-1))
		for i := range count {
			switch round % 4 {
			case 0:
				count[i] = uint32(rng.IntN(1000))
			case 1:
				count[i] = 1 << rng.IntN(30) // longer than any limit without one
			case 2:
				count[i] = uint32(rng.IntN(2))
			case 3:
				count[i] = uint32(max(0, rng.IntN(len(count))-len(count)+2)) // one or none
			}
		}
		for _, limit := range []int{maxCodeBits, 9} {
			lengths := make([]uint8, len(count))
			codeLengths(lengths, count, limit)
			if k := kraft(lengths); k != 1<<15 {
				t.Fatalf("limit %d: counts %v have lengths %v: %d/32768 of the code space", limit, count, lengths, k)
			}
			for s, n := range count {
				if n > 0 && lengths[s] == 0 || int(lengths[s]) > limit {
					t.Fatalf("symbol %d with count %d has length %d", s, n, lengths[s])
				}
			}
		}
	}
}

// TestPackageMergeIsOptimal compares with every possible code for a few
// symbols, and with the Huffman code where the limit does not matter.
func TestPackageMergeIsOptimal(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	total := func(lengths []uint8, count []uint32) (sum uint64) {
		for s, n := range count {
			sum += uint64(n) * uint64(lengths[s])
		}
		return sum
	}
	for range 100 {
		count := make([]uint32, 6)
		for i := range count {
			count[i] = 1 << rng.IntN(12)
		}
		const limit = 3
		var lengths [6]uint8
		codeLengths(lengths[:], count, limit)
		best := ^uint64(0)
		var try [6]uint8
		for n := range limit * limit * limit * limit * limit * limit {
			for i := range try {
				try[i] = uint8(1 + n%limit)
				n /= limit
			}
			if kraft(try[:]) <= 1<<15 {
				best = min(best, total(try[:], count))
			}
		}
		if got := total(lengths[:], count); got != best {
			t.Fatalf("counts %v: lengths %v cost %d, the best %d", count, lengths, got, best)
		}
	}
	count := []uint32{5, 9, 12, 13, 16, 45, 3, 3}
	var leaves []uint64
	for s, n := range count {
		leaves = append(leaves, uint64(n)<<16|uint64(s))
	}
	slices.Sort(leaves)
	a, b := make([]uint8, len(count)), make([]uint8, len(count))
	if !unlimited(a, leaves, maxCodeBits) {
		t.Fatal("the Huffman code is not found")
	}
	packageMerge(b, leaves, maxCodeBits)
	if total(a, count) != total(b, count) {
		t.Fatalf("Huffman %v costs %d, package-merge %v costs %d", a, total(a, count), b, total(b, count))
	}
}

func TestSlots(t *testing.T) {
	for s, base := range distanceBase {
		last := uint32(base) + 1<<distanceExtra[s] - 1
		if distanceSlot(uint32(base)) != uint32(s) || distanceSlot(last) != uint32(s) {
			t.Errorf("distances %d to %d have the symbols %d to %d, not %d", base, last, distanceSlot(uint32(base)), distanceSlot(last), s)
		}
	}
	for l := minMatch; l <= maxMatch; l++ {
		s := lengthSlot[l]
		if over := l - int(lengthBase[s]); over < 0 || over >= 1<<lengthExtra[s] {
			t.Errorf("length %d has the symbol %d, which begins at %d", l, s, lengthBase[s])
		}
		m := newMatch(l, 1<<15)
		if m.length() != l || m.distance() != 1<<15 || m.slot() != 29 {
			t.Errorf("match of %d is %d, %d, %d", l, m.length(), m.distance(), m.slot())
		}
	}
}

func TestRunLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 2000 {
		var lengths []uint8
		for len(lengths) < 40+rng.IntN(276) {
			v := uint8(rng.IntN(4) * rng.IntN(5))
			for range 1 + rng.IntN(1+rng.IntN(200)) {
				lengths = append(lengths, v)
			}
		}
		for form := range 8 {
			var got []uint8
			for _, r := range runLengths(nil, lengths, form&1 != 0, form&2 != 0, form&4 != 0) {
				switch r.symbol {
				case 16:
					got = append(got, slices.Repeat(got[len(got)-1:], 3+int(r.extra))...)
				case 17:
					got = append(got, make([]uint8, 3+int(r.extra))...)
				case 18:
					got = append(got, make([]uint8, 11+int(r.extra))...)
				default:
					got = append(got, r.symbol)
				}
			}
			if !slices.Equal(got, lengths) {
				t.Fatalf("form %d: %v came back as %v", form, lengths, got)
			}
		}
	}
}

func TestLog2(t *testing.T) {
	for n := uint32(1); n < 1<<20; n += 1 + n/100 {
		// 2^(log2 n) by doubling: log2 is additive to within its error.
		if d := int(log2(2*n)) - int(log2(n)) - costScale; d != 0 {
			t.Fatalf("log2(%d) = %d, log2(%d) = %d", n, log2(n), 2*n, log2(2*n))
		}
		if d := int(log2(n)+log2(n)) - int(log2(n*min(n, 1<<11))); n < 1<<11 && (d < -4 || d > 4) {
			t.Fatalf("log2(%d)*2 differs from the one of its square by %d", n, d)
		}
	}
}
