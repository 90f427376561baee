package logstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"
)

// OpenFile opens the log in opts.Dir, or makes an empty one. What is in it is
// durable when it returns: it cuts off a torn tail, with a warning, and syncs.
// Damage before the tail is an error that wraps ErrCorrupt.
//
// It reads the segments that were not known to be durable as a whole when the
// log was last in use, three at most, and of the others only the headers. That
// the name of opts.Dir itself is durable is the caller's business.
func OpenFile(opts FileOptions) (*FileLogStore, error) {
	if opts.SegmentSize == 0 {
		opts.SegmentSize = DefaultSegmentSize
	}
	if opts.SegmentSize < 1<<10 || opts.SegmentSize > 1<<30 {
		return nil, fmt.Errorf("logstore: segment size %d is out of the range %d..%d", opts.SegmentSize, 1<<10, 1<<30)
	}
	l := &FileLogStore{turn: sync.NewCond(&sync.Mutex{}),
		opts:  opts,
		log:   opts.Logger,
		cache: entryCache{limit: opts.CacheBytes, applied: math.MaxUint64},
	}
	if l.log == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		l.log = quiet
	}
	if err := opts.FS.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("logstore: %w", err)
	}
	dir, err := opts.FS.OpenDir(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("logstore: %w", err)
	}
	l.dir = dir
	if err := l.load(); err != nil {
		for _, s := range l.segs {
			if s.file != nil {
				_ = s.file.Close()
			}
		}
		_ = dir.Close()
		return nil, err
	}
	return l, nil
}

// foundSegment is a segment file met at open.
type foundSegment struct {
	segment
	fresh     bool
	headerErr error
	hasIndex  bool
}

// load fills l from the files. Nothing runs beside it.
func (l *FileLogStore) load() error {
	found, dead, err := l.find()
	if err != nil {
		return err
	}
	cut, err := l.chain(found)
	if err != nil {
		return err
	}
	if len(l.segs) == 0 {
		// A new log, or one whose first segment never got to the disk.
		l.first = 1
		for i := range found {
			dead = append(dead, &found[i].segment)
		}
		if err := l.takeOver(1, 0, true); err != nil {
			return err
		}
		return l.removeSegments(dead)
	}
	l.first = l.segs[0].first
	l.durable.Store(l.first - 1)
	active := l.activeLocked()
	if active.file != nil {
		st, err := active.file.Stat()
		if err != nil {
			return fmt.Errorf("logstore: %w", err)
		}
		l.zeroed = st.Size()
		l.prealloc = st.Size()
	}
	if cut != nil {
		l.log.Warnf("raft log %s: cut a torn tail off at entry %d: %s. The log goes on after entry %d; "+
			"what is lost was never reported as durable", l.opts.Dir, l.last+1, cut.reason, l.last)
		if err := l.takeOver(l.last+1, l.lastTerm, false); err != nil {
			return err
		}
		for _, id := range cut.drop {
			dead = append(dead, &segment{segmentID: id.segmentID, indexed: id.indexed})
		}
	}
	// What makes the dead ones dead has to be durable before they go.
	l.dirDirty = true
	l.syncMu.Lock()
	err = l.flush()
	l.syncMu.Unlock()
	if err != nil {
		return err
	}
	return l.removeSegments(dead)
}

