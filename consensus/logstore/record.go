package logstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A record, the unit of a segment file. All numbers are little-endian.
//
//	 0  length  4   bytes of the command: 5 + len(payload)
//	 4  term    8
//	12  index   8
//	20  type    1   the command starts here: EntryType
//	21  crc     4   CRC-32C of the segment's seed, bytes 0..20 and the payload
//	25  payload
//
// A length of 0 ends a segment: what was never written reads as zeros. The seed
// (segmentSeed) binds a record to its segment, so that a block which ends up in
// the wrong file is not taken for a record of it.
const (
	recordTermAt    = 4
	recordIndexAt   = 12
	recordTypeAt    = 20
	recordCRCAt     = 21
	recordHeader    = 25 // bytes before the payload
	commandOverhead = recordHeader - recordTypeAt
	maxRecordLength = commandOverhead + MaxDataSize
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// recordSize is the number of bytes of a record with n bytes of payload.
func recordSize(n int) int64 { return recordHeader + int64(n) }

// putRecordHeader writes the header of a record with the given payload to h,
// which has room for recordHeader bytes.
func putRecordHeader(h []byte, seed uint32, typ EntryType, term, index uint64, payload []byte) {
	_ = h[recordHeader-1]
	binary.LittleEndian.PutUint32(h, uint32(commandOverhead+len(payload)))
	binary.LittleEndian.PutUint64(h[recordTermAt:], term)
	binary.LittleEndian.PutUint64(h[recordIndexAt:], index)
	h[recordTypeAt] = byte(typ)
	binary.LittleEndian.PutUint32(h[recordCRCAt:], recordCRC(seed, h, payload))
}

func recordCRC(seed uint32, h, payload []byte) uint32 {
	crc := crc32.Update(seed, castagnoli, h[:recordCRCAt])
	return crc32.Update(crc, castagnoli, payload)
}

// recordState is what decodeRecord found.
type recordState int

const (
	recordOK  recordState = iota
	recordEnd             // a length of zero, or nothing
	recordBad             // anything else
)

// decodeRecord reads the record at the start of b. The entry's Data aliases b;
// size is how many bytes the record has. Nothing is trusted before the
// checksum has been verified; what is wrong with a bad record is in the error.
func decodeRecord(b []byte, seed uint32) (e Entry, size int, state recordState, err error) {
	if len(b) < 4 {
		if len(b) == 0 || allZero(b) {
			return Entry{}, 0, recordEnd, nil
		}
		return Entry{}, 0, recordBad, fmt.Errorf("%d bytes are no record", len(b))
	}
	length := binary.LittleEndian.Uint32(b)
	switch {
	case length == 0:
		return Entry{}, 0, recordEnd, nil
	case length < commandOverhead || length > maxRecordLength:
		return Entry{}, 0, recordBad, fmt.Errorf("a record of %d bytes is out of the range %d..%d", length, commandOverhead, maxRecordLength)
	case int64(length)+recordTypeAt > int64(len(b)):
		return Entry{}, 0, recordBad, fmt.Errorf("a record of %d bytes ends after the file", length)
	}
	size = recordTypeAt + int(length)
	payload := b[recordHeader:size:size]
	want := binary.LittleEndian.Uint32(b[recordCRCAt:])
	if got := recordCRC(seed, b, payload); got != want {
		return Entry{}, 0, recordBad, fmt.Errorf("checksum %08x, but the record's bytes have %08x", want, got)
	}
	e = Entry{
		Index: binary.LittleEndian.Uint64(b[recordIndexAt:]),
		Term:  binary.LittleEndian.Uint64(b[recordTermAt:]),
		Type:  EntryType(b[recordTypeAt]),
		Data:  payload,
	}
	if !e.Type.valid() && e.Type != typeSyncMark {
		return Entry{}, 0, recordBad, fmt.Errorf("record type %d is unknown: written by a newer version?", e.Type)
	}
	return e, size, recordOK, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
