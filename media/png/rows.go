package png

import (
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/zlib"
)

// idatReader reads the joined data of all IDAT chunks. It is an
// io.ByteReader, so the inflater takes not a byte more than it needs.
type idatReader struct {
	parts [][]byte // the first one is never empty
}

func newIDATReader(parts [][]byte) io.Reader {
	if len(parts) == 1 {
		return bytes.NewReader(parts[0]) // which the inflater has a faster path for
	}
	return &idatReader{parts}
}

func (r *idatReader) Read(p []byte) (int, error) {
	if len(r.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.parts[0])
	r.advance(n)
	return n, nil
}

func (r *idatReader) ReadByte() (byte, error) {
	if len(r.parts) == 0 {
		return 0, io.EOF
	}
	b := r.parts[0][0]
	r.advance(1)
	return b, nil
}

func (r *idatReader) advance(n int) {
	if r.parts[0] = r.parts[0][n:]; len(r.parts[0]) == 0 {
		r.parts = r.parts[1:]
	}
}

// rowReader gives the scanlines of a file one after the other, unfiltered.
type rowReader struct {
	hdr    header
	src    io.Reader // compressed
	zr     io.ReadCloser
	passes []pass
	y      int // next row of passes[0]

	// One byte of filter type in front of the samples.
	cur, prev []byte
	masked    []byte // samples of cur, the bits behind the last pixel cleared
}

func newRowReader(f *file) (*rowReader, *refusal) {
	parts := append([][]byte(nil), f.idat...)
	r := &rowReader{hdr: f.hdr, src: newIDATReader(parts), passes: f.hdr.passes()}
	zr, err := zlib.NewReader(r.src)
	if err != nil {
		return nil, refuse(ReasonBadData, "the IDAT stream does not begin as a zlib stream: %v", err)
	}
	r.zr = zr
	widest := 0
	for _, p := range r.passes {
		widest = max(widest, p.rowBytes)
	}
	r.cur, r.prev = make([]byte, widest+1), make([]byte, widest+1)
	return r, nil
}

// next gives the samples of the next scanline, with the unused bits of its
// last byte cleared, and the type of its filter. The samples are valid until
// the following call. After the last row it is io.EOF, once everything
// behind it is found to be in order.
func (r *rowReader) next() (row []byte, filter byte, err error) {
	for len(r.passes) > 0 && r.y == r.passes[0].height {
		r.passes, r.y = r.passes[1:], 0
	}
	if len(r.passes) == 0 {
		return nil, 0, r.finish()
	}
	p := r.passes[0]
	r.cur, r.prev = r.prev[:p.rowBytes+1], r.cur[:p.rowBytes+1]
	if r.y == 0 {
		clear(r.prev)
	}
	if _, err := io.ReadFull(r.zr, r.cur); err != nil {
		return nil, 0, r.readError(err)
	}
	filter, row = r.cur[0], r.cur[1:]
	if filter > filterPaeth {
		return nil, 0, refuse(ReasonBadData, "a scanline has the filter type %d", filter)
	}
	unfilter(filter, row, r.prev[1:], r.hdr.filterDistance())
	if used := paddedBits(p.width, r.hdr); used != 0 {
		// In a copy: the filter of the next row builds on what was stored, the bits that are no pixel's among it.
		r.masked = append(r.masked[:0], row...)
		row = r.masked
		row[len(row)-1] &= 0xff << (8 - used)
	}
	r.y++
	return row, filter, nil
}

// width is the number of pixels of the row that next gave last.
func (r *rowReader) width() int { return r.passes[0].width }

// paddedBits is how many bits of the last byte of a row are of pixels, 0 if all are. The value of the others is not part of the
// picture (PNG, 7.2).
func paddedBits(width int, h header) int {
	if h.depth >= 8 {
		return 0
	}
	return width * h.bitsPerPixel() % 8
}

func (r *rowReader) readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse(ReasonBadData, "the IDAT stream ends before the picture does")
	}
	return refuse(ReasonBadData, "the IDAT stream does not inflate: %v", err)
}

// finish checks that the stream ends with the picture: nothing more to
// inflate, the Adler-32 right (the inflater looks at it on EOF), no bytes left.
func (r *rowReader) finish() error {
	var one [1]byte
	if n, err := io.ReadFull(r.zr, one[:]); n != 0 {
		return refuse(ReasonBadData, "the IDAT stream goes on after the picture")
	} else if err != io.EOF {
		return refuse(ReasonBadData, "the IDAT stream does not end well: %v", err)
	}
	if n, err := io.ReadFull(r.src, one[:]); n != 0 || err != io.EOF {
		return refuse(ReasonBadData, "the IDAT chunks hold more than the zlib stream")
	}
	return io.EOF
}
