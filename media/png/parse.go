package png

import (
	"encoding/binary"
	"hash/crc32"
)

const signature = "\x89PNG\r\n\x1a\n"

// chunkOverhead is length, type and CRC.
const chunkOverhead = 12

// chunk is one chunk of a file. Its data points into the input.
type chunk struct {
	typ  string // four ASCII letters
	data []byte
}

// file is a PNG whose chunks have been walked: signature, lengths, names,
// CRCs, order, number and the contents of the chunks that the picture depends
// on are right. The IDAT stream has not been looked at.
type file struct {
	hdr header
	// chunks has all chunks in their order, except IHDR and IEND; all
	// IDAT together are one entry without data.
	chunks []chunk
	idat   [][]byte // in order; empty ones left out
	plte   []byte   // nil when there is none; 3 bytes per entry
	trns   []byte   // nil when there is none
}

// has tells whether there is a chunk of the type.
func (f *file) has(typ string) bool { return f.find(typ) != nil }

// find gives the first chunk of the type, or nil.
func (f *file) find(typ string) *chunk {
	for i := range f.chunks {
		if f.chunks[i].typ == typ {
			return &f.chunks[i]
		}
	}
	return nil
}

func (f *file) format() Format {
	return Format{ColourType: uint8(f.hdr.ctype), Depth: f.hdr.depth, Palette: len(f.plte) / 3}
}

// parse walks the chunks of in and refuses whatever is not certain. The
// file keeps pointing into in. With a refusal that came after IHDR the file
// is given too, for its header alone.
func parse(in []byte) (*file, *refusal) {
	if len(in) < len(signature) || string(in[:len(signature)]) != signature {
		return nil, refuse(ReasonNotPNG, "the PNG signature is missing")
	}
	var f *file
	var (
		seen     = map[string]bool{}
		inIDAT   bool // the chunk before was IDAT
		pos      = len(signature)
		finished bool
	)
	for !finished {
		start := pos
		c, n, err := readChunk(in, pos)
		if err != nil {
			return f, err
		}
		pos += n
		if f == nil {
			if c.typ == "CgBI" {
				return nil, refuse(ReasonCgBI, "chunk CgBI comes first")
			}
			if c.typ != "IHDR" {
				return nil, refuse(ReasonMisplaced, "the first chunk is %s, not IHDR", c.typ)
			}
			hdr, err := parseHeader(c.data)
			if err != nil {
				return nil, err
			}
			f = &file{hdr: hdr}
			seen["IHDR"] = true
			continue
		}
		if err := f.admit(c, start, seen, inIDAT); err != nil {
			return f, err
		}
		inIDAT = c.typ == "IDAT"
		finished = c.typ == "IEND"
		seen[c.typ] = true
	}
	if pos != len(in) {
		return f, refuse(ReasonTrailing, "%d bytes after IEND", len(in)-pos)
	}
	return f, f.checkWhole()
}

// readChunk gives the chunk at pos and its whole length.
func readChunk(in []byte, pos int) (chunk, int, *refusal) {
	rest := in[pos:]
	if len(rest) < chunkOverhead {
		return chunk{}, 0, refuse(ReasonTruncated, "the file ends inside a chunk at offset %d", pos)
	}
	length := binary.BigEndian.Uint32(rest)
	if length > 1<<31-1 {
		return chunk{}, 0, refuse(ReasonBadChunk, "chunk at offset %d has a length of %d", pos, length)
	}
	for _, b := range rest[4:8] {
		if b|0x20 < 'a' || b|0x20 > 'z' {
			return chunk{}, 0, refuse(ReasonBadChunk, "chunk at offset %d has the name %q", pos, rest[4:8])
		}
	}
	typ := string(rest[4:8])
	if int64(length) > int64(len(rest)-chunkOverhead) {
		return chunk{}, 0, refuse(ReasonTruncated, "the file ends inside chunk %s at offset %d", typ, pos)
	}
	end := 8 + int(length)
	if got, want := crc32.ChecksumIEEE(rest[4:end]), binary.BigEndian.Uint32(rest[end:]); got != want {
		return chunk{}, 0, refuse(ReasonBadCRC, "chunk %s at offset %d has CRC %08x, its bytes give %08x", typ, pos, want, got)
	}
	return chunk{typ, rest[8:end:end]}, end + 4, nil
}

