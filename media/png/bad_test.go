package png

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"
	"time"
)

// plain is a small valid picture that can be made smaller; tests bend it.
func plain(t colourType, depth uint8) *build {
	b := &build{
		hdr:    header{width: 24, height: 20, depth: depth, ctype: t},
		sample: func(x, y, c int) uint16 { return uint16((x/4 + y/3 + c) & 3 % (1 << depth)) },
	}
	if t == indexed {
		b.plte = []byte{1, 2, 3, 40, 50, 60, 70, 80, 90, 200, 210, 220}
	}
	return b
}

// refused checks that a file stays for the reason.
func refused(t *testing.T, in []byte, want Reason) {
	t.Helper()
	out, r, err := Reencode(context.Background(), bytes.Clone(in), DefaultOptions())
	if err != nil || out != nil || !r.Kept || r.Reason != want {
		t.Errorf("%d bytes: %d bytes out, %v, report %+v; want reason %q", len(in), len(out), err, r, want)
	}
	if r.Reason != ReasonNone && r.Detail == "" {
		t.Error("the report has no detail")
	}
}

func TestTruncatedAnywhere(t *testing.T) {
	b := plain(rgb, 8)
	b.split = 20
	b.after = []chunk{{"tEXt", []byte("a\x00b")}}
	in := b.bytes()
	for n := range in {
		want := ReasonTruncated
		if n < len(signature) {
			want = ReasonNotPNG
		}
		refused(t, in[:n], want)
	}
}

// TestAnyByteChanged: every byte of a PNG is covered by the signature, a
// CRC or is one, so no change may pass.
func TestAnyByteChanged(t *testing.T) {
	in := plain(indexed, 8).bytes()
	for i := range in {
		for _, bit := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(in)
			bad[i] ^= bit
			out, r, err := Reencode(context.Background(), bad, DefaultOptions())
			if err != nil || out != nil || !r.Reason.Damaged() {
				t.Fatalf("byte %d changed by %#x: %d bytes out, %v, %+v", i, bit, len(out), err, r)
			}
		}
	}
}

