package logstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
)

const (
	// DefaultSegmentSize is FileOptions.SegmentSize where it is 0.
	DefaultSegmentSize = 64 << 20

	// maxBatch bounds the data of one Append: offsets inside a segment have 32 bits.
	maxBatch = 1 << 30
	// maxUnsyncedSegments is how many full segments may wait for their sync before
	// Append waits for it, which bounds what an open has to read and verify.
	maxUnsyncedSegments = 2
	// askSyncBytes is after how many unsynced bytes NeedSync is called, so that a
	// stream of writes does not meet its first sync with hundreds of megabytes.
	askSyncBytes = 16 << 20
	// directWrite is the payload size from which a payload is written from where
	// it lies instead of being copied behind its header: a second system call is
	// then cheaper than the copy.
	directWrite = 8 << 10
	// zeroAhead is how far Sync extends a segment with zeros beyond its last
	// record, so that most syncs find the file's size and blocks settled and need
	// no transaction of the filesystem's journal.
	zeroAhead, maxZeroAhead = 256 << 10, 1 << 20

	// gatherFrom is from how many callers of Sync at once a flush waits for more of
	// them, at most gatherLimit or an eighth of what the last flush took.
	gatherFrom  = 8
	gatherLimit = 500 * time.Microsecond

	diskCategory = vfs.DiskWriteCategory("raft-log")
)

// zeros is what extends a segment.
var zeros [maxZeroAhead]byte

// FileOptions says where and how a FileLogStore keeps its log.
type FileOptions struct {
	FS  vfs.FS
	Dir string // made if it does not exist
	// SegmentSize is the size from which a segment file is full, in bytes. A
	// larger batch of entries makes a larger segment. 0: DefaultSegmentSize.
	SegmentSize int64
	// CacheBytes is how much data of the last entries is kept in memory, so that
	// applying and replicating them reads no file. 0: none.
	CacheBytes int
	// Logger gets the warning of a torn tail. nil: nobody does.
	Logger logrus.FieldLogger
	// NeedSync is called when it would be wise to call Sync soon. It must not
	// block, nor call the store.
	NeedSync func()
	// OnDurable is called after DurableIndex advanced, by whoever called Sync and
	// before that Sync returns, in order. It must not block, nor call the store.
	OnDurable func(index uint64)
	// OnSync is told how long each sync took. It must not block.
	OnSync func(time.Duration)
}

// FileLogStore is the LogStore in files. FORMAT.md draws them.
//
// Lock order: syncMu, then mu; turn.L stands alone. No file is synced or removed with mu held, so
// appends go on during a sync.
type FileLogStore struct {
	opts   FileOptions
	log    logrus.FieldLogger
	dir    vfs.File   // for syncing the directory
	syncMu sync.Mutex // serialises syncs, and keeps segments from vanishing during one

	durable atomic.Uint64

	// Who syncs. flushing is guarded by turn.L; crowd and lastFlush are of who has set it.
	syncers   atomic.Int64 // calls of Sync that need a flush
	turn      *sync.Cond   // signalled when flushing becomes false
	flushing  bool
	crowd     int64 // syncers at the end of the last flush
	lastFlush time.Duration

	mu sync.Mutex // guards everything below
	// segs are the live segments; the last one is appended to. There is always one.
	segs []*segment
	// Invariant: segs[0].first == first <= last+1; segs[i].first < segs[i+1].first.
	first, last, lastTerm uint64
	nextSeq               uint64
	prealloc              int64 // how far the last segment is preallocated
	zeroed                int64 // how large the last segment's file is
	tailDirty             bool  // a failed write left bytes after the last record: go on in a new segment
	dirDirty              bool  // the directory has entries that are not synced
	unsynced              int64 // bytes appended since the last sync began
	marked                uint64
	terms                 termIndex
	cache                 entryCache
	one                   []byte // write buffer
	err                   error  // what made the store fail, for good
	closed                bool
}

var _ LogStore = (*FileLogStore)(nil)

// usableLocked returns why the store cannot be used, if so.
func (l *FileLogStore) usableLocked() error {
	if l.err != nil {
		return l.err
	}
	if l.closed {
		return ErrClosed
	}
	return nil
}

