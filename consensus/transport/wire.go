package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	pb "go.etcd.io/raft/v3/raftpb"
)

// The bytes are drawn in WIRE.md. All numbers are little-endian.
const (
	wireMagic   = "VDERAFT"
	wireVersion = 1

	helloSize   = 48 // of a hello, with its checksum
	frameHeader = 8  // length and checksum of a frame or chunk
	// maxFrame is the largest length in a frame's header.
	maxFrame = 1 + MaxGroupName + MaxMessage
	// snapshotChunk is the largest piece of a snapshot.
	snapshotChunk = 256 << 10
	// maxReason bounds the text of a refusal.
	maxReason = 1 << 10
)

// connKind says what a connection is for.
type connKind uint8

const (
	kindMessages connKind = 1
	// 2 was a snapshot that could not go on over another connection.
	kindCall     connKind = 3
	kindSnapshot connKind = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errNotSent marks a message of which nothing was written.
var errNotSent = errors.New("transport: the message cannot be sent")

// errFrame marks bytes that no sound peer sends: the connection ends.
var errFrame = errors.New("transport: damaged frame")

// hello is the first thing on a connection, from the one that made it.
type hello struct {
	kind     connKind
	cluster  [16]byte
	from, to uint64
}

func (h hello) encode() []byte {
	b := make([]byte, helloSize)
	copy(b, wireMagic)
	b[7] = wireVersion
	b[8] = byte(h.kind)
	copy(b[12:], h.cluster[:])
	binary.LittleEndian.PutUint64(b[28:], h.from)
	binary.LittleEndian.PutUint64(b[36:], h.to)
	binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
	return b
}

func decodeHello(b []byte) (hello, error) {
	if len(b) < helloSize || string(b[:7]) != wireMagic {
		return hello{}, errors.New("transport: the other side speaks another protocol")
	}
	if b[7] != wireVersion {
		return hello{}, fmt.Errorf("transport: the other side speaks version %d of the protocol, this one %d", b[7], wireVersion)
	}
	if crc32.Checksum(b[:44], castagnoli) != binary.LittleEndian.Uint32(b[44:]) {
		return hello{}, fmt.Errorf("%w: hello", errFrame)
	}
	h := hello{kind: connKind(b[8]), from: binary.LittleEndian.Uint64(b[28:]), to: binary.LittleEndian.Uint64(b[36:])}
	copy(h.cluster[:], b[12:])
	if h.kind != kindMessages && h.kind != kindCall && h.kind != kindSnapshot {
		return hello{}, fmt.Errorf("transport: connection of unknown kind %d", h.kind)
	}
	return h, nil
}

// beginFrame appends what precedes the message in a frame; the header is left empty.
func beginFrame(b []byte, group string) ([]byte, error) {
	if len(group) == 0 || len(group) > MaxGroupName {
		return b, fmt.Errorf("transport: a group's name has 1 to %d bytes, not %d", MaxGroupName, len(group))
	}
	b = append(b, make([]byte, frameHeader)...)
	b = append(b, byte(len(group)))
	return append(b, group...), nil
}

// sealFrame fills in the header of a frame or chunk.
func sealFrame(f []byte) {
	binary.LittleEndian.PutUint32(f, uint32(len(f)-frameHeader))
	binary.LittleEndian.PutUint32(f[4:], crc32.Checksum(f[frameHeader:], castagnoli))
}

// readFrame reads the body of a frame or chunk of at most limit bytes into buf,
// which it returns grown.
func readFrame(r io.Reader, buf []byte, limit int) ([]byte, error) {
	n, crc, err := readHeader(r, limit)
	if err != nil {
		return buf, err
	}
	return readBody(r, buf, n, crc)
}

// readHeader reads the header of a frame or chunk of at most limit bytes.
func readHeader(r io.Reader, limit int) (n int, crc uint32, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, err
	}
	size := binary.LittleEndian.Uint32(h[:])
	if uint64(size) > uint64(limit) {
		return 0, 0, fmt.Errorf("%w: %d bytes are announced, the limit is %d", errFrame, size, limit)
	}
	return int(size), binary.LittleEndian.Uint32(h[4:]), nil
}

// readStep is how much memory a frame gets on trust.
const readStep = 2 << 20

// readBody reads the n bytes behind a header into buf, which it returns grown. It
// allocates as bytes arrive, not as they are announced, but for the first readStep.
func readBody(r io.Reader, buf []byte, n int, crc uint32) ([]byte, error) {
	buf = buf[:0]
	for len(buf) < n {
		want := min(n-len(buf), max(readStep, len(buf)))
		old := len(buf)
		if cap(buf) < old+want {
			buf = append(make([]byte, 0, old+want), buf...)
		}
		buf = buf[:old+want]
		if _, err := io.ReadFull(r, buf[old:]); err != nil {
			return buf[:0], unexpected(err)
		}
	}
	if got := crc32.Checksum(buf, castagnoli); got != crc {
		return buf, fmt.Errorf("%w: checksum %08x, the bytes have %08x", errFrame, crc, got)
	}
	return buf, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decodeFrame decodes the body of a frame. With alias the data of the message's entries
// is part of b, without it nothing is.
func decodeFrame(b []byte, alias bool) (group string, m *pb.Message, err error) {
	if len(b) < 1 || int(b[0]) == 0 || int(b[0]) > MaxGroupName || len(b) < 1+int(b[0]) {
		return "", nil, fmt.Errorf("%w: no group", errFrame)
	}
	n := 1 + int(b[0])
	if m, err = decodeMessage(b[n:], alias); err != nil {
		return "", nil, err
	}
	return string(b[1:n]), m, nil
}
