package png

import (
	"bytes"

	"github.com/klauspost/compress/zlib"
)

// encode gives the smallest file it finds, or a refusal when none has less
// than limit bytes.
func encode(f *file, ra *raster, o Options, b *budget, limit int, r *Report) ([]byte, error) {
	var fl filterer
	buf := make([]byte, ra.filteredSize())
	var best []byte
	for _, s := range []strategy{strategyStored, strategyNone, strategyBigrams} {
		data, err := fl.apply(buf, ra, s, b)
		if err != nil {
			return nil, err
		}
		var z bytes.Buffer
		zw, err := zlib.NewWriterLevel(&z, zlib.BestCompression)
		if err != nil {
			return nil, err
		}
		if _, err := zw.Write(data); err != nil {
			return nil, err
		}
		if err := zw.Close(); err != nil {
			return nil, err
		}
		if best == nil || z.Len() < len(best) {
			best, r.Filter = z.Bytes(), s.String()
		}
	}
	out := assemble(f, ra, best)
	if len(out) >= limit {
		return nil, refuse(ReasonNotSmaller, "the smallest form found has %d bytes, the file %d", len(out), limit)
	}
	return out, nil
}

// assemble writes the file: the chunks in their order, IDAT as one chunk.
func assemble(f *file, ra *raster, idat []byte) []byte {
	n := len(signature) + 3*chunkOverhead + headerLen + len(idat)
	for _, c := range f.chunks {
		n += chunkOverhead + len(c.data)
	}
	out := make([]byte, 0, n)
	out = append(out, signature...)
	out = appendChunk(out, "IHDR", ra.hdr.encode())
	for _, c := range f.chunks {
		if c.typ == "IDAT" {
			c.data = idat
		}
		out = appendChunk(out, c.typ, c.data)
	}
	return appendChunk(out, "IEND", nil)
}