// find lists the segment files, by seq, apart from those that are dead.
func (l *FileLogStore) find() (live []*foundSegment, dead []*segment, err error) {
	fs := l.opts.FS
	names, err := fs.List(l.opts.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("logstore: %w", err)
	}
	indexes := map[string]bool{}
	for _, name := range names {
		if base, ok := strings.CutSuffix(name, indexSuffix); ok {
			indexes[base] = true
		}
	}
	for _, name := range names {
		base, ok := strings.CutSuffix(name, logSuffix)
		if !ok {
			continue
		}
		id, ok := parseSegmentName(base)
		if !ok {
			return nil, nil, fmt.Errorf("logstore: %s in %s is not a name of a log segment: move it elsewhere", name, l.opts.Dir)
		}
		s := &foundSegment{segment: segment{segmentID: id, end: segmentHeader}, hasIndex: indexes[base]}
		s.indexed = s.hasIndex // so that removing the segment removes both
		delete(indexes, base)
		live = append(live, s)
		l.nextSeq = max(l.nextSeq, id.seq)
	}
	l.nextSeq++
	for base := range indexes {
		// Left over from a removal that was interrupted.
		if err := fs.Remove(l.path(base + indexSuffix)); err != nil {
			return nil, nil, fmt.Errorf("logstore: %w", err)
		}
	}
	slices.SortFunc(live, func(a, b *foundSegment) int { return cmp.Compare(a.seq, b.seq) })
	for _, s := range live {
		if err := l.readHeader(s); err != nil {
			return nil, nil, err
		}
	}
	// What is dead: everything before the last fresh start, and whatever does not
	// start before a later one. A segment with a bad header kills nothing.
	kept := live[:0:0]
	minFirst := ^uint64(0)
	for i := len(live) - 1; i >= 0; i-- {
		s := live[i]
		if s.first >= minFirst {
			dead = append(dead, &s.segment)
			continue
		}
		kept = append(kept, s)
		if s.headerErr == nil {
			minFirst = s.first
			if s.fresh {
				minFirst = 0
			}
		}
	}
	slices.Reverse(kept)
	return kept, dead, nil
}

func (l *FileLogStore) readHeader(s *foundSegment) error {
	f, err := l.opts.FS.Open(l.path(s.name() + logSuffix))
	if err != nil {
		return fmt.Errorf("logstore: %w", err)
	}
	defer f.Close()
	var h [segmentHeader]byte
	n, err := f.ReadAt(h[:], 0)
	if err != nil && err != io.EOF {
		return fmt.Errorf("logstore: reading the header of %s%s: %w", s.name(), logSuffix, err)
	}
	s.prevTerm, s.fresh, s.headerErr = decodeSegmentHeader(h[:n], s.segmentID)
	if errors.Is(s.headerErr, errVersion) {
		return fmt.Errorf("logstore: segment %s%s in %s: %w", s.name(), logSuffix, l.opts.Dir, s.headerErr)
	}
	return nil
}

// tornTail is where the log has to be cut.
type tornTail struct {
	reason string
	drop   []*segment // what comes after it
}

