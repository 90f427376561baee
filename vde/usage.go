package vde

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/vde/image"
	"vdefs/vde/layout"
)

// UsedAtClose reads from the image of a store that nobody has open how many bytes of data it held when it was last closed; by now
// it may be others if a crash ended its last use. Nothing is written. f is nil for the operating system's files.
func UsedAtClose(f vfs.FS, dir string) (used uint64, err error) {
	if f == nil {
		f = vfs.Default
	}
	info, err := ReadInfo(f, dir)
	if err != nil {
		return 0, err
	}
	path := imagePath(f, dir, info)
	file, err := f.Open(path)
	if err != nil {
		return 0, fmt.Errorf("store %s: open its image: %w", dir, err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	img, _, err := image.Open(file, info.Size/layout.BlockSize, false)
	if err != nil {
		return 0, fmt.Errorf("store %s: image %s: %w: %w", dir, path, ErrDamaged, err)
	}
	page := make([]byte, image.BlockSize)
	var free uint64
	for n := range img.BitmapPages() {
		if err := img.ReadBitmapPage(n, page); err != nil {
			return 0, fmt.Errorf("store %s: image %s: %w", dir, path, err)
		}
		for _, b := range page {
			free += uint64(bits.OnesCount8(^b))
		}
	}
	s := img.Super()
	data := s.DataEnd() - s.DataStart
	return (data - min(free, data)) * image.BlockSize, nil // a store that was never closed has a bitmap of zeros
}

// imagePath is where the image of a store is.
func imagePath(f vfs.FS, dir string, info Info) string {
	if info.BlockDevice != "" {
		return info.BlockDevice
	}
	return f.PathJoin(dir, imageName)
}
