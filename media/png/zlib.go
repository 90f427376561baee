package png

import (
	"encoding/binary"
	"hash/adler32"

	"vdefs/media/deflate"
)

// zlib gives data as a marked zlib stream (RFC 1950) of at most limit bytes,
// or deflate.ErrTooLong.
func (e *encoder) zlib(data []byte, l Level, p deflate.Params, limit int, b *budget) ([]byte, error) {
	const around = 2 + 4 // header and Adler-32
	if limit < around {
		return nil, deflate.ErrTooLong
	}
	out := make([]byte, 0, min(limit, len(data)/4+1024))
	out = append(out, zlibHeader(l)...)
	out, err := e.deflate.AppendMarked(out, data, p, limit-around, b.check)
	if err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint32(out, adler32.Checksum(data)), nil
}

// zlibHeader has a window of 32 KiB and FLEVEL 1 to 3 for Fast to Best.
func zlibHeader(l Level) []byte {
	h := []byte{0x78, byte(l) << 6}
	if over := (uint16(h[0])<<8 | uint16(h[1])) % 31; over > 0 {
		h[1] += byte(31 - over)
	}
	return h
}

// markOf gives the level that a file was re-encoded with; ok is false when
// it bears no mark.
func markOf(f *file) (l Level, ok bool) {
	var head [4]byte
	n := 0
	for _, part := range f.idat {
		n += copy(head[n:], part)
	}
	l = Level(head[1] >> 6)
	return l, n == len(head) && l >= Fast && string(head[:2]) == string(zlibHeader(l)) && deflate.IsMarked(head[2:])
}
