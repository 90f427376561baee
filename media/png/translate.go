package png

import "encoding/binary"

// translator says what becomes of the chunks that depend on how samples
// are stored: bKGD and sBIT.
type translator struct {
	src     *file
	hasBKGD bool
	bkgd    colour
	// sbit has the significant bits of red, green, blue and alpha; gray is
	// all three colours. nil without sBIT.
	sbit []uint8
}

func newTranslator(f *file) *translator {
	t := &translator{src: f}
	t.bkgd, t.hasBKGD = f.background()
	if c := f.find("sBIT"); c != nil {
		s := c.data
		switch f.hdr.ctype {
		case gray:
			t.sbit = []uint8{s[0], s[0], s[0], f.hdr.depth}
		case grayAlpha:
			t.sbit = []uint8{s[0], s[0], s[0], s[1]}
		case rgba:
			t.sbit = s
		default:
			t.sbit = []uint8{s[0], s[1], s[2], max(f.hdr.depth, 8)}
		}
	}
	return t
}

// fits tells whether both chunks can say the same with another colour type
// and depth. For a palette it is taken that the background has an entry.
func (t *translator) fits(ct colourType, depth uint8) bool {
	if t.hasBKGD {
		bits := depth
		if ct == indexed {
			bits = 8
		}
		step := uint16(0xffff / (1<<bits - 1))
		for _, v := range t.bkgd[:3] {
			if v%step != 0 || ct.isGray() && v != t.bkgd[0] {
				return false
			}
		}
	}
	if t.sbit != nil {
		if ct.isGray() && (t.sbit[0] != t.sbit[1] || t.sbit[0] != t.sbit[2]) {
			return false
		}
		// Without an alpha channel sBIT cannot say that alpha is coarse.
		if !ct.hasAlpha() && t.sbit[3] < 8 {
			return false
		}
	}
	return true
}

// chunk gives what becomes of bKGD or sBIT of the source in the form of ra.
func (t *translator) chunk(c chunk, ra *raster) chunk {
	if ra.hdr == t.src.hdr && string(ra.plte) == string(t.src.plte) {
		return c
	}
	switch c.typ {
	case "bKGD":
		return chunk{c.typ, t.encodeBKGD(ra)}
	case "sBIT":
		return chunk{c.typ, t.encodeSBIT(ra.hdr)}
	}
	return c
}

func (t *translator) encodeBKGD(ra *raster) []byte {
	if ra.hdr.ctype == indexed {
		if i := findEntry(ra.plte, t.bkgd); i >= 0 {
			return []byte{byte(i)}
		}
		return nil // refused by the parser that checks the output
	}
	n := 3
	if ra.hdr.ctype.isGray() {
		n = 1
	}
	var data []byte
	for _, v := range t.bkgd[:n] {
		data = binary.BigEndian.AppendUint16(data, v/(0xffff/(1<<ra.hdr.depth-1)))
	}
	return data
}

// encodeSBIT gives the significant bits of the channels there are. A depth
// that is smaller has no more significant bits than its own.
func (t *translator) encodeSBIT(h header) []byte {
	var data []byte
	switch h.ctype {
	case gray:
		data = append(data, t.sbit[0])
	case grayAlpha:
		data = append(data, t.sbit[0], t.sbit[3])
	case rgba:
		data = append(data, t.sbit...)
	default:
		data = append(data, t.sbit[:3]...)
	}
	most := h.depth
	if h.ctype == indexed {
		most = 8
	}
	for i, v := range data {
		data[i] = min(v, most)
	}
	return data
}

// findEntry gives the first entry of a palette with the red, green and blue of
// a colour, or -1.
func findEntry(plte []byte, c colour) int {
	for i := 0; i < len(plte)/3; i++ {
		if scale8(plte[3*i]) == c[0] && scale8(plte[3*i+1]) == c[1] && scale8(plte[3*i+2]) == c[2] {
			return i
		}
	}
	return -1
}
