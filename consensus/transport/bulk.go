package transport

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// What entries hold is most of what is sent. The library copies it once to encode a
// message and once to decode it; here the entries are taken apart by hand, so that data
// goes out from where it lies and stays where it arrived. The bytes are the library's:
// FuzzMessage holds one against the other.

const (
	// directData is from how many bytes an entry's data is written from where it lies.
	directData = 4 << 10
	// aliasFrom is from how many bytes a frame gets memory of its own, which the entries
	// that come with it refer to.
	aliasFrom = 16 << 10
)

// Numbers of fields in raft.proto.
const (
	fieldEntries    = 7 // of Message
	fieldEntryType  = 1
	fieldEntryTerm  = 2
	fieldEntryIndex = 3
	fieldEntryData  = 4
)

// frameWriter writes the frames of messages. Its buffers are used again and again.
type frameWriter struct {
	head   []byte   // everything but the data that lies elsewhere
	cuts   []int    // data[i] comes after head[:cuts[i]]
	data   [][]byte // of entries
	pieces [][]byte
}

// encode returns the frame of a message in pieces, which are valid until the next call
// and refer to the data of the message's entries.
func (w *frameWriter) encode(group string, m *pb.Message) ([][]byte, error) {
	clear(w.data)
	w.cuts, w.data, w.pieces = w.cuts[:0], w.data[:0], w.pieces[:0]
	b, err := beginFrame(w.head[:0], group)
	if err != nil {
		return nil, err
	}
	rest := m
	if len(m.GetEntries()) > 0 {
		rest = &pb.Message{
			Type: m.Type, To: m.To, From: m.From, Term: m.Term, LogTerm: m.LogTerm, Index: m.Index, Commit: m.Commit, Vote: m.Vote,
			Snapshot: m.Snapshot, Reject: m.Reject, RejectHint: m.RejectHint, Context: m.Context, Responses: m.Responses,
		}
	}
	if b, err = (proto.MarshalOptions{}).MarshalAppend(b, rest); err != nil {
		return nil, fmt.Errorf("transport: encoding a message: %w", err)
	}
	for _, e := range m.GetEntries() {
		b = w.entry(b, e)
	}
	w.head = b
	size := len(b) - frameHeader
	from := 0
	for i, cut := range w.cuts {
		w.pieces = append(w.pieces, b[from:cut], w.data[i])
		from = cut
		size += len(w.data[i])
	}
	w.pieces = append(w.pieces, b[from:])
	if n := size - 1 - len(group); n > MaxMessage {
		return nil, fmt.Errorf("transport: a message of %d bytes, the limit is %d", n, MaxMessage)
	}
	crc := crc32.Checksum(w.pieces[0][frameHeader:], castagnoli)
	for _, p := range w.pieces[1:] {
		crc = crc32.Update(crc, castagnoli, p)
	}
	binary.LittleEndian.PutUint32(b, uint32(size))
	binary.LittleEndian.PutUint32(b[4:], crc)
	return w.pieces, nil
}

// entry appends an entry of a message to b, but for its data if that is long.
func (w *frameWriter) entry(b []byte, e *pb.Entry) []byte {
	number := func(b []byte, field protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
	}
	var room [48]byte
	h := room[:0]
	if e.Type != nil {
		h = number(h, fieldEntryType, uint64(e.GetType()))
	}
	if e.Term != nil {
		h = number(h, fieldEntryTerm, e.GetTerm())
	}
	if e.Index != nil {
		h = number(h, fieldEntryIndex, e.GetIndex())
	}
	if e.Data != nil {
		h = protowire.AppendTag(h, fieldEntryData, protowire.BytesType)
		h = protowire.AppendVarint(h, uint64(len(e.Data)))
	}
	b = protowire.AppendTag(b, fieldEntries, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(h)+len(e.Data)))
	b = append(b, h...)
	if len(e.Data) < directData {
		return append(b, e.Data...)
	}
	w.cuts = append(w.cuts, len(b))
	w.data = append(w.data, e.Data)
	return b
}

// writeTo writes the frame of a message.
func (w *frameWriter) writeTo(to io.Writer, group string, m *pb.Message) error {
	pieces, err := w.encode(group, m)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	for _, p := range pieces {
		if _, err := to.Write(p); err != nil {
			return err
		}
	}
	if cap(w.head) > 4<<20 {
		w.head = nil
	}
	return nil
}

// decodeMessage decodes a message. With alias the data of its entries is part of b.
func decodeMessage(b []byte, alias bool) (*pb.Message, error) {
	var entries []*pb.Entry
	var rest []byte // the other fields
	for len(b) > 0 {
		field, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return nil, fmt.Errorf("%w: %w", errFrame, protowire.ParseError(tag))
		}
		n := protowire.ConsumeFieldValue(field, typ, b[tag:])
		if n < 0 {
			return nil, fmt.Errorf("%w: %w", errFrame, protowire.ParseError(n))
		}
		if field == fieldEntries && typ == protowire.BytesType {
			body, _ := protowire.ConsumeBytes(b[tag:])
			e, err := decodeEntry(body, alias)
			if err != nil {
				return nil, err
			}
			entries = append(entries, e)
		} else {
			rest = append(rest, b[:tag+n]...)
		}
		b = b[tag+n:]
	}
	m := &pb.Message{}
	if err := proto.Unmarshal(rest, m); err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	m.Entries = entries
	return m, nil
}

// entryBox is an entry with room for its numbers, to be allocated at once.
type entryBox struct {
	e           pb.Entry
	term, index uint64
}

func decodeEntry(b []byte, alias bool) (*pb.Entry, error) {
	box := &entryBox{}
	e := &box.e
	for len(b) > 0 {
		field, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return nil, fmt.Errorf("%w: an entry: %w", errFrame, protowire.ParseError(tag))
		}
		n := protowire.ConsumeFieldValue(field, typ, b[tag:])
		if n < 0 {
			return nil, fmt.Errorf("%w: an entry: %w", errFrame, protowire.ParseError(n))
		}
		value := b[tag : tag+n]
		b = b[tag+n:]
		if typ == protowire.BytesType && field == fieldEntryData {
			data, _ := protowire.ConsumeBytes(value)
			if alias {
				e.Data = data[:len(data):len(data)]
			} else {
				e.Data = append([]byte{}, data...)
			}
		}
		if typ != protowire.VarintType {
			continue
		}
		v, _ := protowire.ConsumeVarint(value)
		switch field {
		case fieldEntryType:
			e.Type = pb.EntryType(int32(v)).Enum()
		case fieldEntryTerm:
			box.term = v
			e.Term = &box.term
		case fieldEntryIndex:
			box.index = v
			e.Index = &box.index
		}
	}
	return e, nil
}
