package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/consensus/transport"
)

// A part is a file with what has arrived of a snapshot, until that is installed. It
// outlives the process, so that the sender can go on behind what is there; it is no part
// of the group's state, and whatever is wrong with it, it is only sent again. It is never
// synced: a machine that has to start takes longer than a sender waits.
//
//	 0  magic     8   "VDEPART" and the format version, 1
//	 8  identity 16   of the snapshot, see transport.Resumable
//	24  index     8   of the last entry that the snapshot holds
//	32  term      8
//	40  crc       4   CRC-32C of everything before it
//
// and then a record for each chunk, in order:
//
//	0  length    4   1 to 256 KiB
//	4  crc       4   CRC-32C of data
//	8  data
//
// All numbers are little-endian. Where a record is damaged or cut off, the part ends
// before it; what is behind will be written over. As a snapshot is cut into the same
// chunks whenever it is sent, a record always has the place that it had.
const (
	partMagic  = "VDEPART\x01"
	partHeader = 44
	partRecord = 8 // of a record, before its data
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errPart marks a part that cannot be used.
var errPart = fmt.Errorf("%w: the part of a snapshot", ErrCorrupt)

// partID says what a part is of.
type partID struct {
	identity    [transport.SnapshotIDSize]byte // all zeros: the sender cannot go on with it
	index, term uint64
}

// resumable tells whether the sender can go on behind what is there.
func (id partID) resumable() bool { return id.identity != [transport.SnapshotIDSize]byte{} }

func (id partID) encode() []byte {
	b := append(make([]byte, 0, partHeader), partMagic...)
	b = append(b, id.identity[:]...)
	b = binary.LittleEndian.AppendUint64(b, id.index)
	b = binary.LittleEndian.AppendUint64(b, id.term)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodePartID(b []byte) (partID, error) {
	switch {
	case len(b) != partHeader || string(b[:len(partMagic)]) != partMagic:
		return partID{}, fmt.Errorf("%w begins with other bytes", errPart)
	case binary.LittleEndian.Uint32(b[partHeader-4:]) != crc32.Checksum(b[:partHeader-4], castagnoli):
		return partID{}, fmt.Errorf("%w has a header with a wrong checksum", errPart)
	}
	return partID{
		identity: [transport.SnapshotIDSize]byte(b[8:]),
		index:    binary.LittleEndian.Uint64(b[24:]),
		term:     binary.LittleEndian.Uint64(b[32:]),
	}, nil
}

// readPartID reads the header of a part.
func readPartID(fs vfs.FS, path string) (partID, error) {
	f, err := fs.Open(path)
	if err != nil {
		return partID{}, err
	}
	b := make([]byte, partHeader)
	_, err = io.ReadFull(f, b)
	if err = errors.Join(err, f.Close()); err != nil {
		return partID{}, err
	}
	return decodePartID(b)
}

// readRecord reads the record at a place of a part into buf, which it returns grown; its
// data is behind the first partRecord bytes. io.EOF means that there is no record,
// an error that wraps errPart that there is none that is whole.
func readRecord(f io.ReaderAt, at int64, buf []byte) ([]byte, error) {
	if cap(buf) < partRecord {
		buf = make([]byte, partRecord, partRecord+transport.SnapshotChunk)
	}
	buf = buf[:partRecord]
	if n, err := f.ReadAt(buf, at); n < len(buf) {
		if err == io.EOF && n > 0 {
			return buf, fmt.Errorf("%w ends within the record at %d", errPart, at)
		}
		return buf, err
	}
	length, crc := binary.LittleEndian.Uint32(buf), binary.LittleEndian.Uint32(buf[4:])
	if length == 0 || length > transport.SnapshotChunk {
		return buf, fmt.Errorf("%w has a record of %d bytes at %d", errPart, length, at)
	}
	if need := partRecord + int(length); cap(buf) < need {
		buf = append(make([]byte, 0, need), buf...)
	}
	buf = buf[:partRecord+length]
	if n, err := f.ReadAt(buf[partRecord:], at+partRecord); n < int(length) {
		if err == io.EOF {
			return buf, fmt.Errorf("%w ends within the record at %d", errPart, at)
		}
		return buf, err
	}
	if got := crc32.Checksum(buf[partRecord:], castagnoli); got != crc {
		return buf, fmt.Errorf("%w has a record at %d with checksum %08x, its bytes have %08x", errPart, at, crc, got)
	}
	return buf, nil
}

// part is a part that is being written or is complete.
type part struct {
	id   partID
	path string
	end  int64  // place of the next record
	size int64  // bytes of the snapshot before it
	crc  uint32 // of these
}

// scan finds out what a part that was opened holds. goOn is asked before each record.
func (p *part) scan(f io.ReaderAt, goOn func() error) error {
	p.end, p.size, p.crc = partHeader, 0, 0
	var buf []byte
	for {
		if err := goOn(); err != nil {
			return err
		}
		var err error
		buf, err = readRecord(f, p.end, buf)
		if err == io.EOF || errors.Is(err, errPart) {
			return nil
		}
		if err != nil {
			return err
		}
		p.added(buf)
	}
}

// begin writes the header.
func (p *part) begin(f io.WriterAt) error {
	p.end = partHeader
	_, err := f.WriteAt(p.id.encode(), 0)
	return err
}

// add writes data, which is behind the first partRecord bytes of rec, as the next record.
func (p *part) add(f io.WriterAt, rec []byte) error {
	binary.LittleEndian.PutUint32(rec, uint32(len(rec)-partRecord))
	binary.LittleEndian.PutUint32(rec[4:], crc32.Checksum(rec[partRecord:], castagnoli))
	if _, err := f.WriteAt(rec, p.end); err != nil {
		return err
	}
	p.added(rec)
	return nil
}

func (p *part) added(rec []byte) {
	p.end += int64(len(rec))
	p.size += int64(len(rec) - partRecord)
	p.crc = crc32.Update(p.crc, castagnoli, rec[partRecord:])
}

// partReader reads the snapshot out of a part that is complete.
type partReader struct {
	f    io.ReaderAt
	at   int64 // of the next record
	left int64 // bytes of the snapshot behind rest
	buf  []byte
	rest []byte // of buf
}

func (p *part) reader(f io.ReaderAt) *partReader {
	return &partReader{f: f, at: partHeader, left: p.size}
}

func (r *partReader) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		var err error
		r.buf, err = readRecord(r.f, r.at, r.buf)
		if err == io.EOF {
			err = fmt.Errorf("%w lacks %d bytes: %w", errPart, r.left, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return 0, err
		}
		r.at += int64(len(r.buf))
		r.rest = r.buf[partRecord:]
		r.left -= int64(len(r.rest))
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
