package image

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"vdefs/vde/layout"
)

const blocks = 256

// newImage makes an image in memory.
func newImage(t *testing.T, fs vfs.FS) (vfs.File, *Image) {
	t.Helper()
	file, err := fs.Create("image", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := layout.Geometry(blocks)
	if err != nil {
		t.Fatal(err)
	}
	sb.UUID[0] = 7
	if err := Create(file, sb); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if file, err = fs.OpenReadWrite("image", vfs.WriteCategoryUnspecified); err != nil {
		t.Fatal(err)
	}
	im, healed, err := Open(file, blocks, true)
	if err != nil || healed != "" {
		t.Fatalf("open: %q, %v", healed, err)
	}
	return file, im
}

func filled(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n*BlockSize) }

func TestWriteAndRead(t *testing.T) {
	_, im := newImage(t, vfs.NewMem())
	if err := im.Write(10, filled(1, 3)); err != nil {
		t.Fatal(err)
	}
	if err := im.Write(11, filled(2, 1)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3*BlockSize)
	if err := im.Read(10, got); err != nil {
		t.Fatal(err)
	}
	if want := append(append(filled(1, 1), filled(2, 1)...), filled(1, 1)...); !bytes.Equal(got, want) {
		t.Error("other bytes came back")
	}
	for _, c := range []struct{ start, count uint64 }{{0, 1}, {2, 1}, {blocks - 1, 1}, {blocks - 2, 2}, {1 << 60, 1}} {
		if err := im.Write(c.start, make([]byte, c.count*BlockSize)); err == nil {
			t.Errorf("write of blocks %d+%d succeeded", c.start, c.count)
		}
		if err := im.Read(c.start, make([]byte, c.count*BlockSize)); err == nil {
			t.Errorf("read of blocks %d+%d succeeded", c.start, c.count)
		}
	}
	if err := im.Write(10, make([]byte, 100)); err == nil {
		t.Error("write of a part of a block succeeded")
	}
}

// A block of which any bit has changed is an error that names it, never wrong bytes.
func TestDamageIsNoticed(t *testing.T) {
	file, im := newImage(t, vfs.NewMem())
	if err := im.Write(20, filled(3, 4)); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{22 * BlockSize, 23*BlockSize - 1, int64(im.Super().ChecksumStart*BlockSize + 22*4)} {
		var was [1]byte
		if _, err := file.ReadAt(was[:], at); err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt([]byte{was[0] ^ 4}, at); err != nil {
			t.Fatal(err)
		}
		var bad *ChecksumError
		if err := im.Read(20, make([]byte, 4*BlockSize)); !errors.As(err, &bad) || bad.Block != 22 || !errors.Is(err, ErrChecksum) {
			t.Errorf("byte %d changed: %v", at, err)
		}
		if _, err := file.WriteAt(was[:], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Read(20, make([]byte, 4*BlockSize)); err != nil {
		t.Error(err)
	}
	// Never written is no data either.
	if err := im.Read(100, make([]byte, BlockSize)); !errors.Is(err, ErrChecksum) {
		t.Errorf("a block that nobody wrote: %v", err)
	}
}

// Either superblock alone is enough, and heals the other; of two, the newer counts.
func TestSuperblockCopies(t *testing.T) {
	for _, block := range []int64{0, blocks - 1} {
		file, im := newImage(t, vfs.NewMem())
		if err := im.UpdateSuper(func(s *layout.Superblock) { s.CleanID = 55 }); err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt([]byte("garbage"), block*BlockSize+40); err != nil {
			t.Fatal(err)
		}
		again, healed, err := Open(file, blocks, true)
		if err != nil || healed == "" || again.Super().CleanID != 55 {
			t.Fatalf("block %d damaged: %q, %v", block, healed, err)
		}
		if _, healed, err = Open(file, blocks, true); err != nil || healed != "" {
			t.Errorf("block %d was not healed: %q, %v", block, healed, err)
		}
	}

	file, im := newImage(t, vfs.NewMem())
	newer := im.Super()
	newer.Generation, newer.CleanID = newer.Generation+1, 66
	if _, err := file.WriteAt(newer.Encode(), 0); err != nil { // a crash before the second copy
		t.Fatal(err)
	}
	if again, _, err := Open(file, blocks, true); err != nil || again.Super().CleanID != 66 {
		t.Errorf("newer first copy: %v", err)
	}
	for _, block := range []int64{0, blocks - 1} {
		if _, err := file.WriteAt(make([]byte, BlockSize), block*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Open(file, blocks, true); err == nil || !strings.Contains(err.Error(), "both superblocks") {
		t.Errorf("none left: %v", err)
	}
}

// After a write or sync has failed, nothing succeeds any more.
func TestFailureIsForGood(t *testing.T) {
	var broken errorfs.Toggle
	broken.Injector = errorfs.ErrInjected.If(errorfs.Writes)
	_, im := newImage(t, errorfs.Wrap(vfs.NewMem(), &broken))
	if err := im.Write(10, filled(1, 1)); err != nil {
		t.Fatal(err)
	}
	broken.On()
	injected := func(err error) bool { return err != nil && strings.Contains(err.Error(), "injected error") }
	if err := im.Sync(); !injected(err) {
		t.Fatalf("sync: %v", err)
	}
	broken.Off()
	for name, err := range map[string]error{
		"write": im.Write(10, filled(1, 1)), "sync": im.Sync(), "bitmap": im.WriteBitmapPage(0, filled(0, 1)),
		"superblock": im.UpdateSuper(func(*layout.Superblock) {}),
	} {
		if !injected(err) {
			t.Errorf("%s after a failed sync: %v", name, err)
		}
	}
	if err := im.Read(10, make([]byte, BlockSize)); err != nil {
		t.Errorf("reading goes on: %v", err)
	}
}