func TestBadInput(t *testing.T) {
	const opaque = 8
	ancillary := func(typ string, n int) chunk { return chunk{typ, make([]byte, n)} }
	// edit bends the list of chunks of a plain picture.
	edit := func(ct colourType, fn func(list []chunk) []chunk) []byte {
		return join(fn(plain(ct, opaque).chunks()))
	}
	// at puts a chunk in front of the nth.
	at := func(ct colourType, n int, c ...chunk) []byte {
		return edit(ct, func(l []chunk) []chunk {
			return append(append(append([]chunk(nil), l[:n]...), c...), l[n:]...)
		})
	}
	ihdr := func(fn func(h []byte)) []byte {
		return edit(rgb, func(l []chunk) []chunk { fn(l[0].data); return l })
	}
	idat := func(ct colourType, fn func(raw []byte) []byte) []byte {
		b := plain(ct, opaque)
		return edit(ct, func(l []chunk) []chunk {
			for i := range l {
				if l[i].typ == "IDAT" {
					l[i].data = deflateZlib(fn(b.stream()), 6)
				}
			}
			return l
		})
	}
	broken := func(fn func(z []byte) []byte) []byte {
		return edit(rgb, func(l []chunk) []chunk { l[1].data = fn(l[1].data); return l })
	}
	good := plain(rgb, opaque).bytes()
	sub := plain(indexed, 4)
	sub.plte = sub.plte[:9]

	for _, c := range []struct {
		name string
		in   []byte
		want Reason
	}{
		{"empty", nil, ReasonNotPNG},
		{"jpeg", []byte("\xff\xd8\xff\xe0\x00\x10JFIF"), ReasonNotPNG},
		{"text mode transfer", []byte(strings.Replace(string(good), "\r\n", "\n", 1)), ReasonNotPNG},
		{"only the signature", []byte(signature), ReasonTruncated},
		{"data after IEND", append(bytes.Clone(good), 0), ReasonTrailing},
		{"two pictures", append(bytes.Clone(good), good...), ReasonTrailing},
		{"chunk of 2^31", append([]byte(signature), 0x80, 0, 0, 0, 'I', 'H', 'D', 'R', 0, 0, 0, 0), ReasonBadChunk},
		{"chunk name", at(rgb, 1, ancillary("t3Xt", 0)), ReasonBadChunk},
		{"reserved bit", at(rgb, 1, ancillary("text", 0)), ReasonBadChunk},
		{"IEND with data", edit(rgb, func(l []chunk) []chunk { l[len(l)-1].data = []byte{0}; return l }), ReasonBadChunk},

		{"no IHDR", edit(rgb, func(l []chunk) []chunk { return l[1:] }), ReasonMisplaced},
		{"two IHDR", edit(rgb, func(l []chunk) []chunk { return append(l[:1:1], l...) }), ReasonDuplicate},
		{"no IDAT", edit(rgb, func(l []chunk) []chunk { return append(l[:1:1], l[2:]...) }), ReasonMissing},
		{"empty IDAT", broken(func(z []byte) []byte { return nil }), ReasonBadData},
		{"IDAT apart", at(rgb, 2, ancillary("tEXt", 3), ancillary("IDAT", 0)), ReasonMisplaced},
		{"no width", ihdr(func(h []byte) { copy(h, "\x00\x00\x00\x00") }), ReasonBadHeader},
		{"height of 2^31", ihdr(func(h []byte) { h[4] = 0x80 }), ReasonBadHeader},
		{"depth 3", ihdr(func(h []byte) { h[8] = 3 }), ReasonBadHeader},
		{"depth 4 of RGB", ihdr(func(h []byte) { h[8] = 4 }), ReasonBadHeader},
		{"colour type 5", ihdr(func(h []byte) { h[9] = 5 }), ReasonBadHeader},
		{"compression 1", ihdr(func(h []byte) { h[10] = 1 }), ReasonBadHeader},
		{"filter 1", ihdr(func(h []byte) { h[11] = 1 }), ReasonBadHeader},
		{"interlace 2", ihdr(func(h []byte) { h[12] = 2 }), ReasonBadHeader},
		{"long IHDR", edit(rgb, func(l []chunk) []chunk { l[0].data = append(l[0].data, 0); return l }), ReasonBadHeader},
		{"bomb by size", ihdr(func(h []byte) { copy(h, "\x7f\xff\xff\xff\x7f\xff\xff\xff") }), ReasonTooLarge},
		{"taller than its data", ihdr(func(h []byte) { h[7]++ }), ReasonBadData},
		{"less tall than its data", ihdr(func(h []byte) { h[7]-- }), ReasonBadData},
		{"bomb by data", idat(rgb, func(raw []byte) []byte { return append(raw, make([]byte, 3<<20)...) }), ReasonBadData},

		{"no PLTE", edit(indexed, func(l []chunk) []chunk { return append(l[:1:1], l[2:]...) }), ReasonMissing},
		{"two PLTE", at(indexed, 1, chunk{"PLTE", make([]byte, 3)}), ReasonDuplicate},
		{"PLTE after IDAT", at(rgb, 2, chunk{"PLTE", make([]byte, 3)}), ReasonMisplaced},
		{"PLTE with gray", at(gray, 1, chunk{"PLTE", make([]byte, 3)}), ReasonMisplaced},
		{"PLTE of 4 bytes", at(rgb, 1, chunk{"PLTE", make([]byte, 4)}), ReasonBadChunk},
		{"PLTE of 257", at(rgb, 1, chunk{"PLTE", make([]byte, 3*257)}), ReasonBadChunk},
		{"PLTE of 0", at(rgb, 1, chunk{"PLTE", nil}), ReasonBadChunk},
		{"index beyond the palette", sub.bytes(), ReasonBadData},

		{"tRNS before PLTE", at(indexed, 1, ancillary("tRNS", 1)), ReasonMisplaced},
		{"tRNS longer than PLTE", at(indexed, 2, ancillary("tRNS", 5)), ReasonBadChunk},
		{"tRNS of 0", at(indexed, 2, ancillary("tRNS", 0)), ReasonBadChunk},
		{"tRNS with alpha", at(rgba, 1, ancillary("tRNS", 6)), ReasonBadChunk},
		{"tRNS length", at(rgb, 1, ancillary("tRNS", 2)), ReasonBadChunk},
		{"tRNS sample", at(gray, 1, chunk{"tRNS", []byte{1, 0}}), ReasonBadChunk},
		{"tRNS after IDAT", at(rgb, 2, ancillary("tRNS", 6)), ReasonMisplaced},
		{"two tRNS", at(rgb, 1, ancillary("tRNS", 6), ancillary("tRNS", 6)), ReasonDuplicate},
		{"bKGD index", at(indexed, 2, chunk{"bKGD", []byte{4}}), ReasonBadChunk},
		{"bKGD length", at(gray, 1, ancillary("bKGD", 6)), ReasonBadChunk},
		{"sBIT of 0", at(rgb, 1, ancillary("sBIT", 3)), ReasonBadChunk},
		{"sBIT of 9", at(gray, 1, chunk{"sBIT", []byte{9}}), ReasonBadChunk},
		{"sBIT length", at(gray, 1, chunk{"sBIT", []byte{8, 8}}), ReasonBadChunk},
		{"hIST length", at(indexed, 2, ancillary("hIST", 2)), ReasonBadChunk},
		{"hIST without PLTE", at(rgb, 1, ancillary("hIST", 0)), ReasonBadChunk},
		{"gAMA after PLTE", at(indexed, 2, ancillary("gAMA", 4)), ReasonMisplaced},
		{"gAMA after IDAT", at(rgb, 2, ancillary("gAMA", 4)), ReasonMisplaced},
		{"two gAMA", at(rgb, 1, ancillary("gAMA", 4), ancillary("gAMA", 4)), ReasonDuplicate},
		{"pHYs after IDAT", at(rgb, 2, ancillary("pHYs", 9)), ReasonMisplaced},
		{"two tIME", at(rgb, 1, ancillary("tIME", 7), ancillary("tIME", 7)), ReasonDuplicate},

		{"filter type 5", idat(rgb, func(raw []byte) []byte { raw[0] = 5; return raw }), ReasonBadData},
		{"a byte short", idat(rgb, func(raw []byte) []byte { return raw[1:] }), ReasonBadData},
		{"a byte long", idat(rgb, func(raw []byte) []byte { return append(raw, 0) }), ReasonBadData},
		{"Adler-32", broken(func(z []byte) []byte { z[len(z)-1]++; return z }), ReasonBadData},
		{"no Adler-32", broken(func(z []byte) []byte { return z[:len(z)-4] }), ReasonBadData},
		{"bytes after the stream", broken(func(z []byte) []byte { return append(z, 0) }), ReasonBadData},
		{"zlib header", broken(func(z []byte) []byte { z[0] = 0x79; return z }), ReasonBadData},
		{"preset dictionary", broken(func(z []byte) []byte { z[0], z[1] = 0x78, 0xbb; return z }), ReasonBadData},
		{"raw deflate", broken(func(z []byte) []byte { return z[2:] }), ReasonBadData},

		{"acTL", at(rgb, 1, ancillary("acTL", 8)), ReasonAPNG},
		{"fdAT after IDAT", at(rgb, 2, ancillary("fdAT", 8)), ReasonAPNG},
		{"dSIG", at(rgb, 1, ancillary("dSIG", 8)), ReasonSigned},
		{"caBX", at(rgb, 1, ancillary("caBX", 8)), ReasonProvenance},
		{"iDOT", at(rgb, 1, ancillary("iDOT", 28)), ReasonIDOT},
		{"CgBI first", at(rgb, 0, ancillary("CgBI", 4)), ReasonCgBI},
		{"CgBI later", at(rgb, 1, ancillary("CgBI", 4)), ReasonCgBI},
		{"unknown and critical", at(rgb, 1, ancillary("ABCd", 4)), ReasonUnknownCritical},
		{"unknown and not safe to copy", at(rgb, 1, ancillary("abCD", 4)), ReasonUnsafeChunk},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, c.in, c.want) })
	}
	// The same picture without anything wrong is made smaller.
	if out, r, err := Reencode(context.Background(), good, DefaultOptions()); err != nil || out == nil {
		t.Errorf("the plain picture: %v, %+v", err, r)
	}
}