// failLocked makes the store fail for good. After a failed sync the kernel may
// have dropped the dirty pages and marked them clean: trying again would report
// success over lost data.
func (l *FileLogStore) failLocked(doing string, err error) error {
	if l.err == nil {
		l.err = fmt.Errorf("logstore: %s in %s failed, the log takes nothing more until it is opened again: %w", doing, l.opts.Dir, err)
	}
	return l.err
}

// isFull reports whether err says that there is no room (or no file descriptor)
// now, in contrast to a disk that fails.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

func (l *FileLogStore) path(name string) string { return l.opts.FS.PathJoin(l.opts.Dir, name) }

func (l *FileLogStore) activeLocked() *segment { return l.segs[len(l.segs)-1] }

// liveEndLocked is the index after the last live entry of segs[i].
func (l *FileLogStore) liveEndLocked(i int) uint64 {
	if i+1 < len(l.segs) {
		return l.segs[i+1].first
	}
	return l.last + 1
}

// Append implements LogStore.
func (l *FileLogStore) Append(entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usableLocked(); err != nil {
		return err
	}
	if err := checkAppend(l.last, entries); err != nil {
		return err
	}
	total := int64(0)
	for i := range entries {
		total += recordSize(len(entries[i].Data))
	}
	if total > maxBatch {
		return fmt.Errorf("%w: %d entries have %d together, the limit for one append is %d", ErrTooLarge, len(entries), total, maxBatch)
	}
	seg := l.activeLocked()
	if l.tailDirty || seg.end+total > l.opts.SegmentSize && len(seg.offsets) > 0 {
		if err := l.rollLocked(); err != nil {
			return err
		}
		seg = l.activeLocked()
	}
	if err := l.preallocateLocked(seg, seg.end+total); err != nil {
		return err
	}
	if err := l.writeLocked(seg, entries); err != nil {
		return err
	}
	e := &entries[len(entries)-1]
	l.last, l.lastTerm = e.Index, e.Term
	seg.dirty = true
	before := l.unsynced
	l.unsynced += total
	if l.opts.NeedSync != nil && before/askSyncBytes != l.unsynced/askSyncBytes {
		l.opts.NeedSync()
	}
	return nil
}

// writeLocked writes the records behind the segment's end. When it fails nothing
// has changed, except that tailDirty may be set.
func (l *FileLogStore) writeLocked(seg *segment, entries []Entry) error {
	seed, end, count := seg.seed(), seg.end, len(seg.offsets)
	buf := l.one[:0]
	at := end // where buf goes
	flush := func(b []byte) error {
		if len(b) == 0 {
			return nil
		}
		_, err := seg.file.WriteAt(b, at)
		at += int64(len(b))
		return err
	}
	var err error
	for i := range entries {
		e := &entries[i]
		seg.offsets = append(seg.offsets, uint32(end))
		var h [recordHeader]byte
		putRecordHeader(h[:], seed, e.Type, e.Term, e.Index, e.Data)
		buf = append(buf, h[:]...)
		if len(e.Data) >= directWrite {
			if err = flush(buf); err == nil {
				err = flush(e.Data)
			}
			buf = buf[:0]
		} else if buf = append(buf, e.Data...); len(buf) >= 1<<20 {
			err = flush(buf)
			buf = buf[:0]
		}
		if err != nil {
			break
		}
		end += recordSize(len(e.Data))
	}
	if err == nil {
		err = flush(buf)
	}
	if cap(buf) <= 1<<20+directWrite+recordHeader {
		l.one = buf[:0]
	}
	if err != nil {
		seg.offsets = seg.offsets[:count]
		return l.writeFailedLocked(seg, err)
	}
	for i := range entries {
		l.terms.add(entries[i].Index, entries[i].Term)
		l.cache.add(entries[i])
	}
	seg.end = end
	l.zeroed = max(l.zeroed, end)
	return nil
}