// chain walks the live segments in order, sets segs, last and lastTerm, and
// decides about the first thing that is not as it should be: damage or torn tail.
func (l *FileLogStore) chain(found []*foundSegment) (*tornTail, error) {
	if len(found) == 0 {
		return nil, nil
	}
	l.last, l.lastTerm = found[0].first-1, found[0].prevTerm
	l.terms.reset(found[0].first, l.lastTerm)
	found, unborn, err := l.dropUnborn(found)
	if err != nil {
		return nil, err
	}
	var buf []byte
	for i, s := range found {
		isLast := i == len(found)-1
		limit := ^uint64(0)
		if !isLast {
			limit = found[i+1].first
		}
		bad := "" // what is wrong, if anything
		var badAt int64
		var data []byte
		switch {
		case s.first != l.last+1:
			bad = fmt.Sprintf("the segment before it, with the entries from %d on, is missing", l.last+1)
		case s.hasIndex && !isLast && l.indexCovers(s, limit):
			s.indexed, s.synced = true, true
			l.segs = append(l.segs, &s.segment)
			l.last, l.lastTerm = limit-1, found[i+1].prevTerm
			l.terms.reset(limit, l.lastTerm)
			continue
		default:
			f, err := l.opts.FS.OpenReadWrite(l.path(s.name()+logSuffix), diskCategory)
			if err != nil {
				return nil, fmt.Errorf("logstore: %w", err)
			}
			s.file, s.indexed, s.dirty = f, false, true
			l.segs = append(l.segs, &s.segment)
			if buf, err = readAll(f, buf); err != nil {
				return nil, fmt.Errorf("logstore: reading %s%s: %w", s.name(), logSuffix, err)
			}
			data = buf
			scan := scanRecords(data, s.segmentID, limit)
			s.offsets, s.end = scan.offsets, scan.end
			for j, t := range scan.terms {
				l.terms.add(s.first+uint64(j), t)
				l.lastTerm = t
			}
			l.last = s.first + uint64(len(scan.offsets)) - 1
			if isLast {
				l.marked = scan.marked
			}
			if isLast && s.hasIndex {
				return nil, fmt.Errorf("%w: the segment after %s%s in %s, which starts with entry %d, is missing", ErrCorrupt, s.name(), logSuffix, l.opts.Dir, l.last+1)
			}
			if scan.clean && (isLast || l.last+1 == limit) {
				continue
			}
			bad, badAt = scan.why(), scan.end
		}
		// Everything in doubt is at index l.last+1 and later. Was it ever durable?
		durable, proof, err := l.evidence(found[i:], data, badAt)
		if err != nil {
			return nil, err
		}
		if durable > l.last {
			return nil, fmt.Errorf("%w: segment %s%s in %s at offset %d, entry %d: %s; that entry was once durable (%s), so this is not a torn write: "+
				"restore the store from another replica or a backup", ErrCorrupt, s.name(), logSuffix, l.opts.Dir, badAt, l.last+1, bad, proof)
		}
		cut := &tornTail{reason: fmt.Sprintf("segment %s%s at offset %d: %s", s.name(), logSuffix, badAt, bad), drop: unborn}
		for _, d := range found[i:] {
			if len(l.segs) == 0 || l.activeLocked() != &d.segment {
				d.indexed = d.hasIndex
				cut.drop = append(cut.drop, &d.segment)
			}
		}
		return cut, nil
	}
	if len(unborn) > 0 {
		return &tornTail{reason: fmt.Sprintf("segment %s%s has no header", unborn[0].name(), logSuffix), drop: unborn}, nil
	}
	return nil, nil
}

// dropUnborn takes out the segments without a sound header. Where the header never
// got to the disk, nothing in the segment was ever durable; where it did, the
// segment has sync marks, and its header is damaged.
func (l *FileLogStore) dropUnborn(found []*foundSegment) (sound []*foundSegment, unborn []*segment, err error) {
	for i, s := range found {
		if s.headerErr == nil {
			sound = append(sound, s)
			continue
		}
		durable, proof, err := l.evidence(found[i:i+1], nil, 0)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case durable >= s.first:
		case s.hasIndex:
			proof = "it has an index file"
		case i == 0 && s.first > 1:
			proof = "the segments before it were compacted, which its own sync comes before"
		default:
			unborn = append(unborn, &s.segment)
			continue
		}
		return nil, nil, fmt.Errorf("%w: segment %s%s in %s at offset 0, entry %d: %w; the segment was once durable (%s): "+
			"restore the store from another replica or a backup", ErrCorrupt, s.name(), logSuffix, l.opts.Dir, s.first, s.headerErr, proof)
	}
	return sound, unborn, nil
}

// indexCovers reports whether the index file of s has an entry for each live one.
func (l *FileLogStore) indexCovers(s *foundSegment, limit uint64) bool {
	f, err := l.opts.FS.Open(l.path(s.name() + indexSuffix))
	if err != nil {
		return false
	}
	defer f.Close()
	var h [indexHeader]byte
	if _, err := f.ReadAt(h[:], 0); err != nil || string(h[:8]) != indexMagic {
		return false
	}
	st, err := f.Stat()
	count, end := binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[16:])
	if err != nil || count >= 1<<32 || count < limit-s.first || st.Size() != int64(indexHeader+indexEntry*count) || end < segmentHeader || end > 1<<32 {
		return false
	}
	s.end = int64(end) // what is good for telling how much the log holds; reading checks it
	return true
}