func TestEmptyChunksAmongIDAT(t *testing.T) {
	list := plain(rgb, 8).chunks()
	z := list[1].data
	list = append([]chunk{list[0], {"IDAT", nil}, {"IDAT", z[:3]}, {"IDAT", nil}, {"IDAT", z[3:]}, {"IDAT", nil}}, list[2:]...)
	if out, r := reencodeAndCheck(t, join(list), DefaultOptions()); out == nil {
		t.Errorf("kept: %+v", r)
	}
}

func TestLimits(t *testing.T) {
	in := plain(rgb, 8).bytes()
	for name, set := range map[string]func(o *Options){
		"bytes":  func(o *Options) { o.MaxBytes = int64(len(in)) - 1 },
		"pixels": func(o *Options) { o.MaxPixels = 24*20 - 1 },
		"raw":    func(o *Options) { o.MaxRaw = 20*(24*3+1) - 1 },
	} {
		o := DefaultOptions()
		set(&o)
		if out, r, err := Reencode(context.Background(), in, o); err != nil || out != nil || r.Reason != ReasonTooLarge {
			t.Errorf("%s below: %v, %+v", name, err, r)
		}
	}
	o := DefaultOptions()
	o.MaxBytes, o.MaxPixels, o.MaxRaw = int64(len(in)), 24*20, 20*(24*3+1)
	if out, r, err := Reencode(context.Background(), in, o); err != nil || out == nil {
		t.Errorf("exactly at the limits: %v, %+v", err, r)
	}
}

