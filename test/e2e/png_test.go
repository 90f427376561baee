package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// picture draws something with smooth and busy parts.
func picture(width, height int) image.Image {
	m := image.NewNRGBA(image.Rect(0, 0, width, height))
	state := uint32(1)
	for y := range height {
		for x := range width {
			state = state*1664525 + 1013904223
			c := color.NRGBA{R: uint8(x * 255 / width), G: uint8(y * 255 / height), B: uint8((x ^ y) & 0xf0), A: 255}
			if x > width/2 && y > height/2 {
				c = color.NRGBA{R: uint8(state >> 24), G: uint8(state >> 25), B: uint8(x), A: uint8(200 + y%56)}
			}
			m.SetNRGBA(x, y, c)
		}
	}
	return m
}

// badlyCompressed encodes an image without compression.
func badlyCompressed(t *testing.T, m image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.NoCompression}
	if err := encoder.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// eventually waits for something that happens in the background.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happened(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 seconds: %s", what)
		}
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// samePixels decodes a file with Go's decoder, which shares no code with vde's, and compares it with an image.
func samePixels(t *testing.T, path string, want image.Image) {
	t.Helper()
	got, err := png.Decode(bytes.NewReader(read(t, path)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if got.Bounds() != want.Bounds() {
		t.Fatalf("%s: bounds %v, want %v", path, got.Bounds(), want.Bounds())
	}
	for y := range want.Bounds().Dy() {
		for x := range want.Bounds().Dx() {
			// All 16 bits of a channel, whatever the two files keep them in.
			if a, b := color.NRGBA64Model.Convert(got.At(x, y)), color.NRGBA64Model.Convert(want.At(x, y)); a != b {
				t.Fatalf("%s: pixel %d,%d is %v, want %v", path, x, y, a, b)
			}
		}
	}
}

// A badly compressed .png gets smaller by itself and keeps its pixels and its attributes; nothing else is touched.
func TestPNG(t *testing.T) {
	m := picture(300, 200)
	fat := badlyCompressed(t, m)
	withTrailer := append(bytes.Clone(fat), "and something behind the end"...)
	untouched := map[string][]byte{
		"text.png":      bytes.Repeat([]byte("this is no picture\n"), 1000),
		"truncated.png": fat[:len(fat)/2],
		"trailing.png":  withTrailer,
		"corrupt.png":   append(append(bytes.Clone(fat[:5000]), fat[5000]^1), fat[5001:]...),
		"empty.png":     {},
		"picture.dat":   fat,
	}
	d := mounted(t, "256M")
	path := d.path("picture.png")
	write(t, path, fat)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	for name, data := range untouched {
		write(t, d.path(name), data)
	}
	check := func() {
		t.Helper()
		samePixels(t, path, m)
		for name, data := range untouched {
			if got := read(t, d.path(name)); !bytes.Equal(got, data) {
				t.Errorf("%s was changed: %d bytes with sum %08x, want %d with %08x", name, len(got), crc32.ChecksumIEEE(got), len(data), crc32.ChecksumIEEE(data))
			}
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	eventually(t, "picture.png is as large as it was", func() bool { return fileSize(t, path) < int64(len(fat))/2 })
	time.Sleep(2 * time.Second) // time enough to do wrong to the others
	check()
	t.Logf("%d bytes became %d", len(fat), fileSize(t, path))
	d.remount()
	check()
}

// A mount can leave .png files alone, and can make them smaller before close returns.
func TestPNGModes(t *testing.T) {
	m := picture(100, 100)
	fat := badlyCompressed(t, m)
	d := mounted(t, "64M", "png=off")
	write(t, d.path("off.png"), fat)
	time.Sleep(3 * time.Second)
	if got := read(t, d.path("off.png")); !bytes.Equal(got, fat) {
		t.Errorf("png=off: the file was changed to %d bytes", len(got))
	}
	d.remount("png=sync")
	write(t, d.path("sync.png"), fat)
	if size := fileSize(t, d.path("sync.png")); size >= int64(len(fat)) {
		t.Errorf("png=sync: right after close the file has %d bytes, as written", size)
	}
	samePixels(t, d.path("sync.png"), m)
}

// TestPNGAfterDeath: what was still to be made smaller when the daemon was killed, or unmounted, is when it is mounted again.
func TestPNGAfterDeath(t *testing.T) {
	d := mounted(t, "256M")
	m := picture(120, 90)
	data := badlyCompressed(t, m)
	made := func(path string) bool {
		n, err := unix.Getxattr(path, "user.vde.png", nil)
		return err == nil && n > 0
	}
	for _, end := range []string{"killed", "unmounted"} {
		var paths []string
		for i := range 40 {
			paths = append(paths, d.path(fmt.Sprintf("%s \"%d\"\n.png", end, i)))
			if err := os.WriteFile(paths[i], data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		last := d.path(end + "-moved.png") // has its name from a rename, and no other
		if err := errors.Join(os.WriteFile(d.path("x"), data, 0o644), os.Rename(d.path("x"), last)); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, last)
		if end == "killed" {
			eventually(t, "what is to be done is not noted", func() bool { // it is noted beside the writes, not before them
				noted, err := os.ReadFile(filepath.Join(d.store, "png-queue"))
				return err == nil && bytes.Contains(noted, []byte(filepath.Base(last))) || made(last)
			})
			d.kill()
		} else {
			d.umount()
		}
		d.mount()
		for _, path := range paths {
			eventually(t, path+" is as it was written", func() bool { return made(path) })
			if fileSize(t, path) >= int64(len(data)) {
				t.Errorf("%s did not get smaller", path)
			}
		}
		samePixels(t, last, m)
	}
}
