// Package png re-encodes PNG files smaller without changing what they show.
//
// Reencode takes the bytes of a file and gives back the bytes of a smaller
// one, or nothing when the original has to stay. It works in five steps:
//
//	walk     every chunk is read strictly: lengths, CRCs, order, number (parse.go, rules.go)
//	decode   the IDAT stream is inflated and unfiltered to exact samples (rows.go, raster.go)
//	reduce   bit depth, unused alpha, palette: only where every pixel keeps its exact value (reduce.go, palette.go, translate.go)
//	encode   several filter strategies are tried, the best is deflated (strategy.go, encode.go, zlib.go, assemble.go)
//	verify   the result is walked and decoded again and compared sample by sample (verify.go)
//
// # What stays
//
// Every pixel keeps its exact value, the colour of fully transparent pixels
// and the interlacing included. Every ancillary chunk stays, byte for byte, in
// its place between the critical chunks; only bKGD, sBIT and tRNS are
// translated when a reduction changes the way samples are stored. IDAT chunks
// are joined to one.
//
// # Doubt keeps the original
//
// A file that is not a complete and valid PNG, one that carries something
// this package cannot carry over (an animation, a signature, a chunk that is
// unknown and critical or not safe to copy), and one that breaks a limit all
// stay as they are; Report.Reason says why. Nothing is repaired.
//
// # Files that are done already
//
// The zlib stream of a re-encoded file begins with an empty block with fixed
// codes (10 bits; RFC 1951, 3.2.6), which decoders skip and no common encoder
// writes there, and FLEVEL (RFC 1950, 2.2) names the level. Both are inside
// the image data, so any byte copy of the file carries them and no chunk has
// to be added. A file marked with the level asked for, or a higher one, is
// recognised without being inflated. A file without the mark that cannot
// be made smaller stays without it and is tried again when asked again.
//
// # Determinism
//
// The same input, options and Version give the same bytes on any machine.
// No floating point, clock or map order takes part in a decision; a call runs
// on its caller's goroutine alone. A timeout never changes the result: it
// ends in "the original stays".
package png
