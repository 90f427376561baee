package deflate

// dynamic is a block's own codes and how they are sent (3.2.7).
type dynamic struct {
	codes
	runs          []run // of the code lengths of both codes
	hlit, hdist   int   // how many code lengths are sent
	hclen         int   // how many lengths of the code length code are sent
	headerLengths [lengthCodes]uint8
	headerBits    uint64 // length of all of that, without the 3 bits of the block header
}

// run is one symbol of the code length code with its extra bits.
type run struct {
	symbol, extra uint8
}

// runExtra gives the number of extra bits of the symbols 16, 17 and 18.
func runExtra(symbol uint8) uint {
	switch symbol {
	case 16:
		return 2
	case 17:
		return 3
	case 18:
		return 7
	}
	return 0
}

// build makes the best codes for a histogram and the shortest form to send them.
func (d *dynamic) build(h *histogram) {
	d.plan(h)
	// Counts that are nearly alike made alike give lengths that are sent in
	// longer runs; for small blocks that can be worth more than it costs.
	var smooth histogram
	smooth.smoothed(h)
	var other dynamic
	other.runs = make([]run, 0, literalCodes+distanceCodes)
	other.plan(&smooth)
	if other.headerBits+other.bits(h) < d.headerBits+d.bits(h) {
		d.codes, d.hlit, d.hdist, d.hclen = other.codes, other.hlit, other.hdist, other.hclen
		d.headerLengths, d.headerBits = other.headerLengths, other.headerBits
		d.runs = append(d.runs[:0], other.runs...)
	}
}

// plan makes the codes and chooses how to send their lengths.
func (d *dynamic) plan(h *histogram) {
	clear(d.literalBits[:])
	codeLengths(d.literalBits[:literalCodes], h.literal[:], maxCodeBits)
	codeLengths(d.distanceBits[:], h.distance[:], maxCodeBits)
	d.hlit, d.hdist = literalCodes, distanceCodes
	for d.hlit > firstLength && d.literalBits[d.hlit-1] == 0 {
		d.hlit--
	}
	for d.hdist > 1 && d.distanceBits[d.hdist-1] == 0 {
		d.hdist--
	}
	var all [literalCodes + distanceCodes]uint8
	lengths := append(append(all[:0], d.literalBits[:d.hlit]...), d.distanceBits[:d.hdist]...)

	d.headerBits = ^uint64(0)
	var buf [literalCodes + distanceCodes]run
	for form := range 8 {
		runs := runLengths(buf[:0], lengths, form&1 != 0, form&2 != 0, form&4 != 0)
		var count [lengthCodes]uint32
		for _, r := range runs {
			count[r.symbol]++
		}
		var bits [lengthCodes]uint8
		codeLengths(bits[:], count[:], maxLengthCodeBits)
		n := uint64(5 + 5 + 4)
		hclen := lengthCodes
		for hclen > 4 && bits[lengthCodeOrder[hclen-1]] == 0 {
			hclen--
		}
		n += 3 * uint64(hclen)
		for s, c := range count {
			n += uint64(c) * uint64(uint(bits[s])+runExtra(uint8(s)))
		}
		if n < d.headerBits {
			d.headerBits, d.headerLengths, d.hclen = n, bits, hclen
			d.runs = append(d.runs[:0], runs...)
		}
	}
}

// runLengths gives code lengths as symbols of the code length code. The flags
// say which of the symbols 16 (repeat), 17 (zeros) and 18 (many zeros) to use.
func runLengths(out []run, lengths []uint8, use16, use17, use18 bool) []run {
	for i := 0; i < len(lengths); {
		v, n := lengths[i], 1
		for i+n < len(lengths) && lengths[i+n] == v {
			n++
		}
		i += n
		if v == 0 {
			for use18 && n >= 11 {
				k := min(n, 138)
				out = append(out, run{18, uint8(k - 11)})
				n -= k
			}
			for use17 && n >= 3 {
				k := min(n, 10)
				out = append(out, run{17, uint8(k - 3)})
				n -= k
			}
		}
		if use16 && n >= 4 {
			out = append(out, run{v, 0})
			n--
			for n >= 3 {
				k := min(n, 6)
				if n-k == 1 || n-k == 2 {
					k = max(3, n-3) // leave a run of three rather than one or two alone
				}
				out = append(out, run{16, uint8(k - 3)})
				n -= k
			}
		}
		for ; n > 0; n-- {
			out = append(out, run{v, 0})
		}
	}
	return out
}

// writeHeader sends the codes of the block.
func (d *dynamic) writeHeader(w *bitWriter) {
	w.put(uint64(d.hlit-firstLength), 5)
	w.put(uint64(d.hdist-1), 5)
	w.put(uint64(d.hclen-4), 4)
	for _, s := range lengthCodeOrder[:d.hclen] {
		w.put(uint64(d.headerLengths[s]), 3)
	}
	var header [lengthCodes]uint16
	canonical(header[:], d.headerLengths[:])
	for _, r := range d.runs {
		w.put(uint64(header[r.symbol]), uint(d.headerLengths[r.symbol]))
		w.put(uint64(r.extra), runExtra(r.symbol))
	}
	canonical(d.literal[:], d.literalBits[:])
	canonical(d.distance[:], d.distanceBits[:])
}

// smoothed copies a histogram with neighbouring counts that are nearly alike
// replaced by their mean.
func (h *histogram) smoothed(from *histogram) {
	*h = *from
	smooth := func(count []uint32) {
		for i := 0; i < len(count); {
			// A stretch goes on while the next count is near the mean so far.
			sum, n := count[i], uint32(1)
			for i+int(n) < len(count) {
				next, mean := count[i+int(n)], (sum+n/2)/n
				if (next == 0) != (mean == 0) || next+next/4+1 < mean || mean+mean/4+1 < next {
					break
				}
				sum += next
				n++
			}
			if n >= 4 {
				mean := max((sum+n/2)/n, min(sum, 1))
				for k := range int(n) {
					count[i+k] = mean
				}
			}
			i += int(n)
		}
	}
	smooth(h.literal[:])
	smooth(h.distance[:])
}
