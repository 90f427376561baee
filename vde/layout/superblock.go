package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Castagnoli is the polynomial of every CRC-32C in a store (RFC 3720, appendix B.4); the processor computes it.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC is the CRC-32C of b.
func CRC(b []byte) uint32 { return crc32.Checksum(b, Castagnoli) }

// Superblock describes the image. Two copies exist, in the first and in the last block; the one with the higher
// generation counts, either one alone is enough.
//
//	offset size
//	     0    8  magic "VDEIMAGE"
//	     8    4  format version
//	    12    4  block size in bytes (4096)
//	    16   16  uuid of the store
//	    32    8  generation: grows with every write of the superblocks
//	    40    8  blocks of the image, both superblocks included
//	    48    8  first block of the bitmap
//	    56    8  first block of the checksum region
//	    64    8  first data block
//	    72    4  state: 1 = clean (the bitmap is true), 0 = in use or crashed (extents are the truth)
//	    76    4  CRC-32C of the whole bitmap region, meaningful when clean
//	    80    8  clean id: equals the one in meta/ when both were closed together
//	    88 4004  zero
//	  4092    4  CRC-32C of bytes 0..4091
type Superblock struct {
	Version       uint32
	UUID          [16]byte
	Generation    uint64
	Blocks        uint64
	BitmapStart   uint64
	ChecksumStart uint64
	DataStart     uint64
	Clean         bool
	BitmapCRC     uint32
	CleanID       uint64
}

const superMagic = "VDEIMAGE"

// ErrNoSuperblock tells that a block is not a superblock at all, ErrBadSuperblock that it is a damaged one.
var (
	ErrNoSuperblock  = errors.New("no superblock")
	ErrBadSuperblock = errors.New("damaged superblock")
)

// Geometry places the regions of an image of a number of blocks. It needs room for at least one data block.
func Geometry(blocks uint64) (Superblock, error) {
	bitmap := (blocks + BlockSize*8 - 1) / (BlockSize * 8)
	sums := (blocks + BlockSize/4 - 1) / (BlockSize / 4)
	sb := Superblock{Version: Newest, Blocks: blocks, BitmapStart: 1, ChecksumStart: 1 + bitmap, DataStart: 1 + bitmap + sums}
	if blocks > 1<<52 || sb.DataStart+2 > blocks {
		return Superblock{}, fmt.Errorf("an image of %d blocks has no room for data", blocks)
	}
	return sb, nil
}

// DataEnd is the block behind the last data block: the second superblock.
func (s *Superblock) DataEnd() uint64 { return s.Blocks - 1 }

// Encode returns the block.
func (s *Superblock) Encode() []byte {
	b := make([]byte, BlockSize)
	le := binary.LittleEndian
	copy(b, superMagic)
	le.PutUint32(b[8:], s.Version)
	le.PutUint32(b[12:], BlockSize)
	copy(b[16:], s.UUID[:])
	le.PutUint64(b[32:], s.Generation)
	le.PutUint64(b[40:], s.Blocks)
	le.PutUint64(b[48:], s.BitmapStart)
	le.PutUint64(b[56:], s.ChecksumStart)
	le.PutUint64(b[64:], s.DataStart)
	if s.Clean {
		le.PutUint32(b[72:], 1)
	}
	le.PutUint32(b[76:], s.BitmapCRC)
	le.PutUint64(b[80:], s.CleanID)
	le.PutUint32(b[BlockSize-4:], CRC(b[:BlockSize-4]))
	return b
}

// DecodeSuperblock reads a block. Errors: ErrNoSuperblock, ErrBadSuperblock, *VersionError.
func DecodeSuperblock(b []byte) (Superblock, error) {
	var s Superblock
	if len(b) != BlockSize || !bytes.Equal(b[:8], []byte(superMagic)) {
		return s, ErrNoSuperblock
	}
	le := binary.LittleEndian
	if got, want := CRC(b[:BlockSize-4]), le.Uint32(b[BlockSize-4:]); got != want {
		return s, fmt.Errorf("%w: checksum %08x, expected %08x", ErrBadSuperblock, got, want)
	}
	s.Version = le.Uint32(b[8:])
	if s.Version == 0 {
		return s, fmt.Errorf("%w: format version 0", ErrBadSuperblock)
	}
	if err := CheckVersion("disk.vde", s.Version); err != nil {
		return s, err
	}
	if bs := le.Uint32(b[12:]); bs != BlockSize {
		return s, fmt.Errorf("%w: block size %d, expected %d", ErrBadSuperblock, bs, BlockSize)
	}
	copy(s.UUID[:], b[16:32])
	s.Generation = le.Uint64(b[32:])
	s.Blocks = le.Uint64(b[40:])
	s.BitmapStart = le.Uint64(b[48:])
	s.ChecksumStart = le.Uint64(b[56:])
	s.DataStart = le.Uint64(b[64:])
	s.Clean = le.Uint32(b[72:]) == 1
	s.BitmapCRC = le.Uint32(b[76:])
	s.CleanID = le.Uint64(b[80:])
	want, err := Geometry(s.Blocks)
	if err != nil {
		return s, fmt.Errorf("%w: %w", ErrBadSuperblock, err)
	}
	if s.BitmapStart != want.BitmapStart || s.ChecksumStart != want.ChecksumStart || s.DataStart != want.DataStart {
		return s, fmt.Errorf("%w: regions at %d, %d, %d do not fit %d blocks", ErrBadSuperblock, s.BitmapStart, s.ChecksumStart, s.DataStart, s.Blocks)
	}
	return s, nil
}

// InUse tells whether a store has been changed since it was last closed properly, or since it was made, going by its superblock.
func InUse(s Superblock) bool { return !s.Clean && s.Generation > 0 }
