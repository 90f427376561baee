package png

import "slices"

// entry is a colour of a palette: red, green, blue, alpha from the lowest byte up.
type entry uint32

func newEntry(r, g, b, a uint8) entry {
	return entry(r) | entry(g)<<8 | entry(b)<<16 | entry(a)<<24
}

func (e entry) opaque() bool { return e>>24 == 0xff }

// luma is the brightness, scaled by 1000.
func (e entry) luma() int { return 299*int(e&0xff) + 587*int(e>>8&0xff) + 114*int(e>>16&0xff) }

// setPalette stores entries as PLTE and tRNS. Those that are not opaque come
// first, so that tRNS is short.
func (ra *raster) setPalette(entries []entry) {
	ra.plte = make([]byte, 0, 3*len(entries))
	ra.trns = nil
	for i, e := range entries {
		ra.plte = append(ra.plte, uint8(e), uint8(e>>8), uint8(e>>16))
		if !e.opaque() {
			for len(ra.trns) < i {
				ra.trns = append(ra.trns, 0xff)
			}
			ra.trns = append(ra.trns, uint8(e>>24))
		}
	}
}

// entries gives PLTE and tRNS as colours.
func (ra *raster) entries() []entry {
	list := make([]entry, len(ra.plte)/3)
	for i := range list {
		a := uint8(0xff)
		if i < len(ra.trns) {
			a = ra.trns[i]
		}
		list[i] = newEntry(ra.plte[3*i], ra.plte[3*i+1], ra.plte[3*i+2], a)
	}
	return list
}

// paletteDepth is the smallest depth that has n indices.
func paletteDepth(n int) uint8 {
	for depth := uint8(1); depth < 8; depth *= 2 {
		if n <= 1<<depth {
			return depth
		}
	}
	return 8
}

// colourSet numbers up to 256 colours in the order they come.
type colourSet struct {
	slots [1024]struct {
		e  entry
		no int16 // 1 + number; 0 is free
	}
	list []entry
}

// number gives a colour's number, or -1 when it would be the 257th.
func (s *colourSet) number(e entry) int {
	i := uint32(e) * 0x9e3779b1 >> 22
	for s.slots[i].no != 0 {
		if s.slots[i].e == e {
			return int(s.slots[i].no) - 1
		}
		i = (i + 1) % uint32(len(s.slots))
	}
	if len(s.list) == 256 {
		return -1
	}
	s.list = append(s.list, e)
	s.slots[i].e, s.slots[i].no = e, int16(len(s.list))
	return len(s.list) - 1
}

// toPalette stores a picture of 8 bits per sample that has at most 256
// colours as indices.
func toPalette(ra *raster, t *translator) *raster {
	if ra.hdr.depth != 8 || ra.hdr.ctype == indexed || !t.fits(indexed, 8) {
		return nil
	}
	set := new(colourSet)
	if !ra.eachColour(func(e entry) bool { return set.number(e) >= 0 }) {
		return nil
	}
	if t.hasBKGD {
		e := newEntry(uint8(t.bkgd[0]), uint8(t.bkgd[1]), uint8(t.bkgd[2]), 0xff)
		if !slices.ContainsFunc(set.list, func(o entry) bool { return o&0xffffff == e&0xffffff }) && set.number(e) < 0 {
			return nil
		}
	}
	order := make([]entry, len(set.list))
	var place [256]uint8
	for to, from := range byLuma(set.list) {
		order[to] = set.list[from]
		place[from] = uint8(to)
	}
	// One byte per pixel first; remap packs it where the depth is smaller.
	r := ra.like(indexed, 8)
	out := r.pix
	ra.eachColour(func(e entry) bool {
		out[0] = place[set.number(e)]
		out = out[1:]
		return true
	})
	if depth := paletteDepth(len(order)); depth < 8 {
		r = r.remap(indexed, depth, &identity)
	}
	r.setPalette(order)
	return r
}

var identity = func() (t [256]uint8) {
	for i := range t {
		t[i] = uint8(i)
	}
	return t
}()

