package png

import (
	"fmt"
	"strings"
	"testing"
)

// mixed gives 256 values without much of a pattern.
func mixed(x, y, c int) uint16 {
	v := uint32(x)<<20 ^ uint32(y)<<8 ^ uint32(c)
	for range 3 {
		v = (v ^ v>>15) * 2246822519
	}
	return uint16(v >> 16 & 0xff)
}

func TestReductions(t *testing.T) {
	grays := []byte{0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255}
	twoColours := func(x, y, c int) uint16 {
		return [2][4]uint16{{9, 80, 7, 255}, {200, 10, 30, 255}}[mixed(x, y, 0)&1][c]
	}
	for _, s := range []struct {
		name   string
		ctype  colourType
		depth  uint8
		plte   []byte
		before []chunk // in front of PLTE
		middle []chunk // after PLTE
		sample func(x, y, c int) uint16
		want   string // form of the output
		extra  string // bKGD and sBIT of the output
	}{
		{name: "16 bits are 8", ctype: rgb, depth: 16, want: "rgb/8",
			sample: func(x, y, c int) uint16 { return 257 * mixed(x, y, c) }},
		{name: "16 bits are 16", ctype: rgb, depth: 16, want: "rgb/16",
			sample: func(x, y, c int) uint16 { return 257*mixed(x/8, y/8, c) + uint16((x+y)&1) }},
		{name: "16 bits with a background of 16", ctype: rgb, depth: 16, want: "rgb/16", extra: "bKGD:000100020003",
			middle: []chunk{{"bKGD", []byte{0, 1, 0, 2, 0, 3}}},
			sample: func(x, y, c int) uint16 { return 257 * mixed(x/4, y/4, c) }},
		{name: "16 bits with a background of 8", ctype: rgb, depth: 16, want: "rgb/8", extra: "sBIT:080805 bKGD:000100020003",
			before: []chunk{{"sBIT", []byte{12, 8, 5}}},
			middle: []chunk{{"bKGD", []byte{1, 1, 2, 2, 3, 3}}},
			sample: func(x, y, c int) uint16 { return 257 * mixed(x, y, c) }},
		{name: "a key of 16 bits", ctype: gray, depth: 16, want: "gray/8",
			middle: []chunk{{"tRNS", []byte{7, 7}}},
			sample: func(x, y, c int) uint16 { return 257 * mixed(x, y, c) }},
		{name: "opaque alpha", ctype: rgba, depth: 8, want: "rgb/8", extra: "sBIT:050607",
			before: []chunk{{"sBIT", []byte{5, 6, 7, 8}}},
			sample: func(x, y, c int) uint16 { return mixed(x, y, c) | uint16(c/3*255) }},
		{name: "coarse alpha by sBIT", ctype: rgba, depth: 8, want: "rgba/8", extra: "sBIT:05060701",
			before: []chunk{{"sBIT", []byte{5, 6, 7, 1}}},
			sample: func(x, y, c int) uint16 { return mixed(x/4, y/4, c) | uint16(c/3*255) }},
		{name: "opaque alpha of 16 bits", ctype: grayAlpha, depth: 16, want: "gray/16",
			sample: func(x, y, c int) uint16 { return mixed(x, y, c)<<8 | uint16(c*0xffff) | 3 }},
		{name: "alpha that is a key", ctype: rgba, depth: 8, want: "rgb/8",
			sample: func(x, y, c int) uint16 {
				if x < 20 {
					return 3 * uint16(3-c)
				}
				return mixed(x, y, c) | 16 | uint16(c/3*255)
			}},
		{name: "hidden colours", ctype: rgba, depth: 8, want: "rgba/8",
			sample: func(x, y, c int) uint16 {
				if c == 3 {
					return uint16(255 * (x / 20))
				}
				return mixed(x, y/2, c)
			}},
		{name: "colour is gray", ctype: rgb, depth: 8, want: "gray/8", extra: "bKGD:0007",
			middle: []chunk{{"bKGD", []byte{0, 7, 0, 7, 0, 7}}},
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0) }},
		{name: "gray with a profile stays colour", ctype: rgb, depth: 8, want: "palette/8",
			before: []chunk{{"iCCP", []byte("p\x00\x00")}},
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0)/2 + mixed(y, x/5, 0)&1 }},
		{name: "gray with a coloured background", ctype: rgb, depth: 8, want: "palette/8", extra: "bKGD",
			middle: []chunk{{"bKGD", []byte{0, 7, 0, 7, 0, 8}}},
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0) & 127 }},
		{name: "gray alpha", ctype: rgba, depth: 8, want: "gray+alpha/8",
			sample: func(x, y, c int) uint16 { return mixed(x, y, c/3) }},
		{name: "gray of 1 bit", ctype: rgb, depth: 8, want: "gray/1",
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0) & 1 * 255 }},
		{name: "gray of 2 bits with a key", ctype: gray, depth: 8, want: "gray/2", extra: "sBIT:02",
			before: []chunk{{"sBIT", []byte{8}}},
			middle: []chunk{{"tRNS", []byte{0, 85}}},
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0) & 3 * 85 }},
		{name: "two colours", ctype: rgba, depth: 8, want: "palette/1 (2 colours)", sample: twoColours},
		{name: "two colours and a background", ctype: rgba, depth: 8, want: "palette/2 (3 colours)", extra: "bKGD:010203",
			middle: []chunk{{"bKGD", []byte{0, 1, 0, 2, 0, 3}}}, sample: twoColours},
		{name: "two colours with a suggested palette", ctype: rgba, depth: 8, want: "rgb/8", plte: []byte{1, 2, 3}, sample: twoColours},
		{name: "unused entries", ctype: indexed, depth: 8, want: "palette/1 (2 colours)", extra: "sBIT:080807",
			before: []chunk{{"sBIT", []byte{8, 8, 7}}},
			plte:   []byte{1, 2, 3, 9, 9, 8, 200, 100, 90, 1, 2, 3},
			sample: func(x, y, c int) uint16 { return [4]uint16{0, 2, 3, 2}[mixed(x, y, 0)&3] }},
		{name: "a histogram keeps the palette", ctype: indexed, depth: 8, want: "palette/8 (3 colours)",
			plte:   []byte{1, 2, 3, 9, 9, 8, 200, 100, 90},
			middle: []chunk{{"hIST", []byte{0, 1, 0, 0, 0, 1}}},
			sample: func(x, y, c int) uint16 { return mixed(x/4, y/3, 0) & 1 * 2 }},
		{name: "an entry that is the background", ctype: indexed, depth: 8, want: "palette/2 (3 colours)", extra: "bKGD:090908",
			plte:   []byte{1, 2, 3, 4, 4, 4, 9, 9, 8, 200, 100, 90},
			middle: []chunk{{"bKGD", []byte{2}}},
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0) & 1 * 3 }},
		{name: "a gray palette", ctype: indexed, depth: 8, want: "gray/2", plte: grays,
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0) & 3 }},
		{name: "a gray palette with a key", ctype: indexed, depth: 8, want: "gray/2", plte: grays,
			middle: []chunk{{"tRNS", []byte{255, 0}}},
			sample: func(x, y, c int) uint16 { return mixed(x, y, 0) & 3 }},
		{name: "pCAL keeps the samples", ctype: gray, depth: 8, want: "gray/8",
			before: []chunk{{"pCAL", []byte("x\x00")}},
			sample: func(x, y, c int) uint16 { return mixed(x/4, y/4, 0) & 1 * 255 }},
	} {
		for _, interlaced := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", s.name, interlaced), func(t *testing.T) {
				b := build{
					hdr:  header{width: 53, height: 31, depth: s.depth, ctype: s.ctype, interlaced: interlaced},
					plte: s.plte, before: s.before, middle: s.middle, sample: s.sample, split: 999,
				}
				in := b.bytes()
				for l := Fast; l <= Best; l++ {
					if l != Default && (raceEnabled || interlaced) {
						continue
					}
					o := DefaultOptions()
					o.Level = l
					out, r := reencodeAndCheck(t, in, o)
					if out == nil {
						t.Fatalf("%v: kept: %s %s", l, r.Reason, r.Detail)
					}
					if !strings.HasPrefix(r.After.String(), s.want) {
						t.Errorf("%v: %v became %v, not %s", l, r.Before, r.After, s.want)
					}
					f, ref := parse(out)
					if ref != nil {
						t.Fatal(ref)
					}
					var extra []string
					for _, c := range f.chunks {
						if c.typ == "bKGD" || c.typ == "sBIT" {
							data := c.data
							if c.typ == "bKGD" && f.hdr.ctype == indexed { // the colour, wherever it stands
								data = f.plte[3*int(data[0]):][:3]
							}
							extra = append(extra, fmt.Sprintf("%s:%x", c.typ, data))
						}
					}
					if got := strings.Join(extra, " "); s.extra == "" && got != "" || !strings.HasPrefix(got, s.extra) {
						t.Errorf("%v: chunks %q, not %q", l, got, s.extra)
					}
					o.Reductions = false
					if _, r := reencodeAndCheck(t, in, o); r.After != r.Before {
						t.Errorf("%v: without reductions %v became %v", l, r.Before, r.After)
					}
				}
			})
		}
	}
}

