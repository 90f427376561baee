package png

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fuzzOptions keep one input of a fuzzer short.
func fuzzOptions(level byte) Options {
	o := DefaultOptions()
	o.Level = Fast + Level(level%3)
	o.Reductions = level&4 == 0
	o.MaxPixels, o.MaxRaw, o.MaxBytes = 1<<16, 1<<18, 1<<18
	o.Timeout = time.Minute
	return o
}

// check re-encodes, compares every sample and chunk by Verify and every pixel
// by the oracle, and does it again for the same bytes.
func check(t *testing.T, in []byte, o Options) {
	t.Helper()
	before := bytes.Clone(in)
	out, r := reencodeAndCheck(t, in, o)
	if !bytes.Equal(in, before) {
		t.Fatal("the input was written to")
	}
	if out == nil {
		return
	}
	again, _, err := Reencode(context.Background(), in, o)
	if err != nil || !bytes.Equal(out, again) {
		t.Fatalf("the second time gives other bytes: %v", err)
	}
	if _, r2, _ := Reencode(context.Background(), out, o); r2.Reason != ReasonAlreadyDone {
		t.Fatalf("%+v; of the output %+v", r, r2)
	}
}

// FuzzReencode bends files. CRCs are made right, or hardly an input would
// get past them.
func FuzzReencode(f *testing.F) {
	for _, path := range pngFiles(f, filepath.Join(goRoot(), "src/image/png/testdata")) {
		if data, err := os.ReadFile(path); err == nil && len(data) < 4000 {
			f.Add(data, byte(1))
		}
	}
	for _, h := range formats() {
		f.Add(plain(h.ctype, h.depth).bytes(), byte(h.depth))
	}
	f.Fuzz(func(t *testing.T, in []byte, level byte) {
		check(t, fixCRCs(in), fuzzOptions(level))
	})
}

// FuzzPictures makes valid pictures of every form out of a few numbers, with
// the chunks that reductions translate.
func FuzzPictures(f *testing.F) {
	for i := range uint64(40) {
		f.Add(i*7919, uint8(i), uint8(i*5), uint8(i*3))
	}
	f.Fuzz(func(t *testing.T, seed uint64, width, height, colours uint8) {
		check(t, randomPicture(seed, width, height, colours), fuzzOptions(byte(seed>>8)))
	})
}

