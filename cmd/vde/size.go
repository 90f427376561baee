package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// sizeUnits are the suffixes of a size; each is 1024 times the one before it.
const sizeUnits = "KMGTPE"

// byteSize is a number of bytes given on the command line as 512M, 10G or 1T. It is a pflag.Value.
type byteSize uint64

// parseSize reads a whole number with an optional unit K, M, G, T, P or E (powers of 1024, either case, "iB" may
// follow the unit). Decimal units ("10GB") are refused because people mean both 10^9 and 2^30 by them.
func parseSize(text string) (byteSize, error) {
	digits := strings.TrimLeft(text, "0123456789")
	number, unit := text[:len(text)-len(digits)], digits
	if number == "" {
		return 0, fmt.Errorf("size %q is no number with a unit: write it like 512M, 10G or 1T", text)
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q is too large: the largest is 15E", text)
	}
	if len(unit) == 3 && strings.EqualFold(unit[1:], "ib") {
		unit = unit[:1]
	}
	switch {
	case unit == "" || strings.EqualFold(unit, "b"):
		return byteSize(n), nil
	case len(unit) == 2 && strings.EqualFold(unit[1:], "b") && isUnit(unit[0]):
		return 0, fmt.Errorf("size %q is ambiguous: write %s%s for powers of 1024", text, number, strings.ToUpper(unit[:1]))
	case len(unit) != 1 || !isUnit(unit[0]):
		return 0, fmt.Errorf("size %q ends in %q, which is no unit: use K, M, G, T, P or E, and whole numbers (1536M, not 1.5G)", text, unit)
	}
	for range strings.IndexByte(sizeUnits, upper(unit[0])) + 1 {
		if n > math.MaxUint64/1024 {
			return 0, fmt.Errorf("size %q is too large: the largest is 15E", text)
		}
		n *= 1024
	}
	return byteSize(n), nil
}

func isUnit(c byte) bool { return strings.IndexByte(sizeUnits, upper(c)) >= 0 }

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

// String gives the size in the largest unit that divides it.
func (s byteSize) String() string {
	n, unit := uint64(s), ""
	for i := 0; i < len(sizeUnits) && n >= 1024 && n%1024 == 0; i++ {
		n, unit = n/1024, sizeUnits[i:i+1]
	}
	return strconv.FormatUint(n, 10) + unit
}

// Set implements pflag.Value.
func (s *byteSize) Set(text string) error {
	n, err := parseSize(text)
	if err != nil {
		return err
	}
	*s = n
	return nil
}

// Type implements pflag.Value; it is what the help shows.
func (s *byteSize) Type() string { return "size" }
