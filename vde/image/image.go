// Package image reads and writes the blocks of a store's image: disk.vde or a block device. Every data block has a
// CRC-32C in the checksum region; a block that does not match is an error, never wrong bytes.
//
// The image knows nothing of files. It orders nothing either: which write must be durable before which is the
// engine's business (rules R1 to R3 in docs/design.md); here Write goes to the file and Sync makes it durable.
//
// Locks: Image.superMu guards the superblock and is held over its writes; nothing else is locked. Callers keep two
// writes, or a read and a write, of one block apart.
package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde/layout"
)

// BlockSize is the size of a block in bytes.
const BlockSize = layout.BlockSize

// ErrChecksum tells that a block's bytes do not match its checksum; errors.As with *ChecksumError gives the block.
var ErrChecksum = errors.New("checksum mismatch")

// ChecksumError names a block whose bytes do not match its checksum.
type ChecksumError struct {
	Block     uint64
	Got, Want uint32
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("image block %d: checksum %08x, expected %08x", e.Block, e.Got, e.Want)
}

// Unwrap makes errors.Is(err, ErrChecksum) true.
func (e *ChecksumError) Unwrap() error { return ErrChecksum }

// Image is an open image. All methods may be called concurrently.
//
// Invariant: once failed is set (a write or a sync of the file failed) it stays, and every later write and sync
// fails with it: after a failed fsync the kernel may have dropped the pages, so a later success would prove nothing.
type Image struct {
	file   vfs.File
	blocks uint64
	sums   uint64 // byte offset of the checksum region
	data   uint64 // first data block

	written atomic.Uint64 // writes that reached the file
	synced  atomic.Uint64 // of these, durable
	failed  atomic.Pointer[error]
	pushOut pushOut

	superMu sync.Mutex
	super   layout.Superblock // guarded by superMu
}

// Create lays out an empty image of sb.Blocks blocks in a file that reads as zeros, and makes it durable.
func Create(file vfs.File, sb layout.Superblock) error {
	if fd := file.Fd(); fd != vfs.InvalidFd {
		var st unix.Stat_t
		if err := unix.Fstat(int(fd), &st); err != nil {
			return fmt.Errorf("stat of the image: %w", err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			if err := unix.Ftruncate(int(fd), int64(sb.Blocks*BlockSize)); err != nil {
				return fmt.Errorf("set the image's size to %d bytes: %w", sb.Blocks*BlockSize, err)
			}
		} else if err := zeroBitmap(file, sb); err != nil {
			return err
		}
	}
	im := &Image{file: file, super: sb, blocks: sb.Blocks}
	return im.writeSupers()
}

// zeroBitmap clears what an earlier use of a block device left where the bitmap is read from.
func zeroBitmap(file vfs.File, sb layout.Superblock) error {
	zero := make([]byte, 256*BlockSize)
	for b := sb.BitmapStart; b < sb.ChecksumStart; {
		n := min(sb.ChecksumStart-b, uint64(len(zero)/BlockSize))
		if _, err := file.WriteAt(zero[:n*BlockSize], int64(b*BlockSize)); err != nil {
			return fmt.Errorf("clear the bitmap: %w", err)
		}
		b += n
	}
	return nil
}

// Open reads the superblocks of an image of a number of blocks, heals a damaged copy from the other one, and tells
// what it healed. Both damaged: an error.
func Open(file vfs.File, blocks uint64, heal bool) (im *Image, healed string, err error) {
	a, errA := readSuper(file, 0)
	b, errB := readSuper(file, blocks-1)
	var v *layout.VersionError
	switch {
	case errors.As(errA, &v):
		return nil, "", errA
	case errA != nil && errB != nil:
		return nil, "", fmt.Errorf("both superblocks are unreadable: first: %w; last: %w", errA, errB)
	case errA != nil:
		healed = fmt.Sprintf("first superblock: %v; restored from the last", errA)
		a = b
	case errB != nil:
		healed = fmt.Sprintf("last superblock: %v; restored from the first", errB)
	case a.Generation != b.Generation:
		// A crash between the two writes: the newer one counts, it was complete.
		if b.Generation > a.Generation {
			a = b
		}
	}
	if a.Blocks != blocks {
		return nil, "", fmt.Errorf("the superblock tells of %d blocks, vde.json of %d: they are not of one store", a.Blocks, blocks)
	}
	im = &Image{file: file, super: a, blocks: a.Blocks, sums: a.ChecksumStart * BlockSize, data: a.DataStart}
	if healed != "" && heal {
		im.superMu.Lock()
		defer im.superMu.Unlock()
		if err := im.writeSupers(); err != nil {
			return nil, "", err
		}
	}
	return im, healed, nil
}

func readSuper(file vfs.File, block uint64) (layout.Superblock, error) {
	buf := make([]byte, BlockSize)
	if err := readFull(file, buf, int64(block*BlockSize)); err != nil {
		return layout.Superblock{}, err
	}
	return layout.DecodeSuperblock(buf)
}

// readFull reads all of buf; bytes beyond the end of the file are zeros (a sparse image that nobody wrote there).
func readFull(file vfs.File, buf []byte, off int64) error {
	n, err := file.ReadAt(buf, off)
	if n == len(buf) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		clear(buf[n:])
		return nil
	}
	return err
}