func TestOptionsAndContext(t *testing.T) {
	in := plain(rgb, 8).bytes()
	for name, o := range map[string]Options{
		"zero":     {},
		"level":    {Level: 9, MaxBytes: 1, MaxPixels: 1, MaxRaw: 1},
		"limit":    {Level: Fast, MaxBytes: 1, MaxPixels: 1},
		"negative": {Level: Fast, MaxBytes: 1, MaxPixels: 1, MaxRaw: 1, Timeout: -1},
	} {
		if out, r, err := Reencode(context.Background(), in, o); err == nil || out != nil || !r.Kept {
			t.Errorf("%s options: %v, %+v", name, err, r)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if out, _, err := Reencode(ctx, in, DefaultOptions()); !errors.Is(err, context.Canceled) || out != nil {
		t.Errorf("cancelled: %v", err)
	}
	o := DefaultOptions()
	o.Timeout = time.Nanosecond
	if out, r, err := Reencode(context.Background(), in, o); err != nil || out != nil || r.Reason != ReasonTimeout {
		t.Errorf("timeout: %v, %+v", err, r)
	}
	var l Level
	for _, want := range []Level{Fast, Default, Best} {
		text, err := want.MarshalText()
		if err != nil || l.UnmarshalText(text) != nil || l != want {
			t.Errorf("level %v became %v", want, l)
		}
	}
	if l.UnmarshalText([]byte("9")) == nil {
		t.Error("level 9 is taken")
	}
}

// fixCRCs makes every CRC of what may be a PNG right, so that a fuzzer gets
// past them.
func fixCRCs(in []byte) []byte {
	out := bytes.Clone(in)
	for pos := len(signature); pos+chunkOverhead <= len(out); {
		n := int(binary.BigEndian.Uint32(out[pos:]))
		if n < 0 || n > len(out)-pos-chunkOverhead {
			break
		}
		binary.BigEndian.PutUint32(out[pos+8+n:], crc32.ChecksumIEEE(out[pos+4:pos+8+n]))
		pos += chunkOverhead + n
	}
	return out
}
