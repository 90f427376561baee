package vde

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

// snapshot is the state of a group on its way to another store. It is made piece by piece while it is read: keys come
// from a view of the metadata, contents from the image, at the time they are read. So contents may be newer than the
// keys, by whole blocks, and never of another place of another file (see holdBack): who applies the log behind the
// snapshot writes them again.
//
// Memory: one record, and what the store's reference counts take (which the engine holds too).
type snapshot struct {
	e    *Engine
	slot uint16

	mu     sync.Mutex // held over a read of the image
	err    error      // why it ended; io.EOF: all was read. guarded by mu, as all below
	view   *meta.View
	keys   *meta.Cursor
	extent *meta.Cursor

	ready  []byte // of the stream, not read yet
	buf    []byte // what ready is a part of
	number uint32 // of the next record
	stage  int    // index in fillers

	refs  []meta.Ref // of the whole store, by block
	sent  spans      // shared blocks that were sent
	parts []part     // of the extent being sent, those not sent yet, in order
	begun bool       // the record of parts[0] was sent
	at    uint64     // blocks of parts[0] that were sent

	nKeys, nExtents, nBlocks uint64
}

// part is a part of an extent that is sent in one way, and where its blocks are.
type part struct {
	snapExtent
	phys uint64
}

// Snapshot returns the state of a group as of its last commit, as a stream that Restore takes. It is to be called
// between two transactions of the group; it is read while others run. A block that fails its checksum is sent as bad,
// is logged, and is unreadable in the copy too, so that one bad block does not keep a replica from following. As long
// as a snapshot is open, blocks that are freed stay in use: Close it. It fails when its group is removed or restored.
func (e *Engine) Snapshot(slot uint16) (io.ReadCloser, error) {
	if err := e.Err(); err != nil {
		return nil, err
	}
	s := &snapshot{e: e, slot: slot}
	e.holdBack.mu.Lock()
	if e.closed.Load() {
		e.holdBack.mu.Unlock()
		return nil, ErrClosed
	}
	if _, ok := e.Group(slot); !ok {
		e.holdBack.mu.Unlock()
		return nil, fmt.Errorf("group %d: %w", slot, ErrNoGroup)
	}
	// What a checkpoint took before this was freed by transactions that the view knows of.
	s.view = e.meta.View()
	e.holdBack.open[s] = e.holdBack.number
	e.holdBack.mu.Unlock()
	s.keys, s.extent = s.view.Keys(slot, "gidcxof"), s.view.Keys(slot, "e")
	s.ready = appendHeader(nil, slot)
	err := s.view.Refs(func(r meta.Ref) (bool, error) { s.refs = append(s.refs, r); return true, nil })
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// endSnapshots ends the open snapshots of a group (nil: of all) with an error for their readers.
func (e *Engine) endSnapshots(slot *uint16, why error) {
	e.holdBack.mu.Lock()
	var all []*snapshot
	for s := range e.holdBack.open {
		if slot == nil || s.slot == *slot {
			all = append(all, s)
		}
	}
	e.holdBack.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		if err := s.endLocked(why); err != nil {
			e.log.WithError(err).Warn("snapshot was not closed properly")
		}
		s.mu.Unlock()
	}
}

// endLocked lets go of what the snapshot holds; it stays readable for its error only.
func (s *snapshot) endLocked(why error) error {
	if s.err == nil {
		s.err = why
	}
	if s.view == nil {
		return nil
	}
	err := errors.Join(s.keys.Close(), s.extent.Close(), s.view.Close())
	s.view, s.ready, s.buf = nil, nil, nil
	s.e.holdBack.mu.Lock()
	delete(s.e.holdBack.open, s)
	s.e.holdBack.mu.Unlock()
	if _, ready := s.e.holdBack.size(); ready {
		poke(s.e.checkup)
	}
	return err
}

// Close implements io.Closer; it may be called at any time, more than once.
func (s *snapshot) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endLocked(fmt.Errorf("snapshot of group %d: %w", s.slot, io.ErrClosedPipe))
}

// Read implements io.Reader.
func (s *snapshot) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for len(s.ready) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if err := s.fill(); err != nil {
			if cerr := s.endLocked(err); cerr != nil && errors.Is(err, io.EOF) {
				s.err = cerr
			}
			return 0, s.err
		}
	}
	n := copy(p, s.ready)
	s.ready = s.ready[n:]
	return n, nil
}

// begin starts the next record.
func (s *snapshot) begin(typ byte) {
	s.buf = beginRecord(s.buf[:0], typ, s.number)
	s.number++
}

func (s *snapshot) finish() {
	s.buf = endRecord(s.buf)
	s.ready = s.buf
}

// fill makes the next record; io.EOF when there is none.
func (s *snapshot) fill() error {
	stages := [...]func() (bool, error){s.fillKeys, s.fillExtents, s.fillEnd}
	for ; s.stage < len(stages); s.stage++ {
		if made, err := stages[s.stage](); made || err != nil {
			return err
		}
	}
	return io.EOF
}

