package png

import "slices"

// A reduction stores the same picture with fewer bits per pixel. Each takes
// a raster and gives another one, or nil where it does not apply. Those that take samples out
// of pixels (narrow, dropAlpha, alphaToKey, toGray) write the others over them: the raster that
// they were given is of no use then. The others leave it as it is. That a reduction is exact does not rest on this
// code alone: what comes out is compared with the original pixel by pixel.

// fetters says which reductions the chunks of a file rule out.
type fetters struct {
	all     bool // nothing may change
	gray    bool // colour may not become gray, nor gray colour
	palette bool // PLTE may not come, go or change
}

// findFetters reads them off the chunks.
func findFetters(f *file) fetters {
	var fe fetters
	// pCAL gives a meaning to sample values (PNG extensions, 3.1).
	fe.all = f.has("pCAL")
	// An ICC profile is for gray or for colour (PNG, 11.3.2.3); cICP with RGB
	// matrix coefficients is for colour.
	fe.gray = f.has("iCCP") || f.has("cICP")
	// hIST counts the entries of the palette; PLTE of a truecolour picture is a
	// suggestion that would be lost.
	fe.palette = f.has("hIST") || f.plte != nil && f.hdr.ctype != indexed
	return fe
}

// reductions gives the forms of a picture worth trying, the raster itself
// first when nothing smaller holds it. Between direct samples and a palette it
// depends on the picture which one deflates better, so both are given.
func reductions(f *file, ra *raster) []*raster {
	fe := findFetters(f)
	if fe.all {
		return []*raster{ra}
	}
	t := newTranslator(f)
	if ra.hdr.ctype == indexed {
		return reducePalette(ra, t, fe)
	}
	direct := ra
	try := func(reduce func(*raster, *translator) *raster) {
		if r := reduce(direct, t); r != nil {
			direct = r
		}
	}
	try(narrow)
	try(dropAlpha)
	try(alphaToKey)
	if !fe.gray && f.plte == nil {
		try(toGray)
	}
	wide := direct
	try(narrowGray)
	list := []*raster{direct}
	if !fe.palette && !(fe.gray && wide.hdr.ctype.isGray()) {
		// wide may lack an alpha channel that a palette would hold as well.
		if r := toPalette(wide, t); r != nil && r.hdr.bitsPerPixel() < direct.hdr.bitsPerPixel() {
			list = append(list, withOrders(r)...)
		}
	}
	return list
}

func reducePalette(ra *raster, t *translator, fe fetters) []*raster {
	if fe.palette {
		return []*raster{ra}
	}
	if r := shrinkPalette(ra, t); r != nil {
		ra = r
	}
	list := withOrders(ra)
	if !fe.gray {
		if r := paletteToGray(ra, t); r != nil {
			list = append(list, r)
		}
	}
	if r := paletteToDirect(ra, t, !fe.gray); r != nil && !(fe.gray && r.hdr.ctype.isGray()) {
		list = append(list, r)
	}
	return list
}

// withOrders gives an indexed picture and the same with other orders of its
// palette. With fewer bits indices are packed, and of their order only the first one matters.
func withOrders(ra *raster) []*raster {
	list := []*raster{ra}
	var orders [][]int
	if ra.hdr.depth < 8 {
		orders = [][]int{ra.edgeSwapped()}
	} else {
		orders = [][]int{byLuma(ra.entries()), ra.edgeFirst(ra.byNeighbours())}
	}
	for _, order := range orders {
		if r := ra.reordered(order); r != nil {
			list = append(list, r)
		}
	}
	return list
}

// like gives a raster of the same size with another form and room for its samples.
func (ra *raster) like(t colourType, depth uint8) *raster {
	r, n := ra.form(t, depth)
	r.pix = make([]byte, n)
	return r
}

// within gives a raster of the same size with another form of fewer bytes, in the memory of the samples of ra. Written from the first
// sample to the last they do not overtake those that are read.
func (ra *raster) within(t colourType, depth uint8) *raster {
	r, n := ra.form(t, depth)
	r.pix, r.stored = ra.pix[:n], ra.stored
	return r
}

// form gives a raster of the same size with another form, and the number of bytes of its samples.
func (ra *raster) form(t colourType, depth uint8) (r *raster, n int) {
	h := ra.hdr
	h.ctype, h.depth = t, depth
	r = &raster{hdr: h, passes: h.passes()}
	for _, p := range r.passes {
		n += p.rowBytes * p.height
	}
	return r, n
}

// narrow stores 16 bits as 8, where the halves of every sample are equal
// (v * 257): the values are the same after scaling.
func narrow(ra *raster, t *translator) *raster {
	if ra.hdr.depth != 16 || !t.fits(ra.hdr.ctype, 8) {
		return nil
	}
	for i := 0; i < len(ra.pix); i += 2 {
		if ra.pix[i] != ra.pix[i+1] {
			return nil
		}
	}
	r := ra.within(ra.hdr.ctype, 8)
	for i := range r.pix {
		r.pix[i] = ra.pix[2*i]
	}
	if ra.trns != nil {
		// A key that is not a multiple of 257 matches no pixel and can go.
		key := make([]byte, 0, len(ra.trns))
		for i := 0; i < len(ra.trns); i += 2 {
			if ra.trns[i] != ra.trns[i+1] {
				return r
			}
			key = append(key, 0, ra.trns[i])
		}
		r.trns = key
	}
	return r
}

