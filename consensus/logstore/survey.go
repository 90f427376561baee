package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Survey is what is left of a log, whole or not.
type Survey struct {
	Segments int // files of segments
	// Last is the highest index that anything in the files speaks of: an entry that can still be read, a note of a sync, a
	// segment that begins behind it. What was cut off since does not count.
	Last uint64
	// LastTerm is the term of the last entry, as far as it can be read.
	LastTerm uint64
	// Term is the highest term of an entry that can still be read.
	Term uint64
	// Next are the entries behind the index that was asked for, as long as one follows the other.
	Next []Entry
}

// Look surveys the log in dir, also one that OpenFile takes for damaged, and changes nothing. It looks for records
// behind damage too, so it reads every byte, and keeps the bytes of all entries behind index after in memory.
func Look(fs vfs.FS, dir string, after uint64) (Survey, error) {
	names, err := fs.List(dir)
	if err != nil {
		return Survey{}, fmt.Errorf("logstore: %w", err)
	}
	slices.Sort(names) // by seq
	var s Survey
	entries := map[uint64]Entry{}
	for _, name := range names {
		base, ok := strings.CutSuffix(name, logSuffix)
		if !ok {
			continue
		}
		id, ok := parseSegmentName(base)
		if !ok {
			continue
		}
		f, err := fs.Open(fs.PathJoin(dir, name))
		if err != nil {
			return Survey{}, fmt.Errorf("logstore: %w", err)
		}
		data, err := readAll(f, nil)
		if err = errors.Join(err, f.Close()); err != nil {
			return Survey{}, fmt.Errorf("logstore: reading %s: %w", name, err)
		}
		s.Segments++
		prevTerm, fresh, err := decodeSegmentHeader(data[:min(len(data), segmentHeader)], id)
		if err == nil && (fresh || id.first <= s.Last) {
			// From here on the segments before it are dead.
			s.Last, s.LastTerm = id.first-1, prevTerm
			for index := range entries {
				if index >= id.first {
					delete(entries, index)
				}
			}
		} else if id.first-1 > s.Last {
			s.Last, s.LastTerm = id.first-1, prevTerm
		}
		eachRecord(data, id, func(e Entry) {
			if e.Index > s.Last {
				s.Last, s.LastTerm = e.Index, e.Term
			}
			s.Term = max(s.Term, e.Term)
			// Of two with one index that of the later segment is the one that counts.
			if e.Type != typeSyncMark && e.Index > after {
				entries[e.Index] = e
			}
		})
	}
	for index := after + 1; ; index++ {
		e, ok := entries[index]
		if !ok {
			return s, nil
		}
		s.Next = append(s.Next, e)
	}
}

// eachRecord calls found for every sound record in a segment's bytes, whatever stands between them.
func eachRecord(data []byte, id segmentID, found func(Entry)) {
	seed := id.seed()
	for at := segmentHeader; at+recordHeader <= len(data); {
		rest := data[at:]
		// The checksum of what cannot be a record is not worth its time.
		length := binary.LittleEndian.Uint32(rest)
		if length >= commandOverhead && length <= maxRecordLength && int64(length)+recordTypeAt <= int64(len(rest)) &&
			(EntryType(rest[recordTypeAt]).valid() || EntryType(rest[recordTypeAt]) == typeSyncMark) {
			if e, size, state, _ := decodeRecord(rest, seed); state == recordOK {
				found(e)
				at += size
				continue
			}
		}
		at++
	}
}
