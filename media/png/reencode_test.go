package png

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// reencodeAndCheck re-encodes and compares with everything there is to compare.
func reencodeAndCheck(t *testing.T, in []byte, o Options) ([]byte, Report) {
	t.Helper()
	out, r, err := Reencode(context.Background(), in, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Kept != (out == nil) || r.Kept != (r.Reason != ReasonNone) {
		t.Fatalf("report %+v with %d bytes out", r, len(out))
	}
	if out == nil {
		if r.OutBytes != r.InBytes || r.Before != r.After {
			t.Fatalf("kept, but the report says %+v", r)
		}
		if r.Reason == ReasonVerify {
			t.Fatalf("verification failed: %s", r.Detail)
		}
		return nil, r
	}
	if len(out) >= len(in) || r.OutBytes != int64(len(out)) {
		t.Fatalf("%d bytes became %d, reported as %d", len(in), len(out), r.OutBytes)
	}
	if err := Verify(context.Background(), in, out); err != nil {
		t.Fatal(err)
	}
	samePixels(t, in, out)
	sameChunks(t, in, out)
	return out, r
}

func TestEveryFormat(t *testing.T) {
	for _, h := range formats() {
		for _, interlaced := range []bool{false, true} {
			for _, size := range [][2]int{{1, 1}, {3, 2}, {7, 9}, {33, 17}, {64, 40}} {
				name := fmt.Sprintf("%v-%d-%t-%dx%d", h.ctype, h.depth, interlaced, size[0], size[1])
				t.Run(name, func(t *testing.T) {
					rng := rand.New(rand.NewPCG(uint64(h.depth), uint64(h.ctype)))
					h := h
					h.width, h.height, h.interlaced = size[0], size[1], interlaced
					colours := 1 + rng.IntN(min(40, 1<<h.depth))
					b := build{
						hdr:    h,
						sample: func(x, y, c int) uint16 { return uint16((x/3+y/2+c*7)%colours) * 0x1111 & h.maxSample() },
						filter: func(y int) byte { return byte(y % 5) },
						split:  50,
						after:  []chunk{{"tEXt", []byte("Title\x00x")}},
					}
					if h.ctype == indexed {
						b.sample = func(x, y, c int) uint16 { return uint16((x/3 + y/2) % colours) }
						b.plte = randomPalette(rng, colours)
					}
					reencodeAndCheck(t, b.bytes(), DefaultOptions())
				})
			}
		}
	}
}

// pngFiles lists the PNG files below the directories.
func pngFiles(t testing.TB, dirs ...string) (list []string) {
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".png") {
				list = append(list, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// TestSuiteFiles runs over the PngSuite files that the Go distribution
// has, and over the directories in VDE_PNG_DIRS (separated by colons).
func TestSuiteFiles(t *testing.T) {
	dirs := []string{filepath.Join(goRoot(), "src/image/png/testdata")}
	if extra := os.Getenv("VDE_PNG_DIRS"); extra != "" {
		dirs = append(dirs, strings.Split(extra, ":")...)
	}
	var in, out int64
	reasons := map[Reason]int{}
	for _, path := range pngFiles(t, dirs...) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, r := reencodeAndCheck(t, data, DefaultOptions())
			in, out = in+r.InBytes, out+r.OutBytes
			reasons[r.Reason]++
		})
	}
	t.Logf("%d bytes became %d (%.2f %%); %v", in, out, 100*float64(out)/float64(max(in, 1)), reasons)
}

// TestPaddingIsFiltered: bits behind the last pixel of a row are no part of the picture, but what the filter of the next row builds on.
func TestPaddingIsFiltered(t *testing.T) {
	chunk := func(name string, data []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
		b = append(append(b, name...), data...)
		return append(b, 0, 0, 0, 0) // see fixCRCs
	}
	smaller := 0
	for _, depth := range []byte{1, 2, 4} {
		for _, width := range []byte{1, 3, 5} {
			for filter := byte(0); filter <= filterPaeth; filter++ {
				var stream bytes.Buffer
				w := zlib.NewWriter(&stream)
				for y := range 16 {
					row := []byte{filter}
					for x := range (int(width)*int(depth) + 7) / 8 {
						row = append(row, byte(0x11+y*x))
					}
					_, _ = w.Write(row)
				}
				_ = w.Close()
				in := []byte("\x89PNG\r\n\x1a\n")
				in = append(in, chunk("IHDR", []byte{0, 0, 0, width, 0, 0, 0, 16, depth, 0, 0, 0, 0})...)
				in = append(in, chunk("IDAT", stream.Bytes())...)
				in = fixCRCs(append(in, chunk("IEND", nil)...))
				for _, l := range []Level{Fast, Default, Best} {
					o := DefaultOptions()
					o.Level = l
					if out, _ := reencodeAndCheck(t, in, o); out != nil {
						smaller++
					}
				}
			}
		}
	}
	if smaller < 20 {
		t.Errorf("only %d became smaller: the test is of no use", smaller)
	}
}
