package png

import "io"

// raster is a decoded picture: exact samples in the form they are stored.
type raster struct {
	hdr    header
	plte   []byte // 3 bytes per entry; nil without
	trns   []byte // as in the chunk; nil without
	passes []pass

	// pix has the rows of all passes one after the other, without filter
	// bytes; unused bits at the end of a row are 0.
	pix []byte
	// stored has the filter type that each row had in the file. It is empty
	// where the samples are too far from those of the file for it to be of use.
	stored []byte
	// table, where it is not nil, has what the bytes of pix stand for: one index each, or several.
	table *[256]uint8
}

// rowCount is the number of scanlines of all passes.
func (ra *raster) rowCount() int {
	n := 0
	for _, p := range ra.passes {
		n += p.height
	}
	return n
}

// filteredSize is the length of the stream that is deflated.
func (ra *raster) filteredSize() int { return len(ra.pix) + ra.rowCount() }

// narrow tells whether a large picture has so few bytes in a row that what is
// noted of every row would take much beside the picture.
func (ra *raster) narrow() bool { return len(ra.pix) > 1<<20 && len(ra.pix) < 32*ra.rowCount() }

// widest is the length of the longest row.
func (ra *raster) widest() int {
	n := 0
	for _, p := range ra.passes {
		n = max(n, p.rowBytes)
	}
	return n
}

// decode inflates and unfilters the picture of a file.
func decode(f *file, b *budget) (*raster, error) {
	rr, ref := newRowReader(f)
	if ref != nil {
		return nil, ref
	}
	ra := &raster{hdr: f.hdr, plte: f.plte, trns: f.trns, passes: f.hdr.passes()}
	size, rows := 0, 0
	for _, p := range ra.passes {
		size += p.rowBytes * p.height
		rows += p.height
	}
	// The buffers grow with what really arrives: a small file that claims to
	// be a large picture must not cost the memory of one.
	const first = 1 << 20
	compressed := 0
	for _, part := range f.idat {
		compressed += len(part)
	}
	ra.pix = make([]byte, 0, min(size, first+16*compressed))
	ra.stored = make([]byte, 0, min(rows, first))
	for {
		row, filter, err := rr.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := b.spend(len(row)); err != nil {
			return nil, err
		}
		ra.pix = append(grown(ra.pix, len(row), size), row...)
		ra.stored = append(grown(ra.stored, 1, rows), filter)
	}
	if f.hdr.ctype == indexed {
		if err := ra.checkIndices(); err != nil {
			return nil, err
		}
	}
	return ra, nil
}

// grown gives buf with room for n more bytes, in few steps that end at most.
func grown(buf []byte, n, most int) []byte {
	if len(buf)+n <= cap(buf) {
		return buf
	}
	return append(make([]byte, 0, min(most, 8*cap(buf)+n)), buf...)
}

// checkIndices refuses a picture that uses an entry its palette does not
// have: decoders show black, the last entry or an error.
func (ra *raster) checkIndices() error {
	entries := len(ra.plte) / 3
	if entries == 1<<ra.hdr.depth {
		return nil
	}
	used := ra.usedIndices()
	for i := entries; i < len(used); i++ {
		if used[i] {
			return refuse(ReasonBadData, "a pixel has the index %d into a palette of %d", i, entries)
		}
	}
	return nil
}

// usedIndices tells which sample values a picture of one channel and at
// most 8 bits has.
func (ra *raster) usedIndices() (used [256]bool) {
	if ra.hdr.depth == 8 {
		for _, v := range ra.pix {
			used[v] = true
		}
		return used
	}
	ra.eachRow(func(p pass, row []byte) {
		for x := 0; x < p.width; x++ {
			used[sampleAt(row, x, ra.hdr.depth)] = true
		}
	})
	return used
}

// eachRow calls fn with every scanline in the order they are stored.
func (ra *raster) eachRow(fn func(p pass, row []byte)) {
	pix := ra.pix
	for _, p := range ra.passes {
		for y := 0; y < p.height; y++ {
			fn(p, pix[:p.rowBytes:p.rowBytes])
			pix = pix[p.rowBytes:]
		}
	}
}

// sampleAt gives sample x of a row of one channel with 1, 2, 4 or 8 bits.
func sampleAt(row []byte, x int, depth uint8) uint8 {
	if depth == 8 {
		return row[x]
	}
	bit := x * int(depth)
	return row[bit>>3] >> (8 - int(depth) - bit&7) & (1<<depth - 1)
}

// sampleBands is how many stretches of rows a sample has.
const sampleBands = 8

// sample gives a picture of bands of rows out of ra, spread evenly over it,
// of about size bytes; or ra itself where that is not much less, or size is 0.
// Every band is a pass of its own.
func (ra *raster) sample(size int) *raster {
	if size == 0 || len(ra.pix) < 2*size {
		return ra
	}
	r := &raster{hdr: ra.hdr, plte: ra.plte, trns: ra.trns, table: ra.table}
	share := int64(len(ra.pix)) / int64(size) // one band in so many rows
	r.pix = make([]byte, 0, size+sampleBands*ra.widest()*len(ra.passes))
	pix, row := ra.pix, 0
	for _, p := range ra.passes {
		bands := min(sampleBands, p.height)
		for i := range bands {
			from, to := p.height*i/bands, p.height*(i+1)/bands
			n := max(1, int(int64(to-from)/share))
			r.passes = append(r.passes, pass{p.width, n, p.rowBytes})
			r.pix = append(r.pix, pix[from*p.rowBytes:(from+n)*p.rowBytes]...)
			if len(ra.stored) > 0 {
				r.stored = append(r.stored, ra.stored[row+from:row+from+n]...)
			}
		}
		pix, row = pix[p.height*p.rowBytes:], row+p.height
	}
	return r
}
