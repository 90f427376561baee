// Package logstore keeps the log of one Raft group: a sequence of entries with
// consecutive indexes, appended at the end, cut off at the end when a new
// leader says so, and given up at the front when nobody needs it any more.
//
// FileLogStore keeps it in preallocated segment files (FORMAT.md draws the
// bytes), MemoryLogStore in memory. Both pass the one suite in suite_test.go.
// The package also holds StateFile, a group's hard state.
package logstore

import (
	"errors"
	"fmt"
)

// EntryType says what an entry's data is. The values are part of the format on
// disk: never change or reuse one.
type EntryType uint8

const (
	// EntryCommand is a command for the state machine.
	EntryCommand EntryType = 1
	// EntryNoop carries nothing: what a new leader appends first.
	EntryNoop EntryType = 2
	// EntryConfChange and EntryConfChangeV2 carry a change of membership as the
	// engine encodes it.
	EntryConfChange   EntryType = 3
	EntryConfChangeV2 EntryType = 4

	// 5 is kept free for a command whose bulk lies outside the log, by reference.

	// EntryTagged is a command behind 16 bytes that say who proposed it, so that a
	// node finds its own among the replicated ones.
	EntryTagged EntryType = 6

	// typeSyncMark is not an entry: see appendMark.
	typeSyncMark EntryType = 0x7f
)

// valid reports whether t may be appended.
func (t EntryType) valid() bool {
	return t >= EntryCommand && t <= EntryConfChangeV2 || t == EntryTagged
}

// IsConfChange reports whether entries of the type change the membership.
func (t EntryType) IsConfChange() bool { return t == EntryConfChange || t == EntryConfChangeV2 }

// Entry is one entry of a log.
type Entry struct {
	Index uint64 // from 1, consecutive
	Term  uint64
	Type  EntryType
	// Data is never changed by anyone once the entry was appended or read.
	Data []byte
}

// MaxDataSize is the largest Entry.Data, in bytes. A larger one is refused when
// appended and taken for damage when read.
const MaxDataSize = 64 << 20

var (
	// ErrCompacted is returned for an index that was given up (CompactTo, Reset).
	ErrCompacted = errors.New("logstore: the entry was compacted away")
	// ErrUnavailable is returned for an index after the last one.
	ErrUnavailable = errors.New("logstore: the entry is not in the log yet")
	// ErrCorrupt marks damage: bytes that were once on disk and are not what was
	// written. The error that wraps it names file, offset and index.
	ErrCorrupt = errors.New("logstore: the log is damaged")
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("logstore: closed")
	// ErrTooLarge refuses an entry whose data is larger than MaxDataSize.
	ErrTooLarge = fmt.Errorf("logstore: an entry's data is limited to %d bytes", MaxDataSize)
	// ErrNotAppended marks an append that failed without a trace: the log is as it
	// was before and goes on working. (In practice: the disk is full.)
	ErrNotAppended = errors.New("logstore: nothing was appended")
)

// LogStore is the log of one group.
//
// Who may call what at once: Append, TruncateFrom, CompactTo, Reset and Close
// are the writer's, and are never called concurrently with each other. All other
// methods may be called from any goroutine at any time, also while the writer
// is at work. In particular Sync runs beside Append.
//
// What is durable when: Append returns when the entries can be read back in this
// process and would survive its end, not a power cut. An entry is durable once a
// Sync that started after its Append returned has returned nil; DurableIndex
// tells how far that is. TruncateFrom and Reset are durable when they return.
// After a crash the log is the appended one up to some index that is at least
// the durable one.
//
// Failures: a failed write or sync of the file makes the store fail for good:
// this call and all later ones return the error, as nobody can know any more
// what is on the disk. The exceptions wrap ErrNotAppended, ErrTooLarge,
// ErrCompacted or ErrUnavailable, and damage found on reading wraps ErrCorrupt.
type LogStore interface {
	// Append adds entries, which follow the last one (or the caller has a bug and
	// gets an error). It keeps no reference to the slice, but to each Data.
	Append(entries []Entry) error

	// Entry returns the entry at index. Its Data is the caller's to keep, not to
	// change.
	Entry(index uint64) (Entry, error)

	// Entries appends to dst the entries lo..hi-1 (lo < hi), as many of them as
	// have together at most maxBytes of data, but at least one.
	Entries(dst []Entry, lo, hi, maxBytes uint64) ([]Entry, error)

	// Term returns the term of the entry at index, which may also be
	// FirstIndex()-1.
	Term(index uint64) (uint64, error)

	// TruncateFrom removes the entries from index on. Removing what is not there
	// does nothing.
	TruncateFrom(index uint64) error

	// CompactTo allows the store to give up entries up to index, which must not
	// be beyond the last. It gives up what comes in whole segments: FirstIndex
	// may be lower than index+1 afterwards, never higher.
	CompactTo(index uint64) error

	// Tail returns an index behind which the entries take at least bytes, and with
	// the unit in which CompactTo gives up no more than that: what CompactTo is given
	// to keep so much. FirstIndex()-1 where the whole log takes less.
	Tail(bytes int64) uint64

	// Reset empties the log, as if everything up to index (whose term is term)
	// had been compacted: the next entry appended is index+1.
	Reset(index, term uint64) error

	// FirstIndex is the first index that Entry can return: LastIndex()+1 when the
	// log is empty.
	FirstIndex() uint64
	LastIndex() uint64
	// LastTerm is Term(LastIndex()).
	LastTerm() uint64

	// Sync makes everything durable that was appended before the call. Callers
	// that come together share one flush.
	Sync() error
	// DurableIndex is the last index known to be durable.
	DurableIndex() uint64

	// Close syncs and closes the store.
	Close() error
}

// checkAppend says whether entries may follow last.
func checkAppend(last uint64, entries []Entry) error {
	for i := range entries {
		e := &entries[i]
		if e.Index != last+1+uint64(i) {
			return fmt.Errorf("logstore: appending entry %d, but the next one is %d", e.Index, last+1+uint64(i))
		}
		if !e.Type.valid() {
			return fmt.Errorf("logstore: appending entry %d of unknown type %d", e.Index, e.Type)
		}
		if len(e.Data) > MaxDataSize {
			return fmt.Errorf("%w: entry %d has %d", ErrTooLarge, e.Index, len(e.Data))
		}
	}
	return nil
}

// checkRange says whether the entries lo..hi-1 are all there.
func checkRange(first, last, lo, hi uint64) error {
	switch {
	case lo >= hi:
		return fmt.Errorf("logstore: empty range %d..%d", lo, hi)
	case lo < first:
		return fmt.Errorf("%w: %d, the first one is %d", ErrCompacted, lo, first)
	case hi > last+1:
		return fmt.Errorf("%w: %d, the last one is %d", ErrUnavailable, hi-1, last)
	}
	return nil
}
