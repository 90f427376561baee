package vde

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

// Fingerprint is what two replicas of an inode must agree on if they are of one moment, which Version and Ctime tell.
type Fingerprint struct {
	Version uint64
	Ctime   meta.Time
	// Sum is the xxHash64 of attributes but for the access time, extended attributes, entries of a directory, which blocks are mapped
	// or written, and contents.
	Sum uint64
}

// Fingerprint sums up an inode and its file blocks [from, from+count); attributes and entries belong to block 0. Where the blocks
// are and how extents are cut does not count. It runs beside everything else: ErrChanging if the inode was changed
// meanwhile. meta.ErrNotFound if it is not there, ErrBadBlock if contents cannot be read.
func (e *Engine) Fingerprint(ctx context.Context, ino meta.Ino, from, count uint64) (Fingerprint, error) {
	end, err := e.beginJob()
	if err != nil {
		return Fingerprint{}, err
	}
	defer end()
	before, err := e.meta.Inode(ino)
	if err != nil {
		return Fingerprint{}, err
	}
	p := printer{e: e, sum: xxhash.New()}
	if from == 0 {
		err = p.attributes(&before)
	}
	for at := from; err == nil && at < from+count; {
		// Holes are not walked through.
		next, found := at, false
		err = e.meta.Extents(ino, at, from+count, func(x meta.Extent) (bool, error) {
			next, found = max(at, x.FileBlock), true
			return false, nil
		})
		if err != nil || !found {
			break
		}
		n := min(dataChunk, from+count-next)
		err = p.blocks(ctx, ino, next, n)
		at = next + n
	}
	if err != nil {
		return Fingerprint{}, fmt.Errorf("fingerprint of inode %d: %w", ino, err)
	}
	after, err := e.meta.Inode(ino)
	if err != nil {
		return Fingerprint{}, err
	}
	if after.Version != before.Version || after.Ctime != before.Ctime {
		return Fingerprint{}, fmt.Errorf("fingerprint of inode %d: %w", ino, ErrChanging)
	}
	return Fingerprint{before.Version, before.Ctime, p.sum.Sum64()}, nil
}

type printer struct {
	e    *Engine
	sum  *xxhash.Digest
	buf  []byte
	nums []byte
}

func (p *printer) numbers(v ...uint64) {
	p.nums = p.nums[:0]
	for _, n := range v {
		p.nums = binary.LittleEndian.AppendUint64(p.nums, n)
	}
	_, _ = p.sum.Write(p.nums) // never fails
}

func (p *printer) bytes(b string) {
	p.numbers(uint64(len(b)))
	_, _ = p.sum.WriteString(b)
}

func (p *printer) attributes(in *meta.Inode) error {
	p.numbers(uint64(in.Mode), uint64(in.Nlink), uint64(in.UID), uint64(in.GID), uint64(in.Rdev), uint64(in.Flags), in.Size, in.Blocks,
		uint64(in.Mtime.Sec), uint64(in.Mtime.Nsec), uint64(in.Btime.Sec), uint64(in.Btime.Nsec), in.Version, uint64(in.Parent), in.NextCookie)
	p.bytes(in.Target)
	err := p.e.meta.Xattrs(in.Ino, func(name string, value []byte) (bool, error) {
		p.bytes(name)
		p.bytes(string(value))
		return true, nil
	})
	if err != nil {
		return err
	}
	return p.e.meta.Dirents(in.Ino, 0, func(d meta.Dirent) (bool, error) {
		p.bytes(d.Name)
		p.numbers(uint64(d.Ino), uint64(d.Type), d.Cookie)
		return true, nil
	})
}

// blocks adds file blocks, up to dataChunk of them.
func (p *printer) blocks(ctx context.Context, ino meta.Ino, start, count uint64) error {
	e := p.e
	e.readGate.RLock()
	defer e.readGate.RUnlock()
	f := e.files.use(ino)
	defer e.files.done(ino, f)
	m, err := e.lockMapped(ctx, f, ino, start, count, rangelock.Shared)
	if err != nil {
		return err
	}
	defer m.ticket.Release()
	if p.buf == nil {
		p.buf = make([]byte, dataChunk*blockSize)
	}
	for _, x := range m.extents {
		data := p.buf[:x.Count*blockSize]
		if !x.Unwritten {
			err := e.readEach(x.Phys, data, func(i uint64, err error) error {
				return fmt.Errorf("%w: offset %d: %w", ErrBadBlock, (x.FileBlock+i)*blockSize, err)
			})
			if err != nil {
				return err
			}
		}
		for i := range x.Count {
			if x.Unwritten {
				p.numbers(x.FileBlock+i, 1)
				continue
			}
			p.numbers(x.FileBlock+i, 0)
			_, _ = p.sum.Write(data[i*blockSize : (i+1)*blockSize])
		}
	}
	return nil
}

// NextInodes returns up to limit inodes of a group behind one, ascending.
func (e *Engine) NextInodes(slot uint16, behind meta.Ino, limit int) ([]meta.Ino, error) {
	var inos []meta.Ino
	err := e.meta.NextInodes(slot, behind, func(ino meta.Ino) bool {
		inos = append(inos, ino)
		return len(inos) < limit
	})
	return inos, err
}