// randomPicture has few colours, often gray, opaque, or with halves alike, so
// that reductions find something, and a run now and then.
func randomPicture(seed uint64, width, height, colours uint8) []byte {
	rng := rand.New(rand.NewPCG(seed, uint64(colours)))
	all := formats()
	h := all[rng.IntN(len(all))]
	h.width, h.height, h.interlaced = 1+int(width)%70, 1+int(height)%70, rng.IntN(3) == 0
	n := 1 + int(colours)
	if rng.IntN(4) == 0 {
		n *= 3 // more than a palette holds
	}
	if h.ctype == indexed {
		n = min(n, 1<<h.depth)
	}
	list := make([][4]uint16, n)
	coarse, isGray, opaque, keyed := rng.IntN(3), rng.IntN(3) == 0, rng.IntN(3) == 0, rng.IntN(4) == 0
	for i := range list {
		for c := range list[i] {
			v := uint16(rng.Uint32())
			if coarse == 1 {
				v = v & 0xff * 0x101
			} else if coarse == 2 {
				v = v & 3 * 0x5555
			}
			list[i][c] = v
		}
		if isGray {
			list[i][1], list[i][2] = list[i][0], list[i][0]
		}
		if opaque || keyed && i > 0 {
			list[i][3] = 0xffff
		} else if keyed {
			list[i][3] = 0
		}
	}
	picks := make([]int, h.width*h.height)
	last := 0
	for i := range picks {
		if rng.IntN(3) > 0 {
			last = rng.IntN(n)
		}
		picks[i] = last
	}
	filters := rng.Uint64()
	b := build{
		hdr:    h,
		filter: func(y int) byte { return byte((filters >> (y % 16 * 4)) % 5) },
		split:  rng.IntN(3) * 100,
		level:  rng.IntN(10),
	}
	shift := 16 - h.depth
	channel := func(c int) int {
		if h.ctype == grayAlpha && c == 1 {
			return 3
		}
		return c
	}
	b.sample = func(x, y, c int) uint16 {
		i := picks[y*h.width+x]
		if h.ctype == indexed {
			return uint16(i)
		}
		return list[i][channel(c)] >> shift
	}
	words := func(n int) (data []byte) {
		v := list[rng.IntN(len(list))]
		for c := range n {
			s := v[c] >> shift
			data = append(data, byte(s>>8), byte(s))
		}
		return data
	}
	colourWords := 3
	if h.ctype.isGray() {
		colourWords = 1
	}
	if h.ctype == indexed {
		for _, c := range list {
			b.plte = append(b.plte, byte(c[0]>>8), byte(c[1]>>8), byte(c[2]>>8))
		}
		if !opaque {
			alpha := make([]byte, 1+rng.IntN(n))
			for i := range alpha {
				alpha[i] = byte(list[i][3] >> 8)
			}
			b.middle = append(b.middle, chunk{"tRNS", alpha})
		}
		if rng.IntN(3) == 0 {
			b.middle = append(b.middle, chunk{"bKGD", []byte{byte(rng.IntN(n))}})
		}
		if rng.IntN(6) == 0 {
			b.middle = append(b.middle, chunk{"hIST", make([]byte, 2*n)})
		}
	} else {
		if h.ctype == rgb && rng.IntN(8) == 0 {
			b.plte = randomPalette(rng, 1+rng.IntN(20))
		}
		if !h.ctype.hasAlpha() && rng.IntN(2) == 0 {
			b.middle = append(b.middle, chunk{"tRNS", words(colourWords)})
		}
		if rng.IntN(3) == 0 {
			b.middle = append(b.middle, chunk{"bKGD", words(colourWords)})
		}
	}
	if rng.IntN(4) == 0 {
		bits := make([]byte, h.ctype.channels())
		if h.ctype == indexed {
			bits = make([]byte, 3)
		}
		most := int(h.depth)
		if h.ctype == indexed {
			most = 8
		}
		same := byte(1 + rng.IntN(most))
		for i := range bits {
			if bits[i] = same; rng.IntN(3) == 0 {
				bits[i] = byte(1 + rng.IntN(most))
			}
		}
		b.before = append(b.before, chunk{"sBIT", bits})
	}
	if rng.IntN(8) == 0 {
		b.before = append(b.before, chunk{"iCCP", []byte("x")})
	}
	if rng.IntN(8) == 0 {
		b.after = append(b.after, chunk{"tEXt", []byte("a\x00b")})
	}
	return b.bytes()
}

// TestRandomPictures is FuzzPictures for a while, without a fuzzer. VDE_PNG_ROUNDS
// sets how many.
func TestRandomPictures(t *testing.T) {
	rounds := 150
	if raceEnabled {
		rounds = 40 // there is one goroutine: the detector has little to find
	}
	if own := os.Getenv("VDE_PNG_ROUNDS"); own != "" {
		rounds = 0
		for _, c := range own {
			rounds = rounds*10 + int(c-'0')
		}
	}
	smaller := 0
	for i := range rounds {
		rng := rand.New(rand.NewPCG(uint64(i), 99))
		in := randomPicture(rng.Uint64(), uint8(rng.Uint32()), uint8(rng.Uint32()), uint8(rng.Uint32()>>(rng.Uint32()%8)))
		o := fuzzOptions(byte(rng.Uint32()))
		check(t, in, o)
		if out, _, _ := Reencode(context.Background(), in, o); out != nil {
			smaller++
		}
	}
	if smaller < rounds/4 {
		t.Errorf("only %d of %d pictures became smaller: the generator is of no use", smaller, rounds)
	}
}