// writeFailedLocked handles a failed write behind the segment's end. Where the
// disk is only full, the record that may stand there in part is made void and
// the log goes on, in a new segment.
func (l *FileLogStore) writeFailedLocked(seg *segment, err error) error {
	if !isFull(err) {
		return l.failLocked("writing "+seg.name()+logSuffix, err)
	}
	l.tailDirty = true
	// The header's bytes are the first that a write in part has written: if they
	// are not there, a read finds the end of the file.
	if _, zerr := seg.file.WriteAt(zeros[:recordHeader], seg.end); zerr != nil && !isFull(zerr) {
		return l.failLocked("undoing a failed write to "+seg.name()+logSuffix, zerr)
	}
	return fmt.Errorf("%w to %s: %w", ErrNotAppended, l.path(seg.name()+logSuffix), err)
}

// preallocateLocked reserves disk space up to offset need of the active segment,
// so that a full disk is noticed here, before anything is written.
func (l *FileLogStore) preallocateLocked(seg *segment, need int64) error {
	if need <= l.prealloc {
		return nil
	}
	// Small at first, for the sake of many small groups, then doubling.
	to := max(need, min(l.opts.SegmentSize, max(1<<20, 2*l.prealloc)))
	err := seg.file.Preallocate(l.prealloc, to-l.prealloc)
	if err != nil && isFull(err) {
		if to == need {
			return fmt.Errorf("%w to %s: no room for it: %w", ErrNotAppended, l.path(seg.name()+logSuffix), err)
		}
		to = need
		if err = seg.file.Preallocate(l.prealloc, to-l.prealloc); err != nil && isFull(err) {
			return fmt.Errorf("%w to %s: no room for it: %w", ErrNotAppended, l.path(seg.name()+logSuffix), err)
		}
	}
	// Any other error means that the filesystem cannot do it; the write will tell.
	l.prealloc = to
	return nil
}

// rollLocked makes a new active segment. It may release mu for a sync, which is
// why only the writer calls it.
func (l *FileLogStore) rollLocked() error {
	waiting := 0
	for _, s := range l.segs {
		if s.dirty {
			waiting++
		}
	}
	if waiting > maxUnsyncedSegments {
		l.mu.Unlock()
		err := l.Sync()
		l.mu.Lock()
		if err != nil {
			return err
		}
	}
	if _, err := l.addSegmentLocked(l.last+1, l.lastTerm, false); err != nil {
		return err
	}
	if l.opts.NeedSync != nil {
		l.opts.NeedSync()
	}
	return nil
}

// addSegmentLocked makes an empty segment the active one, without syncing it.
func (l *FileLogStore) addSegmentLocked(first, prevTerm uint64, fresh bool) (*segment, error) {
	var salt [4]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, fmt.Errorf("%w: no random bytes: %w", ErrNotAppended, err)
	}
	seg := &segment{
		segmentID: segmentID{seq: l.nextSeq, first: first, salt: binary.LittleEndian.Uint32(salt[:])},
		prevTerm:  prevTerm,
		end:       segmentHeader,
		dirty:     true,
	}
	l.nextSeq++
	path := l.path(seg.name() + logSuffix)
	f, err := l.opts.FS.OpenReadWrite(path, diskCategory)
	if err == nil {
		if perr := f.Preallocate(0, segmentHeader); perr != nil && isFull(perr) {
			err = perr
		}
		if err == nil {
			_, err = f.WriteAt(encodeSegmentHeader(seg.segmentID, prevTerm, fresh), 0)
		}
		if err != nil {
			// The leftover, should it stay, is an unsynced segment without entries.
			_ = f.Close()
			_ = l.opts.FS.Remove(path)
		}
	}
	if err != nil {
		if isFull(err) {
			return nil, fmt.Errorf("%w: making segment %s: %w", ErrNotAppended, path, err)
		}
		return nil, l.failLocked("making segment "+seg.name()+logSuffix, err)
	}
	seg.file = f
	l.segs = append(l.segs, seg)
	l.prealloc, l.zeroed, l.tailDirty, l.dirDirty = segmentHeader, segmentHeader, false, true
	return seg, nil
}