// Super returns the superblock.
func (im *Image) Super() layout.Superblock {
	im.superMu.Lock()
	defer im.superMu.Unlock()
	return im.super
}

// UpdateSuper changes the superblock, gives it the next generation and makes both copies durable, one after the
// other, so that a crash leaves at least one whole.
func (im *Image) UpdateSuper(change func(*layout.Superblock)) error {
	im.superMu.Lock()
	defer im.superMu.Unlock()
	change(&im.super)
	im.super.Generation++
	return im.writeSupers()
}

func (im *Image) writeSupers() error {
	if err := im.Err(); err != nil {
		return err
	}
	enc := im.super.Encode()
	for _, block := range []uint64{0, im.blocks - 1} {
		if _, err := im.file.WriteAt(enc, int64(block*BlockSize)); err != nil {
			return im.fail(fmt.Errorf("write the superblock in block %d: %w", block, err))
		}
		if err := im.file.SyncData(); err != nil {
			return im.fail(fmt.Errorf("sync the superblock in block %d: %w", block, err))
		}
	}
	return nil
}

// Err tells the error that stopped the image, nil while it works.
func (im *Image) Err() error {
	if p := im.failed.Load(); p != nil {
		return *p
	}
	return nil
}

func (im *Image) fail(err error) error {
	im.failed.CompareAndSwap(nil, &err)
	return im.Err()
}

// check refuses ranges outside the data blocks: a wrong extent must never reach a superblock or the bitmap.
func (im *Image) check(start, count uint64) error {
	if start < im.data || start > im.blocks-1 || count > im.blocks-1-start {
		return fmt.Errorf("blocks %d+%d are outside the data blocks %d to %d", start, count, im.data, im.blocks-2)
	}
	return nil
}

// Write writes whole blocks and their checksums. The bytes belong to the caller again when it returns.
func (im *Image) Write(start uint64, data []byte) error {
	return im.WriteSummed(start, data, AppendSums(nil, data))
}

// AppendSums appends the CRC-32C of every whole block of data, 4 bytes each, as the checksum region holds them.
func AppendSums(dst, data []byte) []byte {
	for ; len(data) >= BlockSize; data = data[BlockSize:] {
		dst = binary.LittleEndian.AppendUint32(dst, layout.CRC(data[:BlockSize]))
	}
	return dst
}

// WriteSummed is Write with checksums computed before.
func (im *Image) WriteSummed(start uint64, data, sums []byte) error {
	if err := im.Err(); err != nil {
		return err
	}
	if len(data)%BlockSize != 0 || len(sums)*(BlockSize/4) != len(data) {
		return fmt.Errorf("write of %d bytes with %d checksum bytes is not of whole blocks", len(data), len(sums))
	}
	if err := im.check(start, uint64(len(data)/BlockSize)); err != nil {
		return err
	}
	if _, err := im.file.WriteAt(data, int64(start*BlockSize)); err != nil {
		return im.fail(fmt.Errorf("write of image block %d: %w", start, err))
	}
	if _, err := im.file.WriteAt(sums, int64(im.sums+start*4)); err != nil {
		return im.fail(fmt.Errorf("write of the checksum of image block %d: %w", start, err))
	}
	im.written.Add(1)
	if err := im.pushOut.wrote(im.file, int64(start*BlockSize), int64(len(data))); err != nil {
		return im.fail(err)
	}
	return nil
}

// PushOut has large writes go to the disk as they come and not stay in the kernel's cache: pushOut says what for. It is called
// before anything is written.
func (im *Image) PushOut() { im.pushOut.on = true }

