package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
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
	kindSnapshot connKind = 2
	kindCall     connKind = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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
	if h.kind < kindMessages || h.kind > kindCall {
		return hello{}, fmt.Errorf("transport: connection of unknown kind %d", h.kind)
	}
	return h, nil
}

// appendFrame appends the frame of a message to b.
func appendFrame(b []byte, group string, m *pb.Message) ([]byte, error) {
	if len(group) == 0 || len(group) > MaxGroupName {
		return b, fmt.Errorf("transport: a group's name has 1 to %d bytes, not %d", MaxGroupName, len(group))
	}
	start := len(b)
	b = append(b, make([]byte, frameHeader)...)
	b = append(b, byte(len(group)))
	b = append(b, group...)
	body := len(b)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return b[:start], fmt.Errorf("transport: encoding a message: %w", err)
	}
	if n := len(b) - body; n > MaxMessage {
		return b[:start], fmt.Errorf("transport: a message of %d bytes, the limit is %d", n, MaxMessage)
	}
	sealFrame(b[start:])
	return b, nil
}

// sealFrame fills in the header of a frame or chunk.
func sealFrame(f []byte) {
	binary.LittleEndian.PutUint32(f, uint32(len(f)-frameHeader))
	binary.LittleEndian.PutUint32(f[4:], crc32.Checksum(f[frameHeader:], castagnoli))
}

// readFrame reads the body of a frame or chunk of at most limit bytes into buf,
// which it returns grown. It allocates as bytes arrive, not as they are announced.
func readFrame(r io.Reader, buf []byte, limit int) ([]byte, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return buf, err
	}
	n := binary.LittleEndian.Uint32(h[:])
	if uint64(n) > uint64(limit) {
		return buf, fmt.Errorf("%w: %d bytes are announced, the limit is %d", errFrame, n, limit)
	}
	buf = buf[:0]
	for len(buf) < int(n) {
		want := min(int(n)-len(buf), max(64<<10, len(buf)))
		old := len(buf)
		if cap(buf) < old+want {
			buf = append(make([]byte, 0, old+want), buf...)
		}
		buf = buf[:old+want]
		if _, err := io.ReadFull(r, buf[old:]); err != nil {
			return buf[:0], unexpected(err)
		}
	}
	if got, want := crc32.Checksum(buf, castagnoli), binary.LittleEndian.Uint32(h[4:]); got != want {
		return buf, fmt.Errorf("%w: checksum %08x, the bytes have %08x", errFrame, want, got)
	}
	return buf, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decodeFrame decodes the body of a frame. The message does not alias it.
func decodeFrame(b []byte) (group string, m *pb.Message, err error) {
	if len(b) < 1 || int(b[0]) == 0 || int(b[0]) > MaxGroupName || len(b) < 1+int(b[0]) {
		return "", nil, fmt.Errorf("%w: no group", errFrame)
	}
	n := 1 + int(b[0])
	m = &pb.Message{}
	if err := proto.Unmarshal(b[n:], m); err != nil {
		return "", nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	for _, e := range m.GetEntries() {
		if e == nil {
			return "", nil, fmt.Errorf("%w: an entry is missing", errFrame)
		}
	}
	return string(b[1:n]), m, nil
}
