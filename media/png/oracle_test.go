package png

import (
	"bytes"
	"image"
	"image/color"
	stdpng "image/png"
	"testing"
)

// samePixels compares two files with the standard library's decoder, which
// shares no code with this package.
func samePixels(t *testing.T, a, b []byte) {
	t.Helper()
	ia, err := stdpng.Decode(bytes.NewReader(a))
	if err != nil {
		t.Fatalf("the oracle refuses the input: %v", err)
	}
	ib, err := stdpng.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("the oracle refuses the output: %v", err)
	}
	if ia.Bounds() != ib.Bounds() {
		t.Fatalf("bounds %v became %v", ia.Bounds(), ib.Bounds())
	}
	for y := 0; y < ia.Bounds().Dy(); y++ {
		for x := 0; x < ia.Bounds().Dx(); x++ {
			if ca, cb := straight(ia, x, y), straight(ib, x, y); ca != cb {
				t.Fatalf("pixel %d,%d: %v became %v", x, y, ca, cb)
			}
		}
	}
}

// straight gives a pixel as 16-bit RGBA without premultiplication, so that
// the colour of transparent pixels is compared too.
func straight(m image.Image, x, y int) color.NRGBA64 {
	switch c := m.At(x, y).(type) {
	case color.NRGBA:
		return color.NRGBA64{uint16(c.R) * 0x101, uint16(c.G) * 0x101, uint16(c.B) * 0x101, uint16(c.A) * 0x101}
	case color.NRGBA64:
		return c
	default:
		r, g, b, a := c.RGBA()
		if a != 0xffff {
			panic("an opaque colour model with alpha")
		}
		return color.NRGBA64{uint16(r), uint16(g), uint16(b), uint16(a)}
	}
}