// evidence returns up to which index the segments were once durable, and what
// proves it, going by what is left in them: data[from:] of the first one, whole
// files of the later ones.
func (l *FileLogStore) evidence(segs []*foundSegment, data []byte, from int64) (durable uint64, proof string, err error) {
	for i, s := range segs {
		if i > 0 || data == nil {
			f, err := l.opts.FS.Open(l.path(s.name() + logSuffix))
			if err != nil {
				return 0, "", fmt.Errorf("logstore: %w", err)
			}
			data, err = readAll(f, nil)
			_ = f.Close()
			if err != nil {
				return 0, "", fmt.Errorf("logstore: reading %s%s: %w", s.name(), logSuffix, err)
			}
			from = 0
		}
		if index, at := lastMark(data, from, s.segmentID); index > durable {
			durable, proof = index, fmt.Sprintf("segment %s%s at offset %d notes the sync of entry %d", s.name(), logSuffix, at, index)
		}
		// An index file is only written once the whole segment is durable.
		if s.hasIndex && i+1 < len(segs) && segs[i+1].first-1 > durable {
			durable, proof = segs[i+1].first-1, fmt.Sprintf("%s%s is there", s.name(), indexSuffix)
		}
	}
	return durable, proof, nil
}

// lastMark finds the sync mark with the highest index in data[from:].
func lastMark(data []byte, from int64, id segmentID) (index uint64, at int64) {
	seed := id.seed()
	pattern := []byte{commandOverhead, 0, 0, 0}
	for from < int64(len(data)) {
		n := bytes.Index(data[from:], pattern)
		if n < 0 {
			break
		}
		from += int64(n)
		if rest := data[from:]; len(rest) >= recordHeader && EntryType(rest[recordTypeAt]) == typeSyncMark {
			if e, _, state, _ := decodeRecord(rest[:recordHeader], seed); state == recordOK && e.Index > index {
				index, at = e.Index, from
			}
		}
		from++
	}
	return index, at
}

// scanned is what scanRecords found.
type scanned struct {
	offsets []uint32
	terms   []uint64
	end     int64  // offset after the last good record
	marked  uint64 // the last sync mark
	clean   bool   // behind end there are only zeros, or nothing
	err     error  // what is wrong at end, when not clean
}

func (s *scanned) why() string {
	if s.err != nil {
		return s.err.Error()
	}
	return "the segment ends here"
}

// scanRecords reads the records of a segment file up to entry limit-1, or to the
// first that is not sound.
func scanRecords(data []byte, id segmentID, limit uint64) scanned {
	s := scanned{end: segmentHeader}
	seed := id.seed()
	next := id.first
	term := uint64(0)
	for next < limit {
		rest := data[min(s.end, int64(len(data))):]
		e, size, state, err := decodeRecord(rest, seed)
		if state == recordEnd {
			s.clean = allZero(rest)
			if !s.clean {
				s.err = errors.New("after the end mark come bytes that were not written in order")
			}
			return s
		}
		if state == recordOK {
			switch {
			case e.Type == typeSyncMark && (e.Index >= next || len(e.Data) > 0):
				err = fmt.Errorf("a sync mark for entry %d before entry %d", e.Index, next)
			case e.Type != typeSyncMark && e.Index != next:
				err = fmt.Errorf("entry %d where entry %d belongs", e.Index, next)
			case e.Type != typeSyncMark && e.Term < term:
				err = fmt.Errorf("term %d after term %d", e.Term, term)
			case s.end+int64(size) >= 1<<32:
				err = errors.New("beyond 4 GiB")
			}
		}
		if err != nil {
			s.err = err
			return s
		}
		if e.Type == typeSyncMark {
			s.marked = max(s.marked, e.Index)
		} else {
			s.offsets = append(s.offsets, uint32(s.end))
			s.terms = append(s.terms, e.Term)
			term = e.Term
			next++
		}
		s.end += int64(size)
	}
	s.clean = true
	return s
}
