package png

import (
	"encoding/binary"
	"fmt"
)

// colourType is the colour type of IHDR (PNG, 11.2.1).
type colourType uint8

const (
	gray      colourType = 0
	rgb       colourType = 2
	indexed   colourType = 3
	grayAlpha colourType = 4
	rgba      colourType = 6
)

func (t colourType) String() string {
	switch t {
	case gray:
		return "gray"
	case rgb:
		return "rgb"
	case indexed:
		return "palette"
	case grayAlpha:
		return "gray+alpha"
	case rgba:
		return "rgba"
	}
	return fmt.Sprintf("colour type %d", uint8(t))
}

func (t colourType) channels() int {
	switch t {
	case rgb:
		return 3
	case grayAlpha:
		return 2
	case rgba:
		return 4
	}
	return 1
}

func (t colourType) hasAlpha() bool { return t == grayAlpha || t == rgba }
func (t colourType) isGray() bool   { return t == gray || t == grayAlpha }

// header is IHDR. A header that came from parseHeader or from a reduction is
// valid: width and height are 1..2^31-1 and depth fits the colour type.
type header struct {
	width, height int
	depth         uint8
	ctype         colourType
	interlaced    bool
}

const headerLen = 13

func parseHeader(data []byte) (header, *refusal) {
	if len(data) != headerLen {
		return header{}, refuse(ReasonBadHeader, "IHDR has %d bytes, not %d", len(data), headerLen)
	}
	w, h := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
	if w == 0 || h == 0 || w > 1<<31-1 || h > 1<<31-1 {
		return header{}, refuse(ReasonBadHeader, "IHDR gives %d x %d pixels; both must be 1 to 2^31-1", w, h)
	}
	hdr := header{width: int(w), height: int(h), depth: data[8], ctype: colourType(data[9])}
	if !hdr.depthAllowed() {
		return header{}, refuse(ReasonBadHeader, "IHDR gives depth %d for colour type %d, which PNG does not define", data[8], data[9])
	}
	if data[10] != 0 || data[11] != 0 || data[12] > 1 {
		return header{}, refuse(ReasonBadHeader, "IHDR gives compression %d, filter %d, interlace %d, which PNG does not define",
			data[10], data[11], data[12])
	}
	hdr.interlaced = data[12] == 1
	return hdr, nil
}

// depthAllowed is table 11.1 of PNG.
func (h header) depthAllowed() bool {
	switch h.ctype {
	case gray:
		return h.depth == 1 || h.depth == 2 || h.depth == 4 || h.depth == 8 || h.depth == 16
	case indexed:
		return h.depth == 1 || h.depth == 2 || h.depth == 4 || h.depth == 8
	case rgb, grayAlpha, rgba:
		return h.depth == 8 || h.depth == 16
	}
	return false
}

func (h header) encode() []byte {
	b := make([]byte, headerLen)
	binary.BigEndian.PutUint32(b, uint32(h.width))
	binary.BigEndian.PutUint32(b[4:], uint32(h.height))
	b[8], b[9] = h.depth, uint8(h.ctype)
	if h.interlaced {
		b[12] = 1
	}
	return b
}

func (h header) bitsPerPixel() int { return h.ctype.channels() * int(h.depth) }

// filterDistance is how many bytes back a filter looks for the same sample of
// the pixel before (PNG, 9.2): at least 1.
func (h header) filterDistance() int { return (h.bitsPerPixel() + 7) / 8 }

func (h header) rowBytes(width int) int {
	return int((int64(width)*int64(h.bitsPerPixel()) + 7) / 8)
}

// maxSample is the largest sample value.
func (h header) maxSample() uint16 { return uint16(1<<h.depth - 1) }

// pass is one reduced image of an interlaced picture, or the whole picture of
// another. It is never empty: passes without pixels have no scanlines.
type pass struct {
	width, height int
	rowBytes      int
}

// passes lists the reduced images in the order they are stored (PNG, 8.2).
func (h header) passes() []pass {
	if !h.interlaced {
		return []pass{{h.width, h.height, h.rowBytes(h.width)}}
	}
	adam7 := [7]struct{ x, y, dx, dy int }{
		{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2},
	}
	var ps []pass
	for _, a := range adam7 {
		w := (h.width - a.x + a.dx - 1) / a.dx
		n := (h.height - a.y + a.dy - 1) / a.dy
		if w > 0 && n > 0 {
			ps = append(ps, pass{w, n, h.rowBytes(w)})
		}
	}
	return ps
}

// rawSize is the length of the inflated IDAT stream, or an unspecified
// value above limit as soon as it is beyond.
func (h header) rawSize(limit int64) int64 {
	var n int64
	for _, p := range h.passes() {
		row := int64(p.rowBytes) + 1
		if int64(p.height) > limit/row {
			return limit + 1
		}
		if n += row * int64(p.height); n > limit {
			return n
		}
	}
	return n
}
