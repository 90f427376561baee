package vde

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// The stream of a snapshot: a header and records, the last of which is an end record. docs/formats.md draws it. All
// numbers are little-endian; every record is numbered and has a CRC-32C, so that none can be lost, doubled or moved.
//
// header                          record
//
//	0  8  "VDESNAP\n"              0  1  type
//	8  4  version (1)              1  3  zero
//
// 12  4  block size               4  4  number, from 0
// 16  2  slot of the group        8  4  length of the payload
// 18  2  zero                    12  …  payload
// 20  4  CRC-32C of 0 to 19       …  4  CRC-32C of all before, from the type on
const (
	snapMagic      = "VDESNAP\n"
	snapVersion    = 1
	snapHeaderSize = 24
	recHeaderSize  = 12

	recKeys   = 1 // times (key length varint, key, value length varint, value)
	recExtent = 2 // snapExtent
	recData   = 3 // contents of the next blocks of the extent: 32 bytes of bits, 1 = bad (it holds 4 bytes, the checksum it should have), and the blocks
	recEnd    = 4 // keys8 extents8 blocks8: how many of each there were

	dataChunk   = 256                 // blocks in a data record at most
	dataBits    = dataChunk / 8       // bytes in front of them
	keysTarget  = 256 << 10           // bytes from which on a keys record is full
	maxPayload  = 2 << 20             // bytes: any keys record with the largest value in it, or a full data record
	maxKeyLen   = 1 << 10             // bytes
	extentBytes = 4*8 + 1             // payload of an extent record
	endBytes    = 3 * 8               // payload of an end record
	maxFileEnd  = 1<<44/blockSize - 1 // file blocks of the largest file
)

// extentKind says what follows an extent record.
type extentKind uint8

const (
	extentData      extentKind = iota // the contents
	extentZero                        // nothing: it is allocated and not written
	extentFirst                       // the contents, of blocks that later extents map too, by their source
	extentReference                   // nothing: the contents came before, by source
	extentKinds
)

// snapExtent is an extent of a file as the stream has it. source is the first block it has in the sender's image, for
// extentFirst and extentReference; nothing but equality is meant by it.
//
//	0 8 inode   8 8 file block   16 8 count   24 8 source   32 1 kind
type snapExtent struct {
	ino              meta.Ino
	fileBlock, count uint64
	source           uint64
	kind             extentKind
}

func (x snapExtent) encode() []byte {
	b := make([]byte, 0, extentBytes)
	for _, v := range [...]uint64{uint64(x.ino), x.fileBlock, x.count, x.source} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return append(b, byte(x.kind))
}

// ErrSnapshot marks a stream that is not a whole snapshot that this program can read.
var ErrSnapshot = errors.New("unusable snapshot")

// appendHeader appends the header of a stream.
func appendHeader(b []byte, slot uint16) []byte {
	b = append(b, snapMagic...)
	b = binary.LittleEndian.AppendUint32(b, snapVersion)
	b = binary.LittleEndian.AppendUint32(b, blockSize)
	b = binary.LittleEndian.AppendUint16(b, slot)
	b = binary.LittleEndian.AppendUint16(b, 0)
	return binary.LittleEndian.AppendUint32(b, layout.CRC(b))
}

// beginRecord appends a record's header; the payload follows, then endRecord.
func beginRecord(b []byte, typ byte, number uint32) []byte {
	b = append(b, typ, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, number)
	return append(b, 0, 0, 0, 0)
}

// endRecord completes the record in b, which holds nothing else.
func endRecord(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-recHeaderSize))
	return binary.LittleEndian.AppendUint32(b, layout.CRC(b))
}

// streamReader decodes a stream and holds it to its rules: extents in order, data for those that have some, counts in
// the end record. It trusts no length.
type streamReader struct {
	r      io.Reader
	slot   uint16
	number uint32
	buf    []byte

	keys, extents, blocks uint64
	state                 meta.Group // as the stream has it
	known                 bool       // state came
	last                  snapExtent // the last extent
	due                   uint64     // blocks of it whose contents are still to come
}

// handler is told what a stream holds. Slices are valid during the call.
type handler interface {
	key(k meta.Key, key, value []byte) error
	extent(x snapExtent) error
	// data are contents of the next blocks of the last extent; bad tells which of them are to be unreadable.
	data(blocks []byte, bad func(i int) bool) error
}

func newStreamReader(r io.Reader, slot uint16) (*streamReader, error) {
	var h [snapHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, fmt.Errorf("%w: its header: %w", ErrSnapshot, cutOff(err))
	}
	le := binary.LittleEndian
	switch version, size, of := le.Uint32(h[8:]), le.Uint32(h[12:]), le.Uint16(h[16:]); {
	case !bytes.Equal(h[:8], []byte(snapMagic)):
		return nil, fmt.Errorf("%w: it does not begin as one (%x)", ErrSnapshot, h[:8])
	case layout.CRC(h[:20]) != le.Uint32(h[20:]):
		return nil, fmt.Errorf("%w: checksum of its header", ErrSnapshot)
	case version != snapVersion:
		return nil, fmt.Errorf("%w: it has version %d, this program reads version %d", ErrSnapshot, version, snapVersion)
	case size != blockSize:
		return nil, fmt.Errorf("%w: it has blocks of %d bytes, this store of %d", ErrSnapshot, size, blockSize)
	case of != slot:
		return nil, fmt.Errorf("%w: it is of group %d, not of %d", ErrSnapshot, of, slot)
	}
	return &streamReader{r: r, slot: slot}, nil
}