// Read reads whole blocks and verifies them. A mismatch is a *ChecksumError for the first bad block.
func (im *Image) Read(start uint64, dst []byte) error {
	if len(dst)%BlockSize != 0 {
		return fmt.Errorf("read of %d bytes is not of whole blocks", len(dst))
	}
	n := uint64(len(dst) / BlockSize)
	if err := im.check(start, n); err != nil {
		return err
	}
	if err := readFull(im.file, dst, int64(start*BlockSize)); err != nil {
		return fmt.Errorf("read of image block %d: %w", start, err)
	}
	var small [1024]byte
	sums := small[:]
	if n*4 > uint64(len(sums)) {
		sums = make([]byte, n*4)
	}
	sums = sums[:n*4]
	if err := im.ReadSums(start, sums); err != nil {
		return err
	}
	for i := uint64(0); i < n; i++ {
		want := binary.LittleEndian.Uint32(sums[i*4:])
		if got := layout.CRC(dst[i*BlockSize : (i+1)*BlockSize]); got != want {
			return &ChecksumError{Block: start + i, Got: got, Want: want}
		}
	}
	return nil
}

// Matches tells whether data, one block, has the checksum that a block should have.
func (im *Image) Matches(block uint64, data []byte) (bool, error) {
	if err := im.check(block, 1); err != nil {
		return false, err
	}
	var sum [4]byte
	if err := im.ReadSums(block, sum[:]); err != nil {
		return false, err
	}
	return binary.LittleEndian.Uint32(sum[:]) == layout.CRC(data), nil
}

// ReadSums reads the checksums of len(dst)/4 blocks.
func (im *Image) ReadSums(start uint64, dst []byte) error {
	if err := readFull(im.file, dst, int64(im.sums+start*4)); err != nil {
		return fmt.Errorf("read of the checksum of image block %d: %w", start, err)
	}
	return nil
}

// Prefetch tells the kernel that blocks will be read soon. Best effort.
func (im *Image) Prefetch(start, count uint64) {
	_ = im.file.Prefetch(int64(start*BlockSize), int64(count*BlockSize)) // only a hint
}

// Uncache asks the kernel to forget what it holds of blocks in memory, so that the next read is one of the disk. What is
// not written to the disk yet stays. Best effort.
func (im *Image) Uncache(start, count uint64) {
	if fd := im.file.Fd(); fd != vfs.InvalidFd {
		_ = unix.Fadvise(int(fd), int64(start*BlockSize), int64(count*BlockSize), unix.FADV_DONTNEED) // only a hint
	}
}

// Sync makes durable what Write returned for before the call. It costs nothing when nothing was written.
func (im *Image) Sync() error {
	if err := im.Err(); err != nil {
		return err
	}
	w := im.written.Load()
	if im.synced.Load() >= w {
		return nil
	}
	if err := im.file.SyncData(); err != nil {
		return im.fail(fmt.Errorf("sync of the image: %w", err))
	}
	for {
		s := im.synced.Load()
		if s >= w || im.synced.CompareAndSwap(s, w) {
			return nil
		}
	}
}

// Punch gives the space of free data blocks back to the disk below, where it knows how (a sparse file, a block
// device with discard). It returns unix.EOPNOTSUPP where it does not.
func (im *Image) Punch(start, count uint64) error {
	if err := im.check(start, count); err != nil {
		return err
	}
	fd := im.file.Fd()
	if fd == vfs.InvalidFd {
		return unix.EOPNOTSUPP
	}
	return unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(start*BlockSize), int64(count*BlockSize))
}

// Close closes the file without syncing it.
func (im *Image) Close() error { return im.file.Close() }

// ReadRaw reads whole blocks without verifying them.
func (im *Image) ReadRaw(start uint64, dst []byte) error {
	if err := im.check(start, uint64(len(dst)/BlockSize)); err != nil {
		return err
	}
	if err := readFull(im.file, dst, int64(start*BlockSize)); err != nil {
		return fmt.Errorf("read of image block %d: %w", start, err)
	}
	return nil
}

// WriteSums writes the checksums of len(sums)/4 blocks whose data is in its place already.
func (im *Image) WriteSums(start uint64, sums []byte) error {
	if err := im.Err(); err != nil {
		return err
	}
	if err := im.check(start, uint64(len(sums)/4)); err != nil {
		return err
	}
	if _, err := im.file.WriteAt(sums, int64(im.sums+start*4)); err != nil {
		return im.fail(fmt.Errorf("write of the checksum of image block %d: %w", start, err))
	}
	im.written.Add(1)
	return nil
}
