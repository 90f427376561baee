package png

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// Verify tells whether two files are complete and valid PNGs of the same
// picture: the same size and interlacing, the same 16-bit RGBA value of every
// pixel, the same background, and the same other ancillary chunks, byte
// for byte, in the same order before and after the image data. A nil error means yes.
func Verify(ctx context.Context, a, b []byte) error {
	fa, ref := parse(a)
	if ref != nil {
		return fmt.Errorf("png: verify: the first file: %w", ref)
	}
	fb, ref := parse(b)
	if ref != nil {
		return fmt.Errorf("png: verify: the second file: %w", ref)
	}
	return verify(fa, fb, &budget{ctx: ctx})
}

func verify(a, b *file, bud *budget) error {
	if a.hdr.width != b.hdr.width || a.hdr.height != b.hdr.height || a.hdr.interlaced != b.hdr.interlaced {
		return fmt.Errorf("png: verify: %d x %d (interlaced %t) became %d x %d (%t)",
			a.hdr.width, a.hdr.height, a.hdr.interlaced, b.hdr.width, b.hdr.height, b.hdr.interlaced)
	}
	if err := verifyChunks(a, b); err != nil {
		return err
	}
	if ca, oka := a.background(); true {
		if cb, okb := b.background(); oka != okb || ca != cb {
			return fmt.Errorf("png: verify: the background %x became %x", ca, cb)
		}
	}
	return verifyPixels(a, b, bud)
}

// translated tells whether a chunk belongs to the way samples are stored.
func translated(typ string) bool {
	return typ == "PLTE" || typ == "tRNS" || typ == "bKGD" || typ == "sBIT"
}

// verifyChunks compares all chunks that are never translated, and sBIT in
// whether it is there.
func verifyChunks(a, b *file) error {
	if a.has("sBIT") != b.has("sBIT") {
		return fmt.Errorf("png: verify: sBIT came or went")
	}
	ca, cb := a.chunks, b.chunks
	for {
		for len(ca) > 0 && translated(ca[0].typ) {
			ca = ca[1:]
		}
		for len(cb) > 0 && translated(cb[0].typ) {
			cb = cb[1:]
		}
		if len(ca) == 0 || len(cb) == 0 {
			break
		}
		if ca[0].typ != cb[0].typ || !bytes.Equal(ca[0].data, cb[0].data) {
			return fmt.Errorf("png: verify: chunk %s became %s, or its contents changed", ca[0].typ, cb[0].typ)
		}
		ca, cb = ca[1:], cb[1:]
	}
	if len(ca) != len(cb) {
		return fmt.Errorf("png: verify: the number of chunks changed by %d", len(cb)-len(ca))
	}
	return nil
}

func verifyPixels(a, b *file, bud *budget) error {
	ra, ref := newRowReader(a)
	if ref != nil {
		return ref
	}
	rb, ref := newRowReader(b)
	if ref != nil {
		return ref
	}
	// Where both store pixels alike, equal rows are equal pixels.
	same := a.hdr == b.hdr && bytes.Equal(a.plte, b.plte) && bytes.Equal(a.trns, b.trns)
	xa, xb := newExpander(a), newExpander(b)
	for n := 0; ; n++ {
		rowA, _, errA := ra.next()
		rowB, _, errB := rb.next()
		if errA == io.EOF && errB == io.EOF {
			return nil
		}
		if errA != nil || errB != nil {
			return fmt.Errorf("png: verify: scanline %d: %v, %v", n, errA, errB)
		}
		if err := bud.spend(len(rowA) + len(rowB)); err != nil {
			return err
		}
		if same {
			if !bytes.Equal(rowA, rowB) {
				return fmt.Errorf("png: verify: scanline %d differs", n)
			}
			continue
		}
		for x := 0; x < ra.width(); x++ {
			if pa, pb := xa.at(rowA, x), xb.at(rowB, x); pa != pb {
				return fmt.Errorf("png: verify: pixel %d of scanline %d: %04x became %04x", x, n, pa, pb)
			}
		}
	}
}