// cutOff makes the end of a stream where more was due an error of its own.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// run reads all records up to the end record and tells h of them.
func (s *streamReader) run(h handler) error {
	for {
		typ, payload, err := s.record()
		if err == nil && typ == recEnd {
			return s.end(payload)
		}
		if err == nil {
			err = s.handle(h, typ, payload)
		}
		if err != nil {
			return err
		}
	}
}

func (s *streamReader) bad(format string, args ...any) error {
	return fmt.Errorf("%w: record %d: %w", ErrSnapshot, s.number-1, fmt.Errorf(format, args...))
}

// record reads a record; the payload is valid until the next call.
func (s *streamReader) record() (byte, []byte, error) {
	s.number++ // so that bad names this one
	var h [recHeaderSize]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		return 0, nil, s.bad("%w", cutOff(err))
	}
	n := binary.LittleEndian.Uint32(h[8:])
	if n > maxPayload {
		return 0, nil, s.bad("%d bytes, at most %d are possible", n, maxPayload)
	}
	need := recHeaderSize + int(n) + 4
	if cap(s.buf) < need {
		s.buf = make([]byte, need)
	}
	b := s.buf[:need]
	copy(b, h[:])
	if _, err := io.ReadFull(s.r, b[recHeaderSize:]); err != nil {
		return 0, nil, s.bad("%w", cutOff(err))
	}
	if got, want := layout.CRC(b[:need-4]), binary.LittleEndian.Uint32(b[need-4:]); got != want {
		return 0, nil, s.bad("checksum %08x, expected %08x", got, want)
	}
	if got := binary.LittleEndian.Uint32(b[4:]); got != s.number-1 {
		return 0, nil, s.bad("it says that it is record %d", got)
	}
	return b[0], b[recHeaderSize : need-4], nil
}

func (s *streamReader) handle(h handler, typ byte, p []byte) error {
	if s.due > 0 && typ != recData {
		return s.bad("%d blocks of inode %d are missing before it", s.due, s.last.ino)
	}
	switch typ {
	case recKeys:
		return s.handleKeys(h, p)
	case recExtent:
		return s.handleExtent(h, p)
	case recData:
		return s.handleData(h, p)
	}
	return s.bad("type %d is not known", typ)
}

// take cuts a slice with its length in front off p.
func take(p []byte, most uint64) (item, rest []byte, ok bool) {
	n, used := binary.Uvarint(p)
	if used <= 0 || n > most || n > uint64(len(p)-used) {
		return nil, nil, false
	}
	return p[used : used+int(n)], p[used+int(n):], true
}

func (s *streamReader) handleKeys(h handler, p []byte) error {
	if s.extents > 0 {
		return s.bad("keys behind extents")
	}
	for len(p) > 0 {
		key, rest, ok := take(p, maxKeyLen)
		var value []byte
		if ok {
			value, rest, ok = take(rest, maxPayload)
		}
		if !ok || len(key) < 3 {
			return s.bad("keys are cut off")
		}
		p = rest
		s.keys++
		if meta.IsGroupState(s.slot, key) {
			g, err := meta.DecodeGroup(s.slot, value)
			if err != nil {
				return s.bad("%w", err)
			}
			s.state, s.known = g, true
			continue
		}
		k, err := meta.CheckKey(s.slot, key, value)
		if err != nil {
			return s.bad("%w", err)
		}
		if err := h.key(k, key, value); err != nil {
			return err
		}
	}
	return nil
}

func (s *streamReader) handleExtent(h handler, p []byte) error {
	if len(p) != extentBytes {
		return s.bad("an extent of %d bytes, expected %d", len(p), extentBytes)
	}
	le := binary.LittleEndian
	x := snapExtent{meta.Ino(le.Uint64(p)), le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]), extentKind(p[32])}
	l := s.last
	switch {
	case x.kind >= extentKinds || x.ino.Group() != s.slot || x.count == 0 || x.count > maxFileEnd || x.fileBlock > maxFileEnd-x.count ||
		x.source+x.count < x.source:
		return s.bad("extent %+v cannot be", x)
	case s.extents > 0 && (x.ino < l.ino || x.ino == l.ino && x.fileBlock < l.fileBlock+l.count):
		return s.bad("extent %+v does not follow %+v", x, l)
	}
	s.extents++
	s.last = x
	if x.kind == extentData || x.kind == extentFirst {
		s.due = x.count
	}
	return h.extent(x)
}

func (s *streamReader) handleData(h handler, p []byte) error {
	if len(p) <= dataBits || (len(p)-dataBits)%blockSize != 0 || (len(p)-dataBits)/blockSize > dataChunk {
		return s.bad("contents of %d bytes are not of 1 to %d blocks", len(p), dataChunk)
	}
	n := uint64(len(p)-dataBits) / blockSize
	if n > s.due {
		return s.bad("%d blocks, of inode %d only %d are missing", n, s.last.ino, s.due)
	}
	s.due -= n
	s.blocks += n
	bits := p[:dataBits]
	return h.data(p[dataBits:], func(i int) bool { return bits[i/8]>>(i%8)&1 != 0 })
}

func (s *streamReader) end(p []byte) error {
	if s.due > 0 {
		return s.bad("%d blocks of inode %d are missing at the end", s.due, s.last.ino)
	}
	if len(p) != endBytes {
		return s.bad("an end of %d bytes, expected %d", len(p), endBytes)
	}
	le := binary.LittleEndian
	if k, x, b := le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]); k != s.keys || x != s.extents || b != s.blocks {
		return s.bad("it ends with %d keys, %d extents and %d blocks, %d, %d and %d came", k, x, b, s.keys, s.extents, s.blocks)
	}
	if !s.known {
		return s.bad("the state of the group is missing")
	}
	return nil
}
