package recode_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/recode"
	"vdefs/fs/replica"
	"vdefs/vde"
)

// mounted mounts a new store for the length of a test.
func mounted(t *testing.T, mode string, options fs.MountOptions) (string, *replica.Volume) {
	t.Helper()
	return mountedWith(t, mode, 0, options)
}

// mountedWith has a budget of memory in bytes, 0 for the usual.
func mountedWith(t *testing.T, mode string, memory int64, options fs.MountOptions) (string, *replica.Volume) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("mounting takes /dev/fuse: ", err)
	}
	logger := logrus.New()
	logger.SetOutput(t.Output())
	store := filepath.Join(t.TempDir(), "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	v, err := replica.Open(store, replica.Options{Logger: logger, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.StartPNG(mode, memory); err != nil {
		t.Fatal(err)
	}
	options.AllowOther, options.DefaultPermissions, options.Logger = true, true, logger
	dir := t.TempDir()
	server, err := fs.Mount(v, dir, options)
	if err != nil {
		t.Fatal(errors.Join(err, v.Close()))
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir, v
}

// caching are the ways that the kernel may cache, which differ in whose the size of a file is.
var caching = map[string]fs.MountOptions{
	"writeback": {}, "writethrough": {NoWriteback: true}, "nocache": {NoCache: true},
}

// picture draws something that compresses well, different for every seed.
func picture(width, height, seed int) image.Image {
	m := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			m.SetNRGBA(x, y, color.NRGBA{uint8(x + seed), uint8(y * 3), uint8(x ^ y), 255})
		}
	}
	return m
}

// fat encodes a picture without compression.
func fat(t testing.TB, m image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samePicture decodes with Go's decoder, which shares no code with ours.
func samePicture(data []byte, want image.Image) error {
	got, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return err
	}
	if got.Bounds() != want.Bounds() {
		return fmt.Errorf("bounds %v, want %v", got.Bounds(), want.Bounds())
	}
	for y := range want.Bounds().Dy() {
		for x := range want.Bounds().Dx() {
			if g, w := color.NRGBAModel.Convert(got.At(x, y)), color.NRGBAModel.Convert(want.At(x, y)); g != w {
				return fmt.Errorf("pixel %d,%d is %v, want %v", x, y, g, w)
			}
		}
	}
	return nil
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func stat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(path, err)
	}
	return &st
}

func record(path string) (r recode.Record, ok bool) {
	buf := make([]byte, 4096)
	n, err := unix.Getxattr(path, recode.Xattr, buf)
	return r, err == nil && json.Unmarshal(buf[:n], &r) == nil
}

func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 seconds: %s", what)
		}
	}
}

func done(t testing.TB, path string) recode.Record {
	t.Helper()
	eventually(t, filepath.Base(path)+" is not done", func() bool { _, ok := record(path); return ok })
	r, _ := record(path)
	return r
}

// idle waits until nothing is left to do and the last change has been told to the kernel.
func idle(t testing.TB, v *replica.Volume) {
	t.Helper()
	last := v.PNGStats()
	same := 0
	eventually(t, "the queue is not empty", func() bool {
		s := v.PNGStats()
		if s.Queued == 0 && s.Done == last.Done && fmt.Sprint(s.Skipped) == fmt.Sprint(last.Skipped) {
			same++
		} else {
			same = 0
		}
		last = s
		return same > 60
	})
}

// smaller checks everything about a file that was made smaller.
func smaller(t testing.TB, path string, before *syscall.Stat_t, m image.Image) {
	t.Helper()
	after := stat(t, path)
	if after.Size >= before.Size {
		t.Errorf("%s has %d bytes, as it was written", path, after.Size)
	}
	data := read(t, path)
	if int64(len(data)) != after.Size {
		t.Errorf("%s: read %d bytes, stat says %d", path, len(data), after.Size)
	}
	if err := samePicture(data, m); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	if after.Mtim != before.Mtim || after.Ino != before.Ino || after.Mode != before.Mode || after.Nlink != before.Nlink {
		t.Errorf("%s was %+v, is %+v", path, before, after)
	}
	if after.Blocks >= before.Blocks {
		t.Errorf("%s has %d blocks, %d before", path, after.Blocks, before.Blocks)
	}
}