// admit takes one chunk after IHDR. seen has the types before it.
func (f *file) admit(c chunk, pos int, seen map[string]bool, inIDAT bool) *refusal {
	switch c.typ {
	case "IHDR":
		return refuse(ReasonDuplicate, "a second IHDR at offset %d", pos)
	case "PLTE":
		if seen["PLTE"] {
			return refuse(ReasonDuplicate, "a second PLTE at offset %d", pos)
		}
		if seen["IDAT"] || seen["tRNS"] || seen["bKGD"] || seen["hIST"] {
			return refuse(ReasonMisplaced, "PLTE at offset %d comes too late", pos)
		}
		f.plte = c.data
		f.chunks = append(f.chunks, c)
		return nil
	case "IDAT":
		if seen["IDAT"] && !inIDAT {
			return refuse(ReasonMisplaced, "IDAT at offset %d does not follow the others", pos)
		}
		if !seen["IDAT"] {
			f.chunks = append(f.chunks, chunk{typ: "IDAT"})
		}
		if len(c.data) > 0 {
			f.idat = append(f.idat, c.data)
		}
		return nil
	case "IEND":
		if len(c.data) != 0 {
			return refuse(ReasonBadChunk, "IEND has %d bytes, not 0", len(c.data))
		}
		return nil
	}
	if r, ok := untouchable[c.typ]; ok {
		return refuse(r, "chunk %s at offset %d", c.typ, pos)
	}
	if c.typ[2]&0x20 != 0 {
		return refuse(ReasonBadChunk, "chunk %s at offset %d has the reserved bit set", c.typ, pos)
	}
	if c.typ[0]&0x20 == 0 {
		return refuse(ReasonUnknownCritical, "chunk %s at offset %d", c.typ, pos)
	}
	r, known := rules[c.typ]
	if !known {
		if c.typ[3]&0x20 == 0 {
			return refuse(ReasonUnsafeChunk, "chunk %s at offset %d", c.typ, pos)
		}
		r = rule{place: anywhere, multiple: true}
	}
	if seen[c.typ] && !r.multiple {
		return refuse(ReasonDuplicate, "a second %s at offset %d", c.typ, pos)
	}
	if r.place != anywhere && seen["IDAT"] || r.place == beforePLTE && seen["PLTE"] {
		return refuse(ReasonMisplaced, "%s at offset %d comes too late", c.typ, pos)
	}
	if c.typ == "tRNS" {
		f.trns = c.data
	}
	f.chunks = append(f.chunks, c)
	return nil
}

// checkWhole judges what can only be judged with all chunks at hand.
func (f *file) checkWhole() *refusal {
	if !f.has("IDAT") {
		return refuse(ReasonMissing, "there is no IDAT")
	}
	switch p := f.find("PLTE"); {
	case p == nil && f.hdr.ctype == indexed:
		return refuse(ReasonMissing, "there is no PLTE")
	case p != nil && f.hdr.ctype.isGray():
		return refuse(ReasonMisplaced, "PLTE is not allowed with %v", f.hdr.ctype)
	case p != nil:
		n := len(f.plte) / 3
		if len(f.plte)%3 != 0 || n == 0 || n > 256 || f.hdr.ctype == indexed && n > 1<<f.hdr.depth {
			return refuse(ReasonBadChunk, "PLTE has %d bytes at a depth of %d", len(f.plte), f.hdr.depth)
		}
	}
	for _, c := range f.chunks {
		if r := rules[c.typ]; r.check != nil {
			if err := r.check(f, c.data); err != nil {
				return err
			}
		}
	}
	return nil
}

// appendChunk appends a chunk with its CRC.
func appendChunk(dst []byte, typ string, data []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(data)))
	start := len(dst)
	dst = append(dst, typ...)
	dst = append(dst, data...)
	return binary.BigEndian.AppendUint32(dst, crc32.ChecksumIEEE(dst[start:]))
}
