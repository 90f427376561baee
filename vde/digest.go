package vde

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

// ErrChanging tells that a group was changed while its digest was made.
var ErrChanging = errors.New("the group was changed meanwhile")

// Digest returns a hash of what a group is, the same for all replicas that have applied the same entries: inodes,
// entries, attributes, facts, orphans, the next sequence, which blocks of files are mapped and which of these are not written
// (both can be seen by fstat and lseek), and all contents. Where blocks are in the image, how extents are cut, who
// shares blocks and how far the log was applied do not count.
//
// It is that of one moment only if the group rests: ErrChanging if an entry was applied meanwhile. ErrBadBlock if
// contents cannot be read.
func (e *Engine) Digest(ctx context.Context, slot uint16) (string, error) {
	return e.digest(ctx, slot, true)
}

// DigestMeta is Digest without contents. It is that of the last commit, whatever is committed meanwhile.
func (e *Engine) DigestMeta(slot uint16) (string, error) {
	return e.digest(context.Background(), slot, false)
}

func (e *Engine) digest(ctx context.Context, slot uint16, contents bool) (_ string, err error) {
	end, err := e.beginJob()
	if err != nil {
		return "", err
	}
	defer end()
	before, ok := e.Group(slot)
	if !ok {
		return "", fmt.Errorf("group %d: %w", slot, ErrNoGroup)
	}
	v := e.meta.View()
	d := &digester{e: e, keys: sha256.New(), layout: sha256.New(), data: sha256.New(), contents: contents}
	err = d.addKeys(v.Keys(slot, "gidcxof"), slot)
	if err == nil {
		err = d.addExtents(ctx, v.Keys(slot, "e"))
	}
	if err = errors.Join(err, v.Close()); contents && ctx.Err() == nil {
		// An error may come from the change, too.
		if after, ok := e.Group(slot); !ok || after != before {
			return "", fmt.Errorf("digest of group %d: %w", slot, ErrChanging)
		}
	}
	if err != nil {
		return "", fmt.Errorf("digest of group %d: %w", slot, err)
	}
	all := sha256.New()
	all.Write([]byte("vde digest 1\n"))
	for _, h := range [...]hash.Hash{d.keys, d.layout, d.data} {
		all.Write(h.Sum(nil))
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}

// digester collects three hashes: of keys, of which blocks are mapped, of contents.
type digester struct {
	e                  *Engine
	keys, layout, data hash.Hash
	contents           bool

	ino  meta.Ino    // of run
	run  meta.Extent // the blocks that the next extent may continue; Count 0: none
	buf  []byte
	nums []byte
}

func (d *digester) numbers(h hash.Hash, v ...uint64) {
	d.nums = d.nums[:0]
	for _, n := range v {
		d.nums = binary.LittleEndian.AppendUint64(d.nums, n)
	}
	h.Write(d.nums)
}

func (d *digester) addKeys(c *meta.Cursor, slot uint16) error {
	for c.Next() {
		if meta.IsGroupState(slot, c.Key()) {
			g, err := meta.DecodeGroup(slot, c.Value())
			if err != nil {
				return errors.Join(err, c.Close())
			}
			d.numbers(d.keys, g.NextSeq, g.Inodes)
			continue
		}
		d.numbers(d.keys, uint64(len(c.Key())), uint64(len(c.Value())))
		d.keys.Write(c.Key())
		d.keys.Write(c.Value())
	}
	return errors.Join(c.Err(), c.Close())
}

func (d *digester) addExtents(ctx context.Context, c *meta.Cursor) error {
	for c.Next() {
		ino, x, err := c.Extent()
		if err == nil {
			d.addRun(ino, x)
			if d.contents && !x.Unwritten {
				err = d.addData(ctx, ino, x)
			}
		}
		if err != nil {
			return errors.Join(err, c.Close())
		}
	}
	d.addRun(0, meta.Extent{})
	return errors.Join(c.Err(), c.Close())
}

// addRun adds the blocks of an extent to the run of the same sort that they continue, or begins another one.
func (d *digester) addRun(ino meta.Ino, x meta.Extent) {
	if d.run.Count > 0 && d.ino == ino && d.run.End() == x.FileBlock && d.run.Unwritten == x.Unwritten {
		d.run.Count += x.Count
		return
	}
	if d.run.Count > 0 {
		unwritten := uint64(0)
		if d.run.Unwritten {
			unwritten = 1
		}
		d.numbers(d.layout, uint64(d.ino), d.run.FileBlock, d.run.Count, unwritten)
	}
	d.ino, d.run = ino, x
}

func (d *digester) addData(ctx context.Context, ino meta.Ino, x meta.Extent) error {
	if d.buf == nil {
		d.buf = make([]byte, dataChunk*blockSize)
	}
	f := d.e.files.use(ino)
	defer d.e.files.done(ino, f)
	for x.Count > 0 {
		select {
		case <-d.e.stop:
			return ErrClosed
		default:
		}
		n := min(x.Count, dataChunk)
		t, err := f.lock.Acquire(ctx, x.FileBlock, n, rangelock.Shared)
		if err != nil {
			return err
		}
		err = d.e.readEach(x.Phys, d.buf[:n*blockSize], func(i uint64, err error) error {
			return fmt.Errorf("%w: inode %d, offset %d: %w", ErrBadBlock, ino, (x.FileBlock+i)*blockSize, err)
		})
		t.Release()
		if err != nil {
			return err
		}
		d.data.Write(d.buf[:n*blockSize])
		x.FileBlock, x.Phys, x.Count = x.FileBlock+n, x.Phys+n, x.Count-n
	}
	return nil
}
