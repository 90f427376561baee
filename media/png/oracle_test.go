package png

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/color"
	stdpng "image/png"
	"slices"
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

// sameChunks compares the chunks of two files, the second one ours, with a
// walk that shares no code with this package.
func sameChunks(t *testing.T, a, b []byte) {
	t.Helper()
	ca, cb := oracleChunks(t, a), oracleChunks(t, b)
	side := func(list []oracleChunk) (before, after []string, bkgd, sbit int) {
		seen := false
		for _, c := range list {
			switch c.name {
			case "IHDR", "PLTE", "tRNS":
			case "bKGD":
				bkgd++
			case "sBIT":
				sbit++
			case "IDAT":
				seen = true
			default:
				if s := c.name + string(c.data); seen {
					after = append(after, s)
				} else {
					before = append(before, s)
				}
			}
		}
		return before, after, bkgd, sbit
	}
	b1, a1, k1, s1 := side(ca)
	b2, a2, k2, s2 := side(cb)
	if !slices.Equal(b1, b2) || !slices.Equal(a1, a2) || k1 != k2 || s1 != s2 {
		t.Fatalf("chunks before and after the image data changed: %q %q (%d bKGD, %d sBIT), now %q %q (%d, %d)", b1, a1, k1, s1, b2, a2, k2, s2)
	}
	if ka, kb := oracleBackground(ca), oracleBackground(cb); ka != kb {
		t.Fatalf("background %v became %v", ka, kb)
	}
	// Where PNG wants a chunk in front of PLTE or behind it.
	plte := slices.IndexFunc(cb, func(c oracleChunk) bool { return c.name == "PLTE" })
	idat := slices.IndexFunc(cb, func(c oracleChunk) bool { return c.name == "IDAT" })
	for i, c := range cb {
		switch c.name {
		case "cHRM", "gAMA", "iCCP", "sBIT", "sRGB", "cICP", "mDCV", "cLLI":
			if plte >= 0 && i > plte || i > idat {
				t.Fatalf("%s is chunk %d, PLTE %d, IDAT %d", c.name, i, plte, idat)
			}
		case "bKGD", "hIST", "tRNS":
			if i < plte || i > idat {
				t.Fatalf("%s is chunk %d, PLTE %d, IDAT %d", c.name, i, plte, idat)
			}
		}
	}
}

type oracleChunk struct {
	name string
	data []byte
}

func oracleChunks(t *testing.T, file []byte) (list []oracleChunk) {
	t.Helper()
	for at := 8; at < len(file); {
		n := int(binary.BigEndian.Uint32(file[at:]))
		c := oracleChunk{string(file[at+4 : at+8]), file[at+8 : at+8+n]}
		if crc32.ChecksumIEEE(file[at+4:at+8+n]) != binary.BigEndian.Uint32(file[at+8+n:]) {
			t.Fatalf("chunk %s at %d has a wrong CRC", c.name, at)
		}
		list = append(list, c)
		at += 12 + n
	}
	return list
}

// oracleBackground gives the colour of bKGD with samples between 0 and 1.
func oracleBackground(list []oracleChunk) (rgb [3]float64) {
	var depth, colour byte
	var plte []byte
	for _, c := range list {
		switch c.name {
		case "IHDR":
			depth, colour = c.data[8], c.data[9]
		case "PLTE":
			plte = c.data
		case "bKGD":
			for i := range rgb {
				switch colour {
				case 3:
					rgb[i] = float64(plte[3*int(c.data[0])+i]) / 255
				case 0, 4:
					rgb[i] = float64(binary.BigEndian.Uint16(c.data)) / float64(uint(1)<<depth-1)
				default:
					rgb[i] = float64(binary.BigEndian.Uint16(c.data[2*i:])) / float64(uint(1)<<depth-1)
				}
			}
		}
	}
	return rgb
}
