// Package layout turns the fixed structures of a store into bytes and back: the superblock of the image and
// vde.json. It does no I/O; every decoder takes bytes from a disk that may lie and answers with an error, never with
// a panic. docs/formats.md draws what is defined here.
package layout

import "fmt"

// BlockSize is the size of an image block in bytes: the unit of allocation, of checksums and of extents.
const BlockSize = 4096

// The ladder of format versions. One constant per change of what is on disk, never reused; a store of every rung
// stays mountable.
const (
	// Version1 is the first format: superblocks, bitmap, checksum region, Pebble key space, log segments.
	Version1 = 1

	// Newest is what Format writes.
	Newest = Version1
)

// VersionError tells that a store was written by a newer program.
type VersionError struct {
	What  string // the file
	Found uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has format version %d, this program knows versions 1 to %d: use a newer vde", e.What, e.Found, Newest)
}

// CheckVersion refuses what this program cannot read: a newer version with a *VersionError, and 0, which no program ever wrote and
// which a newer one would not help with, as damage.
func CheckVersion(what string, v uint32) error {
	switch {
	case v < Version1:
		return fmt.Errorf("%s: format_version %d is not allowed", what, v)
	case v > Newest:
		return &VersionError{What: what, Found: v}
	}
	return nil
}
