package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/errors/oserror"
)

// readChunk bounds how many entries one read of a segment covers.
const readChunk = 4096

// Entry implements LogStore.
func (l *FileLogStore) Entry(index uint64) (Entry, error) {
	var one [1]Entry
	es, err := l.Entries(one[:0], index, index+1, 0)
	if err != nil {
		return Entry{}, err
	}
	return es[0], nil
}

// Term implements LogStore.
func (l *FileLogStore) Term(index uint64) (uint64, error) {
	l.mu.Lock()
	err := l.usableLocked()
	if err == nil && index+1 < l.first {
		err = fmt.Errorf("%w: %d, the first one is %d", ErrCompacted, index, l.first)
	}
	if err == nil && index > l.last {
		err = fmt.Errorf("%w: %d, the last one is %d", ErrUnavailable, index, l.last)
	}
	if err == nil {
		if term, ok := l.terms.get(index); ok {
			l.mu.Unlock()
			return term, nil
		}
		// The header of a segment knows the term before its first entry.
		for _, s := range l.segs {
			if s.first == index+1 {
				l.mu.Unlock()
				return s.prevTerm, nil
			}
		}
	}
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	e, err := l.Entry(index)
	return e.Term, err
}

// Entries implements LogStore.
func (l *FileLogStore) Entries(dst []Entry, lo, hi, maxBytes uint64) ([]Entry, error) {
	size := uint64(0) // bytes of data added to dst
	start := len(dst)
	for lo < hi {
		l.mu.Lock()
		err := l.usableLocked()
		if err == nil {
			err = checkRange(l.first, l.last, lo, hi)
		}
		if err != nil {
			l.mu.Unlock()
			return dst, err
		}
		if _, ok := l.cache.get(lo); ok {
			for ; lo < hi; lo++ {
				e, _ := l.cache.get(lo)
				size += uint64(len(e.Data))
				if size > maxBytes && len(dst) > start {
					break
				}
				dst = append(dst, e)
			}
			l.mu.Unlock()
			return dst, nil
		}
		part := l.planLocked(lo, hi)
		l.mu.Unlock()

		left := uint64(0)
		if size < maxBytes {
			left = maxBytes - size
		} else if len(dst) > start {
			return dst, nil
		}
		before := len(dst)
		dst, err = l.readPart(dst, part, left, before > start)
		if err != nil {
			return dst, err
		}
		if len(dst) == before {
			return dst, nil // the next one is too large
		}
		for _, e := range dst[before:] {
			size += uint64(len(e.Data))
		}
		lo += uint64(len(dst) - before)
	}
	return dst, nil
}

// readPlan is what is needed to read entries lo..hi-1, all in one segment,
// without holding the lock.
type readPlan struct {
	id      segmentID
	lo, hi  uint64
	indexed bool
	// bounds[i] is where entry lo+i starts; one more says where the last ends. For
	// an indexed segment it is read from the index file, end is the segment's.
	bounds []uint32
}

// planLocked plans reading from lo, at most up to hi.
func (l *FileLogStore) planLocked(lo, hi uint64) readPlan {
	i := len(l.segs) - 1
	for l.segs[i].first > lo {
		i--
	}
	s := l.segs[i]
	hi = min(hi, l.liveEndLocked(i), lo+readChunk)
	if first, ok := l.cache.first(); ok && first > lo {
		hi = min(hi, first)
	}
	p := readPlan{id: s.segmentID, lo: lo, hi: hi, indexed: s.indexed}
	if !s.indexed {
		p.bounds = append(p.bounds, s.offsets[lo-s.first:hi-s.first]...)
		if n := hi - s.first; n < uint64(len(s.offsets)) {
			p.bounds = append(p.bounds, s.offsets[n])
		} else {
			p.bounds = append(p.bounds, uint32(s.end))
		}
	}
	return p
}

// readPart appends to dst entries of p with together at most maxBytes of data,
// but at least one unless mayBeNone.
func (l *FileLogStore) readPart(dst []Entry, p readPlan, maxBytes uint64, mayBeNone bool) ([]Entry, error) {
	start := len(dst)
	dst, err := l.tryReadPart(dst, p, maxBytes, mayBeNone)
	if err == nil {
		return dst, nil
	}
	dst = dst[:start]
	if oserror.IsNotExist(err) {
		l.mu.Lock()
		err2 := checkRange(l.first, l.last, p.lo, p.lo+1)
		l.mu.Unlock()
		if err2 != nil {
			return dst, err2 // given up while we read
		}
	}
	if !p.indexed {
		return dst, err
	}
	// The index file is only a hint: make a new one and try again.
	if rerr := l.rebuildIndex(p.id, p.hi); rerr != nil {
		return dst, errors.Join(err, rerr)
	}
	dst, err = l.tryReadPart(dst, p, maxBytes, mayBeNone)
	if err != nil {
		return dst[:start], err
	}
	return dst, nil
}

