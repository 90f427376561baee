package png

import "encoding/binary"

// colour is a pixel as PNG defines it (13.7 to 13.12): red, green, blue,
// alpha, scaled to 16 bits, not premultiplied.
type colour [4]uint16

// expander gives the colours of the pixels of stored rows.
type expander struct {
	hdr     header
	palette [256]colour // indexed only
	key     colour      // of tRNS, scaled; alpha is opaque
	keyed   bool
}

func newExpander(f *file) *expander {
	e := &expander{hdr: f.hdr}
	switch f.hdr.ctype {
	case indexed:
		for i := 0; i < len(f.plte)/3; i++ {
			c := colour{scale8(f.plte[3*i]), scale8(f.plte[3*i+1]), scale8(f.plte[3*i+2]), 0xffff}
			if i < len(f.trns) {
				c[3] = scale8(f.trns[i])
			}
			e.palette[i] = c
		}
	case gray, rgb:
		if f.trns != nil {
			e.keyed, e.key = true, chunkColour(f.hdr, f.trns)
		}
	}
	return e
}

// at gives pixel x of a row.
func (e *expander) at(row []byte, x int) colour {
	n := e.hdr.ctype.channels()
	switch {
	case e.hdr.ctype == indexed:
		return e.palette[sampleAt(row, x, e.hdr.depth)]
	case e.hdr.depth < 8:
		v := scale(uint16(sampleAt(row, x, e.hdr.depth)), e.hdr.depth)
		return e.keyOut(colour{v, v, v, 0xffff})
	}
	var s [4]uint16
	for i := range n {
		if e.hdr.depth == 16 {
			s[i] = binary.BigEndian.Uint16(row[2*(x*n+i):])
		} else {
			s[i] = scale8(row[x*n+i])
		}
	}
	switch e.hdr.ctype {
	case gray:
		return e.keyOut(colour{s[0], s[0], s[0], 0xffff})
	case rgb:
		return e.keyOut(colour{s[0], s[1], s[2], 0xffff})
	case grayAlpha:
		return colour{s[0], s[0], s[0], s[1]}
	}
	return s
}

func (e *expander) keyOut(c colour) colour {
	if e.keyed && c == e.key {
		c[3] = 0
	}
	return c
}

func scale8(v uint8) uint16 { return uint16(v) * 0x101 }

// scale brings a sample of 1 to 16 bits to 16 bits; exact for all depths of PNG.
func scale(v uint16, depth uint8) uint16 {
	return uint16(uint32(v) * 0xffff / (1<<depth - 1))
}

// chunkColour reads the colour of a tRNS or bKGD chunk that holds samples,
// not an index.
func chunkColour(h header, data []byte) colour {
	v := func(i int) uint16 { return scale(binary.BigEndian.Uint16(data[2*i:]), h.depth) }
	if h.ctype.isGray() {
		return colour{v(0), v(0), v(0), 0xffff}
	}
	return colour{v(0), v(1), v(2), 0xffff}
}

// background gives the colour of bKGD, and whether there is one.
func (f *file) background() (colour, bool) {
	c := f.find("bKGD")
	if c == nil {
		return colour{}, false
	}
	if f.hdr.ctype == indexed {
		p := f.plte[3*int(c.data[0]):]
		return colour{scale8(p[0]), scale8(p[1]), scale8(p[2]), 0xffff}, true
	}
	return chunkColour(f.hdr, c.data), true
}
