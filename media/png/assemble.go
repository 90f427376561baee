package png

// plan gives the chunks of the output between IHDR and IEND, in their order,
// with an IDAT that is still empty.
func plan(f *file, ra *raster, t *translator) []chunk {
	if ra.hdr == f.hdr && string(ra.plte) == string(f.plte) && string(ra.trns) == string(f.trns) {
		return f.chunks
	}
	var list []chunk
	for _, c := range f.chunks {
		switch c.typ {
		case "PLTE", "tRNS", "bKGD":
			// They stand together in front of IDAT, where all of them may
			// be and where no other chunk has to come after PLTE.
			if c.typ == "PLTE" && ra.hdr.ctype != indexed && ra.plte == nil && f.hdr.ctype != indexed {
				list = append(list, c) // a suggested palette stays where it is
			}
			continue
		case "sBIT":
			c = t.chunk(c, ra)
		case "IDAT":
			if ra.plte != nil && ra.hdr.ctype == indexed {
				list = append(list, chunk{"PLTE", ra.plte})
			}
			if ra.trns != nil {
				list = append(list, chunk{"tRNS", ra.trns})
			}
			if b := f.find("bKGD"); b != nil {
				list = append(list, t.chunk(*b, ra))
			}
		}
		list = append(list, c)
	}
	return list
}

// assembledSize is the length of the file without the IDAT stream.
func assembledSize(f *file, ra *raster, t *translator) int {
	n := len(signature) + 2*chunkOverhead + headerLen
	for _, c := range plan(f, ra, t) {
		n += chunkOverhead + len(c.data)
	}
	return n
}

// assemble writes the file.
func assemble(f *file, ra *raster, t *translator, idat []byte) []byte {
	out := make([]byte, 0, assembledSize(f, ra, t)+len(idat))
	out = append(out, signature...)
	out = appendChunk(out, "IHDR", ra.hdr.encode())
	for _, c := range plan(f, ra, t) {
		if c.typ == "IDAT" {
			c.data = idat
		}
		out = appendChunk(out, c.typ, c.data)
	}
	return appendChunk(out, "IEND", nil)
}