// TestChunksKeepTheirPlace has one of every ancillary chunk, some twice.
func TestChunksKeepTheirPlace(t *testing.T) {
	b := plain(rgba, 8)
	b.hdr.width, b.hdr.height = 60, 60
	b.sample = func(x, y, c int) uint16 {
		return [2][4]uint16{{9, 80, 7, 255}, {200, 10, 30, 255}}[mixed(x, y, 0)&1][c]
	}
	text := func(typ, s string) chunk { return chunk{typ, []byte(s)} }
	b.before = []chunk{
		text("tEXt", "a\x00b"), text("gAMA", "1234"), text("cHRM", "x"), text("sRGB", "\x00"), text("bKGD", "\x00\x01\x00\x02\x00\x03"),
		text("pHYs", "123456789"), text("sPLT", "a"), text("sPLT", "b"), text("tIME", "1234567"), text("zTXt", "a\x00\x00"),
		text("sBIT", "\x08\x08\x08\x08"), text("iCCP", "late"), text("cICP", "abcd"), text("mDCV", "m"), text("cLLI", "c"),
		text("eXIf", "MM"), text("oFFs", "o"), text("sCAL", "s"), text("sTER", "t"), text("vpAg", "v"), text("orNt", "x"),
	}
	b.after = []chunk{text("tEXt", "after"), text("iTXt", "i"), text("vpAg", "w"), text("orNt", "y"), text("gIFx", "z")}
	out, r := reencodeAndCheck(t, b.bytes(), DefaultOptions())
	if out == nil || r.After.ColourType != uint8(indexed) {
		t.Fatalf("report %+v", r)
	}
	f, ref := parse(out)
	if ref != nil {
		t.Fatal(ref)
	}
	var order []string
	for _, c := range f.chunks {
		order = append(order, c.typ)
	}
	const want = "tEXt gAMA cHRM sRGB pHYs sPLT sPLT tIME zTXt sBIT iCCP cICP mDCV cLLI eXIf oFFs sCAL sTER vpAg orNt " +
		"PLTE bKGD IDAT tEXt iTXt vpAg orNt gIFx"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("chunks\n%s, not\n%s", got, want)
	}
}
