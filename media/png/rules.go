package png

// place is where a chunk may stand (PNG, table 5.3).
type place uint8

const (
	anywhere   place = iota // between IHDR and IEND
	beforeIDAT              // before the first IDAT
	beforePLTE              // before PLTE, and before the first IDAT
	afterPLTE               // after PLTE if there is one, before the first IDAT
)

// rule is what is known of an ancillary chunk.
type rule struct {
	place    place
	multiple bool
	// check judges the contents once the whole file is walked; nil means any.
	check func(f *file, data []byte) *refusal
}

// rules has every ancillary chunk that may be copied although the image data
// around it is rewritten: none of them depends on how IDAT is encoded. Those
// that depend on the colour type, the depth or the palette are translated
// (translate.go) or forbid the reduction (findFetters).
var rules = map[string]rule{
	// PNG, third edition
	"cHRM": {place: beforePLTE},
	"cICP": {place: beforePLTE},
	"gAMA": {place: beforePLTE},
	"iCCP": {place: beforePLTE},
	"mDCV": {place: beforePLTE},
	"cLLI": {place: beforePLTE},
	"sBIT": {place: beforePLTE, check: checkSBIT},
	"sRGB": {place: beforePLTE},
	"bKGD": {place: afterPLTE, check: checkBKGD},
	"hIST": {place: afterPLTE, check: checkHIST},
	"tRNS": {place: afterPLTE, check: checkTRNS},
	"eXIf": {place: anywhere},
	"pHYs": {place: beforeIDAT},
	"sPLT": {place: beforeIDAT, multiple: true},
	"tIME": {place: anywhere},
	"iTXt": {place: anywhere, multiple: true},
	"tEXt": {place: anywhere, multiple: true},
	"zTXt": {place: anywhere, multiple: true},
	// Extensions to PNG, 1.5.0
	"oFFs": {place: beforeIDAT},
	"pCAL": {place: beforeIDAT},
	"sCAL": {place: beforeIDAT},
	"sTER": {place: beforeIDAT},
	"gIFg": {place: anywhere, multiple: true},
	"gIFt": {place: anywhere, multiple: true},
	"gIFx": {place: anywhere, multiple: true},
	"fRAc": {place: anywhere, multiple: true},
}

// untouchable has the chunks whose presence keeps a file as it is.
var untouchable = map[string]Reason{
	"acTL": ReasonAPNG,
	"fcTL": ReasonAPNG,
	"fdAT": ReasonAPNG,
	"dSIG": ReasonSigned,
	"caBX": ReasonProvenance,
	"iDOT": ReasonIDOT,
	"CgBI": ReasonCgBI,
}

func checkSBIT(f *file, data []byte) *refusal {
	want, max := f.hdr.ctype.channels(), f.hdr.depth
	if f.hdr.ctype == indexed {
		want, max = 3, 8
	}
	if len(data) != want {
		return refuse(ReasonBadChunk, "sBIT has %d bytes, not %d", len(data), want)
	}
	for _, v := range data {
		if v == 0 || v > max {
			return refuse(ReasonBadChunk, "sBIT gives %d significant bits of %d", v, max)
		}
	}
	return nil
}

func checkBKGD(f *file, data []byte) *refusal {
	switch {
	case f.hdr.ctype == indexed:
		if len(data) != 1 || int(data[0]) >= len(f.plte)/3 {
			return refuse(ReasonBadChunk, "bKGD % x is not an index into a palette of %d", data, len(f.plte)/3)
		}
		return nil
	case f.hdr.ctype.isGray():
		return checkSamples("bKGD", f.hdr, data, 1)
	}
	return checkSamples("bKGD", f.hdr, data, 3)
}

func checkTRNS(f *file, data []byte) *refusal {
	switch f.hdr.ctype {
	case indexed:
		if len(data) == 0 || len(data) > len(f.plte)/3 {
			return refuse(ReasonBadChunk, "tRNS has %d entries for a palette of %d", len(data), len(f.plte)/3)
		}
		return nil
	case gray:
		return checkSamples("tRNS", f.hdr, data, 1)
	case rgb:
		return checkSamples("tRNS", f.hdr, data, 3)
	}
	return refuse(ReasonBadChunk, "tRNS is not allowed with %v", f.hdr.ctype)
}

// checkSamples wants n samples of 16 bits, none above what the depth
// allows: decoders differ in what they make of a larger one.
func checkSamples(name string, h header, data []byte, n int) *refusal {
	if len(data) != 2*n {
		return refuse(ReasonBadChunk, "%s has %d bytes, not %d", name, len(data), 2*n)
	}
	for i := 0; i < len(data); i += 2 {
		if v := uint16(data[i])<<8 | uint16(data[i+1]); v > h.maxSample() {
			return refuse(ReasonBadChunk, "%s has the sample %d at a depth of %d", name, v, h.depth)
		}
	}
	return nil
}

func checkHIST(f *file, data []byte) *refusal {
	if len(f.plte) == 0 || len(data) != len(f.plte)/3*2 {
		return refuse(ReasonBadChunk, "hIST has %d bytes for a palette of %d", len(data), len(f.plte)/3)
	}
	return nil
}