// fillKeys makes a record of keys, if there are any left.
func (s *snapshot) fillKeys() (made bool, err error) {
	for s.keys.Next() {
		if !made {
			s.begin(recKeys)
			made = true
		}
		for _, b := range [2][]byte{s.keys.Key(), s.keys.Value()} {
			s.buf = binary.AppendUvarint(s.buf, uint64(len(b)))
			s.buf = append(s.buf, b...)
		}
		s.nKeys++
		if len(s.buf) > maxPayload {
			return false, fmt.Errorf("snapshot of group %d: the value of key %x has %d bytes, which is too much", s.slot, s.keys.Key(), len(s.keys.Value()))
		}
		if len(s.buf) >= keysTarget {
			break
		}
	}
	if err := s.keys.Err(); err != nil {
		return false, err
	}
	if made {
		s.finish()
	}
	return made, nil
}

// fillExtents makes a record of an extent or of contents, if there are any left.
func (s *snapshot) fillExtents() (made bool, err error) {
	if len(s.parts) == 0 {
		if !s.extent.Next() {
			return false, s.extent.Err()
		}
		ino, x, err := s.extent.Extent()
		if err != nil {
			return false, err
		}
		s.split(ino, x)
	}
	p := s.parts[0]
	if !s.begun {
		s.begun, s.at = true, 0
		s.nExtents++
		s.begin(recExtent)
		s.buf = append(s.buf, p.encode()...)
		s.finish()
	} else if err := s.fillData(p); err != nil {
		return false, err
	}
	if p.kind == extentZero || p.kind == extentReference || s.at == p.count {
		s.parts, s.begun = s.parts[1:], false
	}
	return true, nil
}

// split tells in which parts an extent is sent: shared blocks once.
func (s *snapshot) split(ino meta.Ino, x meta.Extent) {
	add := func(kind extentKind, count uint64) {
		p := part{snapExtent{ino: ino, fileBlock: x.FileBlock, count: count, kind: kind}, x.Phys}
		if kind == extentFirst || kind == extentReference {
			p.source = x.Phys
		}
		s.parts = append(s.parts, p)
		x.FileBlock, x.Phys, x.Count = x.FileBlock+count, x.Phys+count, x.Count-count
	}
	s.parts = s.parts[:0]
	if x.Unwritten {
		add(extentZero, x.Count)
		return
	}
	i, _ := slices.BinarySearchFunc(s.refs, x.Phys, func(r meta.Ref, phys uint64) int {
		if r.Phys+r.Count <= phys {
			return -1
		}
		return 1
	})
	for x.Count > 0 {
		for i < len(s.refs) && s.refs[i].Phys+s.refs[i].Count <= x.Phys {
			i++
		}
		if i == len(s.refs) || s.refs[i].Phys >= x.Phys+x.Count {
			add(extentData, x.Count)
			return
		}
		if s.refs[i].Phys > x.Phys {
			add(extentData, s.refs[i].Phys-x.Phys)
			continue
		}
		n := min(x.Count, s.refs[i].Phys+s.refs[i].Count-x.Phys)
		_, was, n := s.sent.find(x.Phys, n)
		if was {
			add(extentReference, n)
		} else {
			s.sent.add(span{x.Phys, n, x.Phys})
			add(extentFirst, n)
		}
	}
}

// fillData makes a record of contents.
func (s *snapshot) fillData(p part) error {
	n := min(dataChunk, p.count-s.at)
	s.begin(recData)
	bits := len(s.buf)
	s.buf = append(s.buf, make([]byte, dataBits)...)
	data := len(s.buf)
	s.buf = slices.Grow(s.buf, int(n*blockSize)+4)[:data+int(n*blockSize)]
	dst := s.buf[data:]
	fileBlock, phys := p.fileBlock+s.at, p.phys+s.at

	// Behind every write that was committed before, and not while one is on its way.
	f := s.e.files.use(p.ino)
	defer s.e.files.done(p.ino, f)
	t, err := f.lock.Acquire(context.Background(), fileBlock, n, rangelock.Shared)
	if err != nil {
		return err
	}
	defer t.Release()
	err = s.e.readEach(phys, dst, func(i uint64, err error) error {
		if err := s.e.judge(p.ino, fileBlock+i, phys+i, err); !errors.Is(err, ErrBadBlock) {
			return err // the disk may come back: the copy must not be bad for that
		}
		s.buf[bits+int(i/8)] |= 1 << (i % 8)
		// What can be known of the contents: the checksum that they should have.
		block := dst[i*blockSize : (i+1)*blockSize]
		clear(block)
		return s.e.img.ReadSums(phys+i, block[:4])
	})
	if err != nil {
		return fmt.Errorf("snapshot of group %d: inode %d: %w", s.slot, p.ino, err)
	}
	s.at += n
	s.nBlocks += n
	s.finish()
	return nil
}

// fillEnd makes the last record.
func (s *snapshot) fillEnd() (bool, error) {
	s.begin(recEnd)
	for _, v := range [...]uint64{s.nKeys, s.nExtents, s.nBlocks} {
		s.buf = binary.LittleEndian.AppendUint64(s.buf, v)
	}
	s.finish()
	s.stage++
	return true, nil
}
