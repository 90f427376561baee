package png

import (
	"fmt"
	"time"
)

// Version names the output: it is raised by any change that makes the same
// input and options give other bytes.
const Version = 7

// Level is how much time is spent on size.
type Level uint8

const (
	// Fast tries few filters and deflates with short match searches.
	Fast Level = iota + 1
	// Default is what a mount uses in the background.
	Default
	// Best tries every strategy and iterates the deflate parser longer.
	Best
)

// String gives the name that UnmarshalText takes.
func (l Level) String() string {
	switch l {
	case Fast:
		return "fast"
	case Default:
		return "default"
	case Best:
		return "best"
	}
	return fmt.Sprintf("level(%d)", uint8(l))
}

// MarshalText is for JSON and for flags.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText takes "fast", "default" or "best".
func (l *Level) UnmarshalText(text []byte) error {
	for v := Fast; v <= Best; v++ {
		if v.String() == string(text) {
			*l = v
			return nil
		}
	}
	return fmt.Errorf("png: level %q is not known: use fast, default or best", text)
}

// Options says what Reencode may do. Start from DefaultOptions: the zero
// value has no level and is refused.
type Options struct {
	Level Level

	// Reductions allows another colour type, bit depth or palette where every
	// pixel keeps its exact value. Off, IHDR, PLTE and tRNS stay as they are.
	Reductions bool

	// Force re-encodes files that bear the mark of an earlier run too.
	Force bool

	// Limits; a file beyond one stays as it is. They bound memory as well:
	// Reencode allocates at most 4 times the decoded size, plus the size of
	// the file, plus 16 MiB.
	MaxBytes  int64 // size of the file
	MaxPixels int64 // width times height
	MaxRaw    int64 // decoded size: all scanlines with their filter bytes

	// Timeout is how long one call may take; 0 means as long as it takes.
	Timeout time.Duration
}

// hardMax is the largest MaxBytes and MaxRaw that is honoured: positions in
// buffers have to fit into 31 bits.
const hardMax = 1<<31 - 1<<20

// DefaultOptions is what a mount uses.
func DefaultOptions() Options {
	return Options{
		Level:      Default,
		Reductions: true,
		MaxBytes:   256 << 20,
		MaxPixels:  128 << 20,
		MaxRaw:     512 << 20,
		Timeout:    10 * time.Minute,
	}
}

func (o Options) validate() error {
	if o.Level < Fast || o.Level > Best {
		return fmt.Errorf("png: options: %v is not a level: start from DefaultOptions", o.Level)
	}
	if o.MaxBytes <= 0 || o.MaxPixels <= 0 || o.MaxRaw <= 0 {
		return fmt.Errorf("png: options: limits must be above 0 (bytes %d, pixels %d, raw %d): start from DefaultOptions",
			o.MaxBytes, o.MaxPixels, o.MaxRaw)
	}
	if o.Timeout < 0 {
		return fmt.Errorf("png: options: timeout %v is negative: use 0 for none", o.Timeout)
	}
	return nil
}
