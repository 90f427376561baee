package main

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	good := map[string]uint64{
		"0": 0, "4096": 4096, "1K": 1 << 10, "512M": 512 << 20, "10G": 10 << 30, "1T": 1 << 40, "2P": 2 << 50, "15E": 15 << 60,
		"512m": 512 << 20, "10GiB": 10 << 30, "10gib": 10 << 30, "7B": 7, "18446744073709551615": 1<<64 - 1,
	}
	for text, want := range good {
		if got, err := parseSize(text); err != nil || uint64(got) != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	bad := map[string]string{
		"": "no number", "G": "no number", "-1G": "no number", "+1G": "no number", " 1G": "no number", "ten": "no number",
		"1.5G": "whole numbers", "10 G": "no unit", "10GG": "no unit", "10X": "no unit", "1G ": "no unit", "0x10": "no unit",
		"1e9": "no unit", "10GB": "ambiguous", "1kb": "ambiguous", "16E": "too large", "18446744073709551616": "too large",
		"99999999999999999999T": "too large", "18446744073709551615K": "too large",
	}
	for text, want := range bad {
		got, err := parseSize(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseSize(%q) = %d, %v; want an error with %q", text, got, err, want)
		}
	}
}

// What String prints, parseSize reads back.
func TestSizeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := byteSize(rapid.Uint64().Draw(t, "size") >> rapid.IntRange(0, 63).Draw(t, "shift") << rapid.IntRange(0, 40).Draw(t, "unit"))
		if back, err := parseSize(size.String()); err != nil || back != size {
			t.Fatalf("%d prints as %q, which reads as %d, %v", size, size, back, err)
		}
	})
}
