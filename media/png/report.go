package png

import (
	"fmt"
	"time"
)

// Reason is why the original stays. The values are part of the JSON report
// and of the xattr a mount writes: they are never renamed.
type Reason string

// Limits and outcomes of files that are fine.
const (
	ReasonNone        Reason = ""             // it was re-encoded
	ReasonNotSmaller  Reason = "not-smaller"  // nothing smaller was found
	ReasonAlreadyDone Reason = "already-done" // it bears the mark of this level or a higher one
	ReasonTooLarge    Reason = "too-large"    // beyond MaxBytes, MaxPixels or MaxRaw
	ReasonTimeout     Reason = "timeout"      // took longer than Timeout
	ReasonVerify      Reason = "verify"       // the result did not decode to the same picture: a bug, please report
)

// Valid files that carry something that would be lost or broken.
const (
	ReasonAPNG            Reason = "apng"             // an animation (acTL, fcTL, fdAT)
	ReasonSigned          Reason = "signed"           // dSIG signs the bytes
	ReasonProvenance      Reason = "provenance"       // caBX (C2PA) signs the bytes
	ReasonIDOT            Reason = "idot"             // iDOT points into the IDAT stream
	ReasonCgBI            Reason = "cgbi"             // Apple's private variant, not a PNG
	ReasonUnknownCritical Reason = "unknown-critical" // a critical chunk that PNG does not define
	ReasonUnsafeChunk     Reason = "unsafe-chunk"     // an unknown chunk that is not safe to copy
)

// Damaged files and files that are not PNGs.
const (
	ReasonNotPNG    Reason = "not-png"       // no PNG signature
	ReasonTruncated Reason = "truncated"     // ends inside a chunk or without IEND
	ReasonTrailing  Reason = "trailing-data" // bytes after IEND
	ReasonBadCRC    Reason = "bad-crc"
	ReasonBadChunk  Reason = "bad-chunk"  // length, name or contents of a chunk break its rules
	ReasonBadHeader Reason = "bad-header" // IHDR
	ReasonMisplaced Reason = "misplaced"  // a chunk where its rules do not allow it
	ReasonDuplicate Reason = "duplicate"  // a second one of a chunk that may come once
	ReasonMissing   Reason = "missing"    // no IDAT, or no PLTE where one is needed
	ReasonBadData   Reason = "bad-data"   // the IDAT stream: zlib, filter bytes, length, palette indices
)

// Damaged tells files that are not valid PNGs from those that are and
// stay for another reason.
func (r Reason) Damaged() bool {
	switch r {
	case ReasonNotPNG, ReasonTruncated, ReasonTrailing, ReasonBadCRC, ReasonBadChunk,
		ReasonBadHeader, ReasonMisplaced, ReasonDuplicate, ReasonMissing, ReasonBadData:
		return true
	}
	return false
}

// Format is how samples are stored.
type Format struct {
	ColourType uint8 `json:"colour_type"`       // as in IHDR: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA
	Depth      uint8 `json:"depth"`             // bits per sample
	Palette    int   `json:"palette,omitempty"` // entries of PLTE
}

// String gives, for example, "palette/4 (13 colours)".
func (f Format) String() string {
	s := fmt.Sprintf("%s/%d", colourType(f.ColourType), f.Depth)
	if f.ColourType == uint8(indexed) {
		s += fmt.Sprintf(" (%d colours)", f.Palette)
	}
	return s
}

// Report says what Reencode did or why it did nothing.
type Report struct {
	// Kept means the original stays; Reason, and for people Detail, say why.
	Kept   bool   `json:"kept"`
	Reason Reason `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`

	InBytes  int64 `json:"in_bytes"`
	OutBytes int64 `json:"out_bytes"` // equal to InBytes when Kept

	// Of the picture; zero when the walk over the chunks did not get that far.
	Width      int    `json:"width,omitempty"`
	Height     int    `json:"height,omitempty"`
	Interlaced bool   `json:"interlaced,omitempty"`
	Before     Format `json:"before"`
	After      Format `json:"after"` // equal to Before when Kept

	Filter  string        `json:"filter,omitempty"` // strategy that won
	Level   Level         `json:"level"`
	Version int           `json:"version"`
	Elapsed time.Duration `json:"elapsed_ns"`
}

// refusal is the error of everything that makes the original stay. It never
// leaves the package as an error: Reencode turns it into a Report.
type refusal struct {
	reason Reason
	detail string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("png: %s: %s", r.reason, r.detail)
}

func refuse(reason Reason, format string, args ...any) *refusal {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}