// eachColour calls fn with every pixel of a picture of 8 bits per sample that
// has no palette, until it says false; it tells whether it did not.
func (ra *raster) eachColour(fn func(entry) bool) bool {
	n := ra.hdr.ctype.channels()
	key, keyed := entry(0), ra.trns != nil
	if keyed {
		if n == 1 {
			key = newEntry(ra.trns[1], ra.trns[1], ra.trns[1], 0xff)
		} else {
			key = newEntry(ra.trns[1], ra.trns[3], ra.trns[5], 0xff)
		}
	}
	for p := ra.pix; len(p) > 0; p = p[n:] {
		var e entry
		switch n {
		case 1:
			e = newEntry(p[0], p[0], p[0], 0xff)
		case 2:
			e = newEntry(p[0], p[0], p[0], p[1])
		case 3:
			e = newEntry(p[0], p[1], p[2], 0xff)
		default:
			e = newEntry(p[0], p[1], p[2], p[3])
		}
		if keyed && e == key {
			e &= 0xffffff
		}
		if !fn(e) {
			return false
		}
	}
	return true
}

// shrinkPalette removes entries that no pixel uses and joins those that are
// alike, in their order, but with the transparent ones first.
func shrinkPalette(ra *raster, t *translator) *raster {
	used := ra.usedIndices()
	old := ra.entries()
	if c := t.src.find("bKGD"); c != nil {
		used[c.data[0]] = true
	}
	var list []entry
	for _, opaque := range []bool{false, true} {
		for i, e := range old {
			if used[i] && e.opaque() == opaque && !slices.Contains(list, e) {
				list = append(list, e)
			}
		}
	}
	depth := paletteDepth(len(list))
	if len(list) == len(old) && depth == ra.hdr.depth && slices.Equal(list, old) {
		return nil
	}
	var table [256]uint8
	for i, e := range old {
		table[i] = uint8(max(0, slices.Index(list, e)))
	}
	r := ra.remap(indexed, depth, &table)
	r.setPalette(list)
	if slices.Equal(list, old[:min(len(list), len(old))]) && depth == ra.hdr.depth {
		r.stored = ra.stored // the same samples
	}
	return r
}

// paletteToGray stores indices as the gray they stand for, where all of
// them are gray and at most one is transparent, which becomes the key.
func paletteToGray(ra *raster, t *translator) *raster {
	if !t.fits(gray, 8) {
		return nil
	}
	used := ra.usedIndices()
	var table, owner [256]uint8 // owner: 1 opaque, 2 the key
	key := -1
	for i, e := range ra.entries() {
		v := uint8(e)
		table[i] = v
		if !used[i] {
			continue
		}
		if e&0xffffff != newEntry(v, v, v, 0) {
			return nil
		}
		kind := uint8(1)
		if !e.opaque() {
			if e>>24 != 0 || key >= 0 && key != int(v) {
				return nil
			}
			kind, key = 2, int(v)
		}
		if owner[v]|kind == 3 {
			return nil // an opaque pixel has the colour of the key
		}
		owner[v] = kind
	}
	r := ra.remap(gray, 8, &table)
	if key >= 0 {
		r.trns = []byte{0, uint8(key)}
	}
	if n := narrowGray(r, t); n != nil {
		return n
	}
	return r
}

// paletteToDirect stores indices as the colours they stand for, where the
// picture is so small, or its colours are so plain, that it may need less without a
// palette: gray and alpha, or few pixels.
func paletteToDirect(ra *raster, t *translator, colour bool) *raster {
	used := ra.usedIndices()
	isGray, opaque := true, true
	pixels := 0
	for _, p := range ra.passes {
		pixels += p.width * p.height
	}
	list := ra.entries()
	for i, e := range list {
		if used[i] {
			v := uint8(e)
			isGray = isGray && e&0xffffff == newEntry(v, v, v, 0)
			opaque = opaque && e.opaque()
		}
	}
	ct := rgba
	switch {
	case isGray && opaque:
		return nil // paletteToGray
	case isGray && t.fits(grayAlpha, 8) && pixels <= maxDirect/2:
		ct = grayAlpha
	case !colour || pixels > directPixels*len(list):
		return nil
	case opaque:
		ct = rgb
	}
	if !t.fits(ct, 8) {
		return nil
	}
	r := ra.like(ct, 8)
	n := ct.channels()
	out := r.pix
	ra.eachRow(func(p pass, row []byte) {
		for x := range p.width {
			e := list[sampleAt(row, x, ra.hdr.depth)]
			switch ct {
			case grayAlpha:
				out[0], out[1] = uint8(e), uint8(e>>24)
			case rgba:
				out[3] = uint8(e >> 24)
				fallthrough
			default:
				out[0], out[1], out[2] = uint8(e), uint8(e>>8), uint8(e>>16)
			}
			out = out[n:]
		}
	})
	return r
}

const (
	// directPixels is up to how many pixels for each entry of its palette a
	// picture is tried without it.
	directPixels = 64
	// maxDirect bounds the bytes of a picture that takes more without its palette.
	maxDirect = 1 << 20
)
