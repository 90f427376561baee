package png

import (
	"bytes"
	"compress/zlib"
	"math/rand/v2"
)

// build is a small PNG writer for tests. It shares no code with what it
// tests except the header type.
type build struct {
	hdr     header
	before  []chunk // between IHDR and PLTE
	plte    []byte
	middle  []chunk // between PLTE and IDAT; tRNS too
	after   []chunk
	sample  func(x, y, c int) uint16
	filter  func(y int) byte
	split   int // bytes per IDAT; 0: all in one
	level   int
	rawTail []byte // appended to the stream before it is deflated
}

// adam7Grid is written out again here on purpose.
var adam7Grid = [8]string{
	"16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777",
}

// scanlines gives the unfiltered rows of every pass.
func (b *build) scanlines() [][][]byte {
	var passes [][][]byte
	numbers := "0"
	if b.hdr.interlaced {
		numbers = "1234567"
	}
	for _, n := range numbers {
		var rows [][]byte
		for y := 0; y < b.hdr.height; y++ {
			var bits []bool
			for x := 0; x < b.hdr.width; x++ {
				if n != '0' && rune(adam7Grid[y%8][x%8]) != n {
					continue
				}
				for c := range b.hdr.ctype.channels() {
					v := b.sample(x, y, c)
					for i := int(b.hdr.depth) - 1; i >= 0; i-- {
						bits = append(bits, v>>i&1 == 1)
					}
				}
			}
			if len(bits) == 0 {
				continue
			}
			row := make([]byte, (len(bits)+7)/8)
			for i, set := range bits {
				if set {
					row[i/8] |= 0x80 >> (i % 8)
				}
			}
			rows = append(rows, row)
		}
		passes = append(passes, rows)
	}
	return passes
}

func (b *build) stream() []byte {
	var raw []byte
	dist := max(1, b.hdr.ctype.channels()*int(b.hdr.depth)/8)
	y := 0
	for _, rows := range b.scanlines() {
		var prev []byte
		for _, row := range rows {
			f := byte(0)
			if b.filter != nil {
				f = b.filter(y)
			}
			raw = append(raw, f)
			for i, v := range row {
				var left, up, corner int
				if i >= dist {
					left = int(row[i-dist])
				}
				if prev != nil {
					up = int(prev[i])
					if i >= dist {
						corner = int(prev[i-dist])
					}
				}
				predicted := 0
				switch f {
				case 1:
					predicted = left
				case 2:
					predicted = up
				case 3:
					predicted = (left + up) / 2
				case 4:
					p := left + up - corner
					dl, du, dc := max(p-left, left-p), max(p-up, up-p), max(p-corner, corner-p)
					switch {
					case dl <= du && dl <= dc:
						predicted = left
					case du <= dc:
						predicted = up
					default:
						predicted = corner
					}
				}
				raw = append(raw, v-byte(predicted))
			}
			prev = row
			y++
		}
	}
	return append(raw, b.rawTail...)
}

func deflateZlib(raw []byte, level int) []byte {
	var z bytes.Buffer
	w, err := zlib.NewWriterLevel(&z, level)
	if err != nil {
		panic(err)
	}
	w.Write(raw)
	w.Close()
	return z.Bytes()
}

func (b *build) chunks() []chunk {
	list := []chunk{{"IHDR", b.hdr.encode()}}
	list = append(list, b.before...)
	if b.plte != nil {
		list = append(list, chunk{"PLTE", b.plte})
	}
	list = append(list, b.middle...)
	z := deflateZlib(b.stream(), b.level)
	for b.split > 0 && len(z) > b.split {
		list = append(list, chunk{"IDAT", z[:b.split]})
		z = z[b.split:]
	}
	list = append(list, chunk{"IDAT", z})
	list = append(list, b.after...)
	return append(list, chunk{"IEND", nil})
}

func (b *build) bytes() []byte { return join(b.chunks()) }

// join writes chunks as a file.
func join(list []chunk) []byte {
	out := []byte(signature)
	for _, c := range list {
		out = appendChunk(out, c.typ, c.data)
	}
	return out
}

// formats lists every colour type and depth that PNG has.
func formats() (list []header) {
	for _, t := range []colourType{gray, rgb, indexed, grayAlpha, rgba} {
		for _, d := range []uint8{1, 2, 4, 8, 16} {
			if h := (header{depth: d, ctype: t}); h.depthAllowed() {
				list = append(list, h)
			}
		}
	}
	return list
}

// randomPalette gives n entries.
func randomPalette(rng *rand.Rand, n int) []byte {
	p := make([]byte, 3*n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}