// Sync implements LogStore.
func (l *FileLogStore) Sync() error {
	l.mu.Lock()
	target, err := l.last, l.usableLocked()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if l.durable.Load() >= target {
		return nil
	}
	l.syncers.Add(1)
	defer l.syncers.Add(-1)
	l.turn.L.Lock()
	for l.flushing && l.durable.Load() < target {
		l.turn.Wait()
	}
	if l.durable.Load() >= target {
		// Somebody has done our work, unless it failed.
		l.turn.L.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.usableLocked()
	}
	l.flushing = true
	l.turn.L.Unlock()

	l.gather()
	l.syncMu.Lock()
	began := time.Now()
	err = l.flush()
	l.lastFlush = time.Since(began)
	l.syncMu.Unlock()

	l.turn.L.Lock()
	l.flushing = false
	l.crowd = l.syncers.Load()
	l.turn.L.Unlock()
	l.turn.Broadcast()
	return err
}

// gather waits a moment for those whom the last flush let go: half of a crowd is on its
// way to append again when the other half could begin the next flush, and both halves
// would take turns for good. Only who has set flushing calls it.
func (l *FileLogStore) gather() {
	if l.crowd < gatherFrom {
		return
	}
	deadline := time.Now().Add(min(l.lastFlush/8, gatherLimit))
	for time.Now().Before(deadline) && l.LastIndex()-min(l.durable.Load(), l.LastIndex()) < uint64(l.crowd) {
		runtime.Gosched()
	}
}

// flush syncs all dirty segments. The caller holds syncMu, not mu.
func (l *FileLogStore) flush() error {
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	upTo := l.last
	var dirty []*segment
	var ends []int64
	for _, s := range l.segs {
		if s.dirty {
			s.dirty = false
			dirty, ends = append(dirty, s), append(ends, s.end)
		}
	}
	if l.unsynced < zeroAhead/2 {
		l.extendLocked() // larger ones would write the zeros for nothing
	}
	syncDir := l.dirDirty
	l.dirDirty = false
	l.unsynced = 0
	l.mu.Unlock()

	began := time.Now()
	for i, s := range dirty {
		if err := s.file.SyncData(); err != nil {
			return l.fail("syncing "+s.name()+logSuffix, err)
		}
		s.uncache(ends[i])
	}
	if l.opts.OnSync != nil && len(dirty) > 0 {
		l.opts.OnSync(time.Since(began))
	}
	if syncDir {
		if err := l.dir.Sync(); err != nil {
			return l.fail("syncing the directory", err)
		}
	}

	l.mu.Lock()
	for _, s := range dirty {
		s.synced = true
	}
	advanced := upTo > l.durable.Load()
	if advanced {
		l.durable.Store(upTo)
	}
	err := l.markLocked()
	var sealed []*segment
	for i, s := range l.segs[:len(l.segs)-1] {
		// An index file also says that there is a next segment.
		if s.synced && !s.dirty && !s.indexed && l.segs[i+1].synced {
			sealed = append(sealed, s)
		}
	}
	l.mu.Unlock()
	for _, s := range sealed {
		l.seal(s)
	}
	if advanced && l.opts.OnDurable != nil {
		l.opts.OnDurable(upTo)
	}
	return err
}

func (l *FileLogStore) fail(doing string, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failLocked(doing, err)
}

// markLocked writes a sync mark behind the last record: a record of type
// typeSyncMark whose index is the durable index. It reaches the disk with
// whatever is synced next, or sooner. Found on disk it proves that everything up
// to its index was there once, so that a bad record up to there is damage and not
// a torn tail.
func (l *FileLogStore) markLocked() error {
	durable := l.durable.Load()
	if l.tailDirty || durable <= l.marked {
		return nil
	}
	seg := l.activeLocked()
	var h [recordHeader]byte
	putRecordHeader(h[:], seg.seed(), typeSyncMark, l.lastTerm, durable, nil)
	if _, err := seg.file.WriteAt(h[:], seg.end); err != nil {
		if err = l.writeFailedLocked(seg, err); l.err != nil {
			return err
		}
		return nil // a full disk: we go on without the mark
	}
	l.marked = durable
	seg.end += recordHeader
	l.zeroed = max(l.zeroed, seg.end)
	return nil
}

