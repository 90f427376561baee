package png

import (
	"bytes"
	"context"
	"runtime"
	"testing"
)

// TestVerifySees: what Reencode trusts before it gives a file away fails for every kind of difference, and for nothing else.
func TestVerifySees(t *testing.T) {
	text := func(s string) chunk { return chunk{"tEXt", []byte("a\x00" + s)} }
	base := func() *build {
		b := plain(rgb, 8)
		b.before = []chunk{{"gAMA", []byte{0, 0, 177, 143}}, text("before")}
		b.middle = []chunk{{"bKGD", []byte{0, 1, 0, 2, 0, 3}}}
		b.after = []chunk{text("after")}
		return b
	}
	in := base().bytes()
	for name, bend := range map[string]func(b *build){
		"one pixel": func(b *build) {
			sample := b.sample
			b.sample = func(x, y, c int) uint16 {
				if x == 23 && y == 19 && c == 2 {
					return sample(x, y, c) ^ 1
				}
				return sample(x, y, c)
			}
		},
		"width":              func(b *build) { b.hdr.width++ },
		"height":             func(b *build) { b.hdr.height-- },
		"interlacing":        func(b *build) { b.hdr.interlaced = true },
		"transparency":       func(b *build) { b.middle = append(b.middle, chunk{"tRNS", []byte{0, 0, 0, 1, 0, 2}}) },
		"background":         func(b *build) { b.middle[0].data = []byte{0, 1, 0, 2, 0, 4} },
		"no background":      func(b *build) { b.middle = nil },
		"a chunk's contents": func(b *build) { b.before[0].data = []byte{0, 0, 177, 144} },
		"a chunk less":       func(b *build) { b.before = b.before[:1] },
		"a chunk more":       func(b *build) { b.after = append(b.after, text("after")) },
		"order of chunks":    func(b *build) { b.before[0], b.before[1] = b.before[1], b.before[0] },
		"side of the pixels": func(b *build) { b.before, b.after = b.before[:1], append([]chunk{b.before[1]}, b.after...) },
	} {
		b := base()
		bend(b)
		out := b.bytes()
		if f, ref := parse(out); ref != nil || f == nil {
			t.Errorf("%s: the test's file is bad: %v", name, ref)
		}
		if err := Verify(context.Background(), in, out); err == nil {
			t.Errorf("%s: the difference is not seen", name)
		}
		if err := Verify(context.Background(), out, in); err == nil {
			t.Errorf("%s: the difference is not seen the other way round", name)
		}
	}
	for name, bend := range map[string]func(b *build){
		"nothing":     func(b *build) {},
		"filters":     func(b *build) { b.filter = func(y int) byte { return byte(y % 5) } },
		"IDAT chunks": func(b *build) { b.split = 11 },
		"compression": func(b *build) { b.level = 9 },
	} {
		b := base()
		bend(b)
		if err := Verify(context.Background(), in, b.bytes()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Verify(context.Background(), in, in[:len(in)-1]); err == nil {
		t.Error("a truncated file passes")
	}
}

// TestBombsTakeNoMemory: what a small file inflates to is never held beyond what its header asks for.
func TestBombsTakeNoMemory(t *testing.T) {
	zeros := deflateZlib(make([]byte, 64<<20), 9)
	with := func(c chunk) []byte {
		list := plain(rgb, 8).chunks()
		return join(append([]chunk{list[0], c}, list[1:]...))
	}
	data := plain(rgb, 8).chunks()
	data[1].data = zeros
	wide := plain(rgb, 8).chunks()
	wide[0].data = bytes.Clone(wide[0].data)
	copy(wide[0].data, "\x00\x00\x40\x00\x00\x00\x40\x00") // 16384 x 16384
	for name, c := range map[string]struct {
		in   []byte
		want Reason
	}{
		"image data":      {join(data), ReasonBadData},
		"header":          {join(wide), ReasonTooLarge},
		"compressed text": {with(chunk{"zTXt", append([]byte("a\x00\x00"), zeros...)}), ReasonNone},
		"colour profile":  {with(chunk{"iCCP", append([]byte("a\x00\x00"), zeros...)}), ReasonNone},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		o := DefaultOptions()
		o.MaxRaw = 64 << 20
		_, r, err := Reencode(context.Background(), c.in, o)
		runtime.ReadMemStats(&after)
		if err != nil || r.Reason != c.want {
			t.Errorf("%s: %v, report %+v; want reason %q", name, err, r, c.want)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 && !raceEnabled {
			t.Errorf("%s: %d MiB were allocated", name, used>>20)
		}
	}
}
