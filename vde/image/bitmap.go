package image

import (
	"fmt"
	"hash/crc32"

	"vdefs/vde/layout"
)

// The bitmap region holds one bit per block of the image, 1 = used. It is written when a store is closed and read
// when a cleanly closed store is opened; its CRC-32C stands in the superblock. Between the two, and after a crash,
// the extents in meta/ are the truth.

// BitmapPages is the number of blocks of the bitmap region.
func (im *Image) BitmapPages() uint64 {
	s := im.Super()
	return s.ChecksumStart - s.BitmapStart
}

// WriteBitmapPage writes one block of the bitmap region (not durable before Sync).
func (im *Image) WriteBitmapPage(page uint64, data []byte) error {
	if err := im.Err(); err != nil {
		return err
	}
	s := im.Super()
	if len(data) != BlockSize || page >= s.ChecksumStart-s.BitmapStart {
		return fmt.Errorf("bitmap page %d of %d bytes does not fit a bitmap of %d pages", page, len(data), s.ChecksumStart-s.BitmapStart)
	}
	if _, err := im.file.WriteAt(data, int64((s.BitmapStart+page)*BlockSize)); err != nil {
		return im.fail(fmt.Errorf("write of bitmap page %d: %w", page, err))
	}
	im.written.Add(1)
	return nil
}

// ReadBitmapPage reads one block of the bitmap region.
func (im *Image) ReadBitmapPage(page uint64, dst []byte) error {
	s := im.Super()
	if len(dst) != BlockSize || page >= s.ChecksumStart-s.BitmapStart {
		return fmt.Errorf("bitmap page %d does not exist", page)
	}
	if err := readFull(im.file, dst, int64((s.BitmapStart+page)*BlockSize)); err != nil {
		return fmt.Errorf("read of bitmap page %d: %w", page, err)
	}
	return nil
}

// BitmapCRC continues the CRC-32C of the bitmap over the next page; it begins with 0.
func BitmapCRC(crc uint32, page []byte) uint32 { return crc32.Update(crc, layout.Castagnoli, page) }