// extendLocked writes zeros behind the end of the active segment, see zeroAhead.
func (l *FileLogStore) extendLocked() {
	seg := l.activeLocked()
	// Each costs a transaction of the journal: a log that is written much gets more
	// at once than one of many that are hardly used.
	ahead := min(max(zeroAhead, seg.end), maxZeroAhead, l.opts.SegmentSize/16)
	if l.tailDirty || l.zeroed-seg.end > ahead/4 {
		return
	}
	to := min(seg.end+ahead, l.prealloc)
	if to <= l.zeroed {
		return
	}
	// What fails here costs speed, nothing else: no record is where we write.
	if _, err := seg.file.WriteAt(zeros[:to-l.zeroed], l.zeroed); err == nil {
		l.zeroed = to
	}
}

// seal writes the index file of a segment that is full and synced, and forgets
// its offsets. The caller holds syncMu, not mu. Without an index file the
// offsets stay in memory, and the next sync tries again.
func (l *FileLogStore) seal(s *segment) {
	l.mu.Lock()
	end, offsets := s.end, s.offsets // a sealed segment's offsets are only replaced, under syncMu
	l.mu.Unlock()
	if err := l.writeIndex(s.segmentID, end, offsets); err != nil {
		l.log.WithError(err).Warnf("raft log %s: the index of segment %s cannot be written now", l.opts.Dir, s.name())
		return
	}
	l.mu.Lock()
	f := s.file
	s.indexed, s.offsets, s.file = true, nil, nil
	l.mu.Unlock()
	if f != nil {
		_ = f.Close()
	}
}

func (l *FileLogStore) writeIndex(id segmentID, end int64, offsets []uint32) error {
	path := l.path(id.name() + indexSuffix)
	f, err := l.opts.FS.Create(path, diskCategory)
	if err != nil {
		return err
	}
	_, err = f.Write(encodeIndex(id.seed(), end, offsets))
	err = errors.Join(err, f.Close())
	if err != nil {
		_ = l.opts.FS.Remove(path)
	}
	return err
}

// TruncateFrom implements LogStore. Nothing that was written is overwritten: a
// new segment takes over from index on, and what is older than it and beyond
// its first entry is dead.
func (l *FileLogStore) TruncateFrom(index uint64) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	err := l.usableLocked()
	first, last := l.first, l.last
	l.mu.Unlock()
	switch {
	case err != nil:
		return err
	case index > last:
		return nil
	case index < first:
		return fmt.Errorf("%w: truncating from %d, the first one is %d", ErrCompacted, index, first)
	}
	prevTerm, err := l.Term(index - 1)
	if err != nil {
		return err
	}
	return l.takeOver(index, prevTerm, false)
}

// Reset implements LogStore.
func (l *FileLogStore) Reset(index, term uint64) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	return l.takeOver(index+1, term, true)
}

// takeOver makes a new segment with the given first entry durable, and removes
// what it makes dead: with fresh all other segments, without it those that start
// at or after it. The caller holds syncMu, not mu.
func (l *FileLogStore) takeOver(first, prevTerm uint64, fresh bool) error {
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		return err
	}
	seg, err := l.addSegmentLocked(first, prevTerm, fresh)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	old := l.segs[:len(l.segs)-1]
	keep := 0
	if !fresh {
		for keep < len(old) && old[keep].first < first {
			keep++
		}
	}
	dead := append([]*segment(nil), old[keep:]...)
	l.segs = append(append([]*segment(nil), old[:keep]...), seg)
	if keep > 0 {
		// The last live one ends where the new one starts, maybe earlier than its file.
		s := l.segs[keep-1]
		if n := first - s.first; !s.indexed && uint64(len(s.offsets)) > n {
			s.end = int64(s.offsets[n])
			s.offsets = s.offsets[:n:n]
		}
	}
	l.first = l.segs[0].first
	l.last, l.lastTerm = first-1, prevTerm
	if fresh {
		l.terms.reset(first, prevTerm)
		l.cache.truncate(0)
		l.durable.Store(first - 1)
	} else {
		l.terms.truncate(first, prevTerm)
		l.cache.truncate(first)
		l.durable.Store(min(l.durable.Load(), first-1))
	}
	l.marked = min(l.marked, first-1)
	seg.dirty, l.dirDirty = false, false
	l.mu.Unlock()

	if err := seg.file.SyncData(); err != nil {
		return l.fail("syncing "+seg.name()+logSuffix, err)
	}
	if err := l.dir.Sync(); err != nil {
		return l.fail("syncing the directory", err)
	}
	l.mu.Lock()
	seg.synced = true
	l.mu.Unlock()
	return l.removeSegments(dead)
}