// dropAlpha removes an alpha channel that is opaque everywhere.
func dropAlpha(ra *raster, t *translator) *raster {
	if !ra.hdr.ctype.hasAlpha() || !t.fits(ra.hdr.ctype&^4, ra.hdr.depth) {
		return nil
	}
	n, size := ra.hdr.ctype.channels(), int(ra.hdr.depth)/8
	px := n * size
	for i := px - size; i < len(ra.pix); i += px {
		if ra.pix[i] != 0xff || ra.pix[i+size-1] != 0xff {
			return nil
		}
	}
	return ra.withoutAlpha(px, size)
}

// withoutAlpha copies the other channels. Pixels have px bytes, samples size.
func (ra *raster) withoutAlpha(px, size int) *raster {
	r := ra.within(ra.hdr.ctype&^4, ra.hdr.depth)
	out, keep := r.pix, px-size
	if px == 4 && size == 1 {
		for p := ra.pix; len(p) >= 4 && len(out) >= 3; p, out = p[4:], out[3:] {
			out[0], out[1], out[2] = p[0], p[1], p[2]
		}
		return r
	}
	for i := 0; i < len(ra.pix); i += px {
		copy(out[:keep], ra.pix[i:])
		out = out[keep:]
	}
	return r
}

// alphaToKey turns an alpha channel into tRNS, where every pixel is
// either opaque or fully transparent, the transparent ones have all the
// same colour, and no opaque one has it.
func alphaToKey(ra *raster, t *translator) *raster {
	if !ra.hdr.ctype.hasAlpha() || !t.fits(ra.hdr.ctype&^4, ra.hdr.depth) {
		return nil
	}
	n, size := ra.hdr.ctype.channels(), int(ra.hdr.depth)/8
	px := n * size
	keep := px - size
	var key []byte
	for i := 0; i < len(ra.pix); i += px {
		a := ra.pix[i+keep]
		if a != ra.pix[i+px-1] || a != 0 && a != 0xff {
			return nil
		}
		if a == 0 {
			if key == nil {
				key = ra.pix[i : i+keep]
			} else if string(key) != string(ra.pix[i:i+keep]) {
				return nil
			}
		}
	}
	for i := 0; i < len(ra.pix); i += px {
		if ra.pix[i+keep] != 0 && string(key) == string(ra.pix[i:i+keep]) {
			return nil
		}
	}
	key = slices.Clone(key) // it lies in what is written over
	r := ra.withoutAlpha(px, size)
	for i := 0; i < keep; i += size {
		if size == 1 {
			r.trns = append(r.trns, 0)
		}
		r.trns = append(r.trns, key[i:i+size]...)
	}
	return r
}

// toGray stores colours whose red, green and blue are equal everywhere as
// one sample.
func toGray(ra *raster, t *translator) *raster {
	if ra.hdr.ctype.isGray() || ra.hdr.ctype == indexed || !t.fits(ra.hdr.ctype&^2, ra.hdr.depth) {
		return nil
	}
	n, size := ra.hdr.ctype.channels(), int(ra.hdr.depth)/8
	px := n * size
	for i := 0; i < len(ra.pix); i += px {
		p := ra.pix[i : i+px]
		if p[0] != p[size] || p[0] != p[2*size] || p[size-1] != p[2*size-1] || p[size-1] != p[3*size-1] {
			return nil
		}
	}
	r := ra.within(ra.hdr.ctype&^2, ra.hdr.depth)
	out := r.pix
	for i := 0; i < len(ra.pix); i += px {
		copy(out, ra.pix[i:i+size])
		copy(out[size:], ra.pix[i+3*size:i+px])
		out = out[px-2*size:]
	}
	if k := ra.trns; k != nil && string(k[:2]) == string(k[2:4]) && string(k[:2]) == string(k[4:]) {
		r.trns = k[:2:2] // another key matches no gray pixel and can go
	}
	return r
}

// narrowGray stores gray of 8 bits or less with fewer, where every sample is a
// multiple that scaling restores.
func narrowGray(ra *raster, t *translator) *raster {
	if ra.hdr.ctype != gray || ra.hdr.depth == 16 || ra.hdr.depth == 1 {
		return nil
	}
	used := ra.usedIndices()
	// A key that no pixel has can go.
	hasKey := ra.trns != nil && used[ra.trns[1]]
	for depth := uint8(1); depth < ra.hdr.depth; depth *= 2 {
		step := (1<<ra.hdr.depth - 1) / (1<<depth - 1)
		fits := t.fits(gray, depth)
		for v, u := range used {
			fits = fits && (!u || v%step == 0)
		}
		if !fits {
			continue
		}
		var table [256]uint8
		for v := range table {
			table[v] = uint8(v / step)
		}
		r := ra.remap(gray, depth, &table)
		if hasKey {
			r.trns = []byte{0, table[ra.trns[1]]}
		}
		return r
	}
	return nil
}

// remap gives a raster of one channel with every sample v, which is
// below 256, stored as table[v] with another depth of at most 8 bits.
func (ra *raster) remap(t colourType, depth uint8, table *[256]uint8) *raster {
	r := ra.like(t, depth)
	out := r.pix
	at, rows := 0, 0
	ra.eachRow(func(p pass, row []byte) {
		if rows == r.passes[at].height {
			at, rows = at+1, 0
		}
		n := r.passes[at].rowBytes
		for x := 0; x < p.width; x++ {
			putSample(out[:n], x, depth, table[sampleAt(row, x, ra.hdr.depth)])
		}
		out = out[n:]
		rows++
	})
	return r
}

// putSample is the inverse of sampleAt, on a row that was zero.
func putSample(row []byte, x int, depth, v uint8) {
	if depth == 8 {
		row[x] = v
		return
	}
	bit := x * int(depth)
	row[bit>>3] |= v << (8 - int(depth) - bit&7)
}
