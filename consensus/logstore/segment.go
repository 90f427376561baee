package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A segment file holds a run of records:
//
//	 0  magic     8   "VDERLOG" and the format version, 1
//	 8  seq       8   segments of a log are numbered in the order they were made
//	16  first     8   index of the first entry
//	24  prevTerm  8   term of the entry before the first (0: there is none)
//	32  fresh     1   1: the log starts here, all earlier segments are dead (Reset)
//	33  zeros    27
//	60  crc       4   CRC-32C of bytes 0..59
//	64  records
//
// Its name repeats seq and first and adds a random salt; all three seed the
// checksum of every record, so that bytes which end up in the wrong file, or a
// copy of a log inside a command, are never taken for a record. A segment ends where the next one (by seq)
// starts: entries from that one's first on are dead, which is how the log is
// truncated. A segment whose first is not below a later one's is dead whole.
const (
	segmentMagic    = "VDERLOG\x01"
	segmentHeader   = 64
	segmentHeaderCR = 60
	logSuffix       = ".log"
	indexSuffix     = ".idx"
)

// segment is one segment file. Fields are guarded by FileLogStore.mu, except
// those said to be constant.
type segment struct {
	segmentID        // constant
	prevTerm  uint64 // constant

	// file is open for the active segment and for sealed ones that are not yet
	// synced; nil for the others.
	file vfs.File
	// end is the offset after the last record (or sync mark) of the segment.
	end int64
	// offsets holds where each entry starts, offsets[i] being entry first+i.
	// It is nil once the index file has been written (indexed).
	offsets []uint32
	indexed bool
	// dirty: entries were written to it since the last sync began.
	dirty bool
	// synced: it was synced at least once, so its header and name are durable.
	synced   bool
	uncached int64 // up to here the kernel was asked to forget what it holds; guarded by FileLogStore.syncMu
}

// segmentID is what a segment file's name says.
type segmentID struct {
	seq, first uint64
	salt       uint32
}

func (id segmentID) name() string {
	return fmt.Sprintf("%08d-%016x-%08x", id.seq, id.first, id.salt)
}

// parseSegmentName takes a file name without its suffix apart.
func parseSegmentName(name string) (id segmentID, ok bool) {
	n, err := fmt.Sscanf(name, "%d-%x-%x", &id.seq, &id.first, &id.salt)
	return id, err == nil && n == 3 && id.name() == name && id.first > 0
}

// seed is what the checksums of the segment's records start from.
func (id segmentID) seed() uint32 {
	var b [20]byte
	binary.LittleEndian.PutUint64(b[:], id.seq)
	binary.LittleEndian.PutUint64(b[8:], id.first)
	binary.LittleEndian.PutUint32(b[16:], id.salt)
	return crc32.Checksum(b[:], castagnoli)
}

func encodeSegmentHeader(id segmentID, prevTerm uint64, fresh bool) []byte {
	h := make([]byte, segmentHeader)
	copy(h, segmentMagic)
	binary.LittleEndian.PutUint64(h[8:], id.seq)
	binary.LittleEndian.PutUint64(h[16:], id.first)
	binary.LittleEndian.PutUint64(h[24:], prevTerm)
	if fresh {
		h[32] = 1
	}
	binary.LittleEndian.PutUint32(h[segmentHeaderCR:], crc32.Checksum(h[:segmentHeaderCR], castagnoli))
	return h
}

// errVersion marks a segment that another version of this program wrote.
var errVersion = errors.New("unknown log format")

// decodeSegmentHeader checks the header against what the file's name says.
func decodeSegmentHeader(h []byte, id segmentID) (prevTerm uint64, fresh bool, err error) {
	if len(h) < segmentHeader {
		return 0, false, fmt.Errorf("the file has %d bytes, its header alone takes %d", len(h), segmentHeader)
	}
	if got, want := crc32.Checksum(h[:segmentHeaderCR], castagnoli), binary.LittleEndian.Uint32(h[segmentHeaderCR:]); got != want {
		return 0, false, fmt.Errorf("header checksum %08x, but its bytes have %08x", want, got)
	}
	if string(h[:8]) != segmentMagic {
		if strings.HasPrefix(string(h), segmentMagic[:7]) {
			return 0, false, fmt.Errorf("%w: version %d, this program reads version %d", errVersion, h[7], segmentMagic[7])
		}
		return 0, false, fmt.Errorf("not a log segment (it starts with %q)", h[:8])
	}
	if s, f := binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[16:]); s != id.seq || f != id.first {
		return 0, false, fmt.Errorf("the header is that of segment %d with first entry %d: was the file renamed?", s, f)
	}
	return binary.LittleEndian.Uint64(h[24:]), h[32]&1 != 0, nil
}

// An index file says where each entry of a sealed segment lies:
//
//	 0  magic  8   "VDERIDX" and the format version, 1
//	 8  count  8   entries
//	16  end    8   offset after the segment's last record
//	24  crc    4   CRC-32C of the segment's seed, bytes 0..23 and the offsets
//	28  zeros  4
//	32  offset 8   of entry first, first+1, ...
//
// It is written after its segment was synced, and never synced itself: a
// missing or damaged one is made anew from the segment, and a sound one proves
// that the segment was once durable as a whole.
const (
	indexMagic  = "VDERIDX\x01"
	indexHeader = 32
	indexEntry  = 8
)

func encodeIndex(seed uint32, end int64, offsets []uint32) []byte {
	b := make([]byte, indexHeader+indexEntry*len(offsets))
	copy(b, indexMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(offsets)))
	binary.LittleEndian.PutUint64(b[16:], uint64(end))
	for i, o := range offsets {
		binary.LittleEndian.PutUint64(b[indexHeader+indexEntry*i:], uint64(o))
	}
	binary.LittleEndian.PutUint32(b[24:], indexCRC(seed, b))
	return b
}

func indexCRC(seed uint32, b []byte) uint32 {
	return crc32.Update(crc32.Update(seed, castagnoli, b[:24]), castagnoli, b[indexHeader:])
}

// decodeIndex returns the offsets and the segment's end.
func decodeIndex(b []byte, seed uint32) (end int64, offsets []uint32, err error) {
	if len(b) < indexHeader || string(b[:8]) != indexMagic {
		return 0, nil, fmt.Errorf("not an index file of a log segment")
	}
	if got, want := indexCRC(seed, b), binary.LittleEndian.Uint32(b[24:]); got != want {
		return 0, nil, fmt.Errorf("checksum %08x, but the index has %08x", want, got)
	}
	count, uend := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	if uint64(len(b)-indexHeader) != count*indexEntry || count > uint64(len(b)) || uend > 1<<32 {
		return 0, nil, fmt.Errorf("%d entries in %d bytes", count, len(b))
	}
	offsets = make([]uint32, count)
	prev := uint64(0)
	for i := range offsets {
		o := binary.LittleEndian.Uint64(b[indexHeader+indexEntry*i:])
		if o < max(segmentHeader, prev+1) || o >= uend {
			return 0, nil, fmt.Errorf("entry %d of the index is at %d, after %d and before %d expected", i, o, prev, uend)
		}
		offsets[i], prev = uint32(o), o
	}
	return int64(uend), offsets, nil
}