// removeSegments deletes the files of segments that are no longer in segs. One
// after the other is gone for good, so that no crash leaves a hole.
func (l *FileLogStore) removeSegments(dead []*segment) error {
	for _, s := range dead {
		if s.file != nil {
			_ = s.file.Close()
		}
		if err := removeSegmentFiles(l.opts.FS, l.opts.Dir, s.segmentID, s.indexed); err != nil {
			return l.fail("removing segment "+s.name(), err)
		}
		if err := l.dir.Sync(); err != nil {
			return l.fail("syncing the directory", err)
		}
	}
	return nil
}

func removeSegmentFiles(fs vfs.FS, dir string, id segmentID, indexed bool) error {
	if err := fs.Remove(fs.PathJoin(dir, id.name()+logSuffix)); err != nil {
		return err
	}
	if indexed {
		return fs.Remove(fs.PathJoin(dir, id.name()+indexSuffix))
	}
	return nil
}

// CompactTo implements LogStore.
func (l *FileLogStore) CompactTo(index uint64) error {
	// Under syncMu nothing syncs or seals what we detach.
	l.syncMu.Lock()
	l.mu.Lock()
	if err := l.usableLocked(); err != nil {
		l.mu.Unlock()
		l.syncMu.Unlock()
		return err
	}
	if index > l.last {
		defer l.syncMu.Unlock()
		defer l.mu.Unlock()
		return fmt.Errorf("%w: compacting to %d, the last one is %d", ErrUnavailable, index, l.last)
	}
	n := 0
	// The one that becomes the first must be durable itself.
	for n+1 < len(l.segs) && l.segs[n+1].first <= index+1 && l.segs[n+1].synced {
		n++
	}
	dead := append([]*segment(nil), l.segs[:n]...)
	l.segs = append([]*segment(nil), l.segs[n:]...)
	l.first = l.segs[0].first
	l.terms.compact(l.first, l.segs[0].prevTerm)
	l.mu.Unlock()
	l.syncMu.Unlock()
	return l.removeSegments(dead)
}

// Tail implements LogStore.
func (l *FileLogStore) Tail(bytes int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.segs) - 1; i >= 0; i-- {
		if bytes -= l.segs[i].end - segmentHeader; bytes <= 0 {
			return l.segs[i].first - 1
		}
	}
	return l.first - 1
}

// FirstIndex implements LogStore.
func (l *FileLogStore) FirstIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// LastIndex implements LogStore.
func (l *FileLogStore) LastIndex() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// LastTerm implements LogStore.
func (l *FileLogStore) LastTerm() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastTerm
}

// DurableIndex implements LogStore.
func (l *FileLogStore) DurableIndex() uint64 { return l.durable.Load() }

// Close implements LogStore. It leaves a durable sync mark behind, so that from
// here on every flipped bit is found out.
func (l *FileLogStore) Close() error {
	err := l.Sync()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	segs := l.segs
	l.mu.Unlock()
	if err == nil {
		if serr := segs[len(segs)-1].file.SyncData(); serr != nil {
			err = l.fail("syncing at close", serr)
		}
	}
	var errs []error
	for _, s := range segs {
		if s.file != nil {
			errs = append(errs, s.file.Close())
		}
	}
	errs = append(errs, l.dir.Close())
	return errors.Join(append([]error{err}, errs...)...)
}

// readAll reads the whole file into b, which is grown as needed.
func readAll(f vfs.File, b []byte) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := st.Size()
	if size > 1<<32 {
		return nil, fmt.Errorf("%d bytes, a log segment has at most %d", size, int64(1)<<32)
	}
	if int64(cap(b)) < size {
		b = make([]byte, size)
	}
	b = b[:size]
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}
