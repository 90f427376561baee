package deflate

import "encoding/binary"

// bitWriter appends bits to a byte slice, the lowest first.
type bitWriter struct {
	out []byte
	acc uint64
	n   uint // bits in acc: below 8 between calls of put
}

// put writes the low n bits of v; the others are 0. n is at most 32.
func (w *bitWriter) put(v uint64, n uint) {
	w.acc |= v << w.n
	w.n += n
	for w.n >= 32 {
		w.out = binary.LittleEndian.AppendUint32(w.out, uint32(w.acc))
		w.acc >>= 32
		w.n -= 32
	}
}

// align fills the last byte with zeros.
func (w *bitWriter) align() {
	for ; w.n > 0; w.n -= min(w.n, 8) {
		w.out = append(w.out, byte(w.acc))
		w.acc >>= 8
	}
}

// Block types (3.2.3).
const (
	typeStored = iota
	typeFixed
	typeDynamic
)

// header begins a block.
func (w *bitWriter) header(kind int, final bool) {
	v := uint64(kind) << 1
	if final {
		v |= 1
	}
	w.put(v, 3)
}

// stored writes data in blocks without compression.
func (w *bitWriter) stored(data []byte, final bool) {
	for {
		part := data[:min(len(data), maxStored)]
		data = data[len(part):]
		w.header(typeStored, final && len(data) == 0)
		w.align()
		w.out = binary.LittleEndian.AppendUint16(w.out, uint16(len(part)))
		w.out = binary.LittleEndian.AppendUint16(w.out, ^uint16(len(part)))
		w.out = append(w.out, part...)
		if len(data) == 0 {
			return
		}
	}
}

// storedBits is an upper bound of what stored writes.
func storedBits(n int) uint64 {
	return uint64(n)*8 + uint64(max(1, (n+maxStored-1)/maxStored))*(3+7+32)
}

// symbols writes the sequence of a block and its end.
func (w *bitWriter) symbols(c *chunk, from, to int, k *codes) {
	for i := from; i < to; {
		s := c.steps[i]
		if s == literal {
			b := c.src[c.start+i]
			w.put(uint64(k.literal[b]), uint(k.literalBits[b]))
			i++
			continue
		}
		l := s.length()
		ls := uint(lengthSlot[l])
		v := uint64(k.literal[firstLength+ls])
		n := uint(k.literalBits[firstLength+ls])
		v |= uint64(l-int(lengthBase[ls])) << n
		n += uint(lengthExtra[ls])
		w.put(v, n) // at most 15+5 bits
		ds := s.slot()
		v = uint64(k.distance[ds])
		n = uint(k.distanceBits[ds])
		v |= uint64(s.distance()-uint32(distanceBase[ds])) << n
		n += uint(distanceExtra[ds])
		w.put(v, n) // at most 15+13 bits
		i += l
	}
	w.put(uint64(k.literal[endOfBlock]), uint(k.literalBits[endOfBlock]))
}

// codes are the two codes of a block.
type codes struct {
	literal      [fixedCodes]uint16
	distance     [distanceCodes]uint16
	literalBits  [fixedCodes]uint8
	distanceBits [distanceCodes]uint8
}

// fixed is the fixed code (3.2.6).
var fixed = makeFixed()

func makeFixed() *codes {
	k := new(codes)
	for s := range k.literalBits {
		k.literalBits[s] = uint8(fixedBits(s))
	}
	for s := range k.distanceBits {
		k.distanceBits[s] = 5
	}
	canonical(k.literal[:], k.literalBits[:])
	canonical(k.distance[:], k.distanceBits[:])
	return k
}

// bits is the length of a block's symbols with these codes.
func (k *codes) bits(h *histogram) uint64 {
	var n uint64
	for s, count := range h.literal {
		n += uint64(count) * uint64(k.literalBits[s])
	}
	for s, count := range h.literal[firstLength:] {
		n += uint64(count) * uint64(lengthExtra[s])
	}
	for s, count := range h.distance {
		n += uint64(count) * uint64(k.distanceBits[s]+distanceExtra[s])
	}
	return n
}
