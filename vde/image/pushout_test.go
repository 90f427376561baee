package image

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde/layout"
)

// TestPushOut: large writes do not stay in the kernel's cache, small ones do, and all are read back.
func TestPushOut(t *testing.T) {
	const blocks, large, count = 16 << 10, 1 << 20, 40
	var st unix.Statfs_t
	dir := t.TempDir()
	if err := unix.Statfs(dir, &st); err != nil || st.Type == unix.TMPFS_MAGIC {
		t.Skip("the kernel's cache is all that a tmpfs has")
	}
	path := filepath.Join(dir, "image")
	file, err := vfs.Default.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := layout.Geometry(blocks)
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(file, sb); err != nil {
		t.Fatal(err)
	}
	im, _, err := Open(file, blocks, false)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	im.PushOut()
	data := bytes.Repeat([]byte("push out"), large/8)
	for i := range uint64(count) {
		if err := im.Write(sb.DataStart+i*large/BlockSize, data); err != nil {
			t.Fatal(err)
		}
	}
	small := sb.DataStart + count*large/BlockSize
	if err := im.Write(small, data[:BlockSize]); err != nil {
		t.Fatal(err)
	}
	resident := func(start, bytes uint64) (pages uint64) {
		m, err := unix.Mmap(int(file.Fd()), int64(start*BlockSize), int(bytes), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(m)
		vec := make([]byte, bytes/BlockSize)
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
			t.Fatal(errno)
		}
		for _, v := range vec {
			pages += uint64(v & 1)
		}
		return pages
	}
	if n := resident(sb.DataStart, count*large); n*BlockSize > pushMax+large {
		t.Errorf("%d bytes of %d are in the kernel's cache, at most %d are expected", n*BlockSize, count*large, pushMax+large)
	}
	if resident(small, BlockSize) != 1 {
		t.Error("a small write did not stay in the kernel's cache")
	}
	got := make([]byte, large)
	for i := range uint64(count) {
		if err := im.Read(sb.DataStart+i*large/BlockSize, got); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("write %d is not read back: %v", i, err)
		}
	}
}

// badFd is a file of which the kernel cannot write anything out.
type badFd struct{ vfs.File }

func (badFd) Fd() uintptr { return 1 << 20 } // EBADF

// TestPushOutFails: an error of the disk that is met while pushing out stops the image: no sync would tell of it again.
func TestPushOutFails(t *testing.T) {
	const blocks = 1 << 10
	file, err := vfs.NewMem().Create("image", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := layout.Geometry(blocks)
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(file, sb); err != nil {
		t.Fatal(err)
	}
	im, _, err := Open(badFd{file}, blocks, false)
	if err != nil {
		t.Fatal(err)
	}
	im.PushOut()
	if err := im.Write(sb.DataStart, make([]byte, pushMin)); !errors.Is(err, unix.EBADF) {
		t.Errorf("a write that could not be pushed out: %v", err)
	}
	if err := im.Sync(); !errors.Is(err, unix.EBADF) {
		t.Errorf("a sync after that: %v", err)
	}
}