func (l *FileLogStore) tryReadPart(dst []Entry, p readPlan, maxBytes uint64, mayBeNone bool) ([]Entry, error) {
	if p.indexed {
		var err error
		if p.bounds, err = l.readBounds(p); err != nil {
			return dst, err
		}
	}
	// How many of them, going by the room they take.
	n, size := 0, uint64(0)
	for n < len(p.bounds)-1 {
		if p.bounds[n+1] < p.bounds[n]+recordHeader {
			return dst, fmt.Errorf("%w: segment %s in %s: its index says that entry %d starts at %d and ends at %d",
				ErrCorrupt, p.id.name(), l.opts.Dir, p.lo+uint64(n), p.bounds[n], p.bounds[n+1])
		}
		size += uint64(p.bounds[n+1] - p.bounds[n] - recordHeader)
		if size > maxBytes && (n > 0 || mayBeNone) {
			break
		}
		n++
	}
	if n == 0 {
		return dst, nil
	}
	f, err := l.opts.FS.Open(l.path(p.id.name() + logSuffix))
	if err != nil {
		return dst, fmt.Errorf("logstore: reading entry %d: %w", p.lo, err)
	}
	defer f.Close()
	buf := make([]byte, p.bounds[n]-p.bounds[0])
	if got, err := f.ReadAt(buf, int64(p.bounds[0])); err != nil && !(err == io.EOF) {
		return dst, fmt.Errorf("logstore: reading %s%s at %d: %w", p.id.name(), logSuffix, p.bounds[0], err)
	} else if got < len(buf) {
		buf = buf[:got]
	}
	seed := p.id.seed()
	for i := 0; i < n; i++ {
		at := min(int(p.bounds[i]-p.bounds[0]), len(buf))
		end := min(int(p.bounds[i+1]-p.bounds[0]), len(buf))
		e, _, state, err := decodeRecord(buf[at:end], seed)
		index := p.lo + uint64(i)
		switch {
		case state == recordEnd:
			err = errors.New("the segment ends here")
		case state == recordOK && e.Index != index:
			err = fmt.Errorf("it holds entry %d", e.Index)
		case state == recordOK && !e.Type.valid():
			err = errors.New("it holds a sync mark")
		}
		if err != nil {
			return dst, fmt.Errorf("%w: segment %s in %s at offset %d, entry %d: %w",
				ErrCorrupt, p.id.name()+logSuffix, l.opts.Dir, p.bounds[i], index, err)
		}
		dst = append(dst, e)
	}
	return dst, nil
}

// readBounds reads p.bounds from the index file.
func (l *FileLogStore) readBounds(p readPlan) ([]uint32, error) {
	f, err := l.opts.FS.Open(l.path(p.id.name() + indexSuffix))
	if err != nil {
		return nil, fmt.Errorf("logstore: looking up entry %d: %w", p.lo, err)
	}
	defer f.Close()
	n := int(p.hi - p.lo)
	buf := make([]byte, indexEntry*(n+1))
	got, err := f.ReadAt(buf, indexHeader+indexEntry*int64(p.lo-p.id.first))
	if err == io.EOF && got >= indexEntry*n {
		// The last entry of the index ends where the segment ends.
		var h [indexHeader]byte
		if _, err = f.ReadAt(h[:], 0); err == nil {
			copy(buf[indexEntry*n:], h[16:24])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: index %s%s in %s is too short for entry %d: %w", ErrCorrupt, p.id.name(), indexSuffix, l.opts.Dir, p.hi-1, err)
	}
	bounds := make([]uint32, n+1)
	for i := range bounds {
		o := binary.LittleEndian.Uint64(buf[indexEntry*i:])
		if o >= 1<<32 {
			return nil, fmt.Errorf("%w: index %s%s in %s puts an entry at %d", ErrCorrupt, p.id.name(), indexSuffix, l.opts.Dir, o)
		}
		bounds[i] = uint32(o)
	}
	return bounds, nil
}

// rebuildIndex makes the index file of a sealed segment anew, which must hold
// the entries below hi.
func (l *FileLogStore) rebuildIndex(id segmentID, hi uint64) error {
	// Under syncMu the segment is not removed nor its index written by another.
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	f, err := l.opts.FS.Open(l.path(id.name() + logSuffix))
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := readAll(f, nil)
	if err != nil {
		return err
	}
	scan := scanRecords(data, id, ^uint64(0))
	if got := id.first + uint64(len(scan.offsets)); got < hi {
		return fmt.Errorf("%w: segment %s%s in %s at offset %d, entry %d: %s", ErrCorrupt, id.name(), logSuffix, l.opts.Dir, scan.end, got, scan.why())
	}
	l.log.Warnf("raft log %s: the index of segment %s was missing or damaged and is made anew", l.opts.Dir, id.name())
	return l.writeIndex(id, scan.end, scan.offsets)
}
