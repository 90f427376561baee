package transport

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

// A snapshot is sent over a connection of its own. When that breaks, the sender makes
// another one and the receiver says from which byte to go on; to its Handler it is one
// stream that paused. The sender's data cannot be read twice: what may be on its way it
// keeps, and what is older the receiver has, or the snapshot has failed.
//
// So it is when the receiver was started anew in the middle of it: what its Handler has
// kept (Resumable) is what it has.

// Resumable is what a TCP transport hands to ReceiveSnapshot as data, for a Handler that
// keeps what arrives: it may have a part of the snapshot from before its process was
// started anew. The snapshot has not been taken, and the sender may come again with it,
// if ReceiveSnapshot fails before it has called Read or GoOn.
type Resumable interface {
	// Read returns at most one chunk, and a whole one where p has room for SnapshotChunk
	// bytes.
	io.Reader
	// Identity names the snapshot: whatever comes from a Resumable of the same identity are
	// bytes of the same sequence.
	Identity() [SnapshotIDSize]byte
	// GoOn says that the first n bytes are there, with the CRC-32C crc. Read then returns
	// what follows. It is called before Read or not at all. n is where a chunk ended. That
	// the sender has other bytes is noticed at the end, where Read then fails.
	GoOn(n int64, crc uint32)
}

const (
	// SnapshotIDSize is the size of a snapshot's identity, in bytes.
	SnapshotIDSize = 16
	// SnapshotChunk is the largest piece that a snapshot is sent in, in bytes.
	SnapshotChunk = snapshotChunk
	// keptChunks is how many chunks a sender keeps, more than snapshotBuffer on both sides
	// can hold: the kernel doubles what it is told.
	keptChunks     = 48
	snapshotBuffer = 2 << 20 // of the sockets, in bytes
	// resumePatience is how long a receiver waits for a sender to come back, and how long
	// it remembers how a snapshot ended; also how long a sender tries to get further. A
	// node takes some seconds to be started again.
	resumePatience = 30 * time.Second
	maxArriving    = 1024 // snapshots, those of the last resumePatience included
	// positionTimeout is how long a receiver may take to look at what it has kept.
	positionTimeout = 6 * ioTimeout

	trailerSize = 13
	positionLen = 9
)

// How a stream of chunks ends.
const (
	streamWhole   = 0
	streamGivenUp = 1 // the sender cannot read on
)

// The first byte of an answer to the message of a snapshot.
const (
	goOn    = 0 // from the byte that follows
	settled = 1 // the snapshot has arrived before; what follows is the outcome, as at the end
	notNow  = 2 // nobody took it; what follows is why, as at the end
)

var (
	// errTooOld ends a snapshot of which the receiver lacks more than the sender kept.
	errTooOld = errors.New("transport: the receiver lacks bytes that the sender has no more")
	// errNotNow is beside ErrRefused where the snapshot was not taken: it can be sent again.
	errNotNow = errors.New("transport: the peer takes no snapshot now")
	// errGivenUp is what the receiver's Handler reads when the sender cannot go on.
	errGivenUp = errors.New("transport: the sender has given up")
)

// outgoingSnapshot is a snapshot as its sender reads it.
//
// Invariant: kept holds the chunks from kept[0].at to total without a gap, each sealed.
type outgoingSnapshot struct {
	data  io.Reader
	there int64  // bytes that the receiver has said it has
	total int64  // bytes read
	crc   uint32 // of these
	kept  []keptChunk
	spare []byte // buffer of a frame
	eof   bool
	err   error // of data
}

type keptChunk struct {
	at    int64
	frame []byte
}

// chunk returns the frame of the chunk that starts at a byte, nil behind the last one.
func (s *outgoingSnapshot) chunk(at int64) ([]byte, error) {
	for i := range s.kept {
		if s.kept[i].at == at {
			return s.kept[i].frame, nil
		}
	}
	switch {
	case at != s.total:
		return nil, fmt.Errorf("%w: it goes on at byte %d of %d", errTooOld, at, s.total)
	case s.err != nil:
		return nil, s.err
	case s.eof:
		return nil, nil
	}
	frame := s.spare
	s.spare = nil
	if frame == nil {
		frame = make([]byte, frameHeader+snapshotChunk)
	}
	n, err := io.ReadFull(s.data, frame[frameHeader:])
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		s.eof = true
	case err != nil:
		s.err = err
		return nil, err
	}
	if n == 0 {
		return nil, nil
	}
	frame = frame[:frameHeader+n]
	sealFrame(frame)
	if len(s.kept) == keptChunks {
		s.spare = s.kept[0].frame // a whole one, as it was not the last
		s.kept = append(s.kept[:0], s.kept[1:]...)
	}
	s.kept = append(s.kept, keptChunk{at, frame})
	s.total += int64(n)
	s.crc = crc32.Update(s.crc, castagnoli, frame[frameHeader:])
	return frame, nil
}

// trailer returns the frame behind the last chunk.
func (s *outgoingSnapshot) trailer(status byte) []byte {
	f := make([]byte, 2*frameHeader+trailerSize)
	b := f[2*frameHeader:]
	b[0] = status
	binary.LittleEndian.PutUint64(b[1:], uint64(s.total))
	binary.LittleEndian.PutUint32(b[9:], s.crc)
	sealFrame(f[frameHeader:]) // before it an empty chunk, which is all zeros
	return f
}

// SendSnapshot implements Transport.
func (t *TCP) SendSnapshot(ctx context.Context, group string, m *pb.Message, data io.Reader) error {
	p := t.peer(m.GetTo())
	if p == nil {
		return fmt.Errorf("%w: node %d", ErrUnknownPeer, m.GetTo())
	}
	id := make([]byte, SnapshotIDSize)
	if _, err := rand.Read(id); err != nil {
		return fmt.Errorf("transport: no random bytes: %w", err)
	}
	m = &pb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, LogTerm: m.LogTerm, Index: m.Index, Commit: m.Commit,
		Snapshot: &pb.Snapshot{Metadata: m.GetSnapshot().GetMetadata(), Data: id},
	}
	s := &outgoingSnapshot{data: data}
	backoff, since := backoffFirst, time.Now()
	for {
		total, there := s.total, s.there
		err := t.sendOnce(ctx, p, group, m, s)
		if err == nil {
			return nil
		}
		if s.total > total || s.there > there {
			backoff, since = backoffFirst, time.Now()
		}
		if !s.canGoOn(err) || ctx.Err() != nil || t.ctx.Err() != nil || time.Since(since) > t.patience {
			return fmt.Errorf("transport: sending a snapshot to node %d: %w", p.id, errors.Join(err, ctx.Err()))
		}
		t.cfg.Logger.WithError(err).Infof("raft transport: a snapshot for node %d broke off after %d bytes and is taken up again", p.id, s.total)
		select {
		case <-ctx.Done():
		case <-t.ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, backoffLast)
	}
}

// canGoOn tells whether it makes sense to go on over another connection after err. Where
// nothing was sent yet, who wants the snapshot to be sent tries again.
func (s *outgoingSnapshot) canGoOn(err error) bool {
	refused := errors.Is(err, ErrRefused) && !errors.Is(err, errNotNow)
	return s.total > 0 && s.err == nil && !refused && !errors.Is(err, errTooOld)
}

// sendOnce sends what the other side lacks of a snapshot over one connection.
func (t *TCP) sendOnce(ctx context.Context, p *peer, group string, m *pb.Message, s *outgoingSnapshot) error {
	conn, held, err := t.dial(ctx, p, kindSnapshot)
	if err != nil {
		return err
	}
	defer t.untrack(conn)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if c, ok := held.Conn.(*net.TCPConn); ok {
		_ = c.SetWriteBuffer(snapshotBuffer)
	}
	var frames frameWriter
	_ = conn.SetDeadline(time.Now().Add(ioTimeout))
	if err := frames.writeTo(conn, group, m); err != nil {
		return err
	}
	if s.total > 0 {
		_ = conn.SetReadDeadline(time.Now().Add(positionTimeout))
	}
	kind, at, err := readPosition(conn)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	switch kind {
	case settled:
		return readAnswer(conn)
	case notNow:
		return fmt.Errorf("%w: %w", errNotNow, cmp.Or(readAnswer(conn), errFrame))
	}
	s.there = max(s.there, at)
	begin, first := time.Now(), at
	for {
		frame, err := s.chunk(at)
		if err != nil {
			_ = conn.SetWriteDeadline(time.Now().Add(ioTimeout))
			_, _ = conn.Write(s.trailer(streamGivenUp)) // so that the other side need not wait
			return err
		}
		if frame == nil {
			break
		}
		_ = conn.SetWriteDeadline(time.Now().Add(ioTimeout))
		if _, err := conn.Write(frame); err != nil {
			return err
		}
		at += int64(len(frame) - frameHeader)
		if rate := t.cfg.SnapshotRate; rate > 0 {
			ahead := time.Duration(float64(at-first)/float64(rate)*float64(time.Second)) - time.Since(begin)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(ahead):
			}
		}
	}
	_ = conn.SetWriteDeadline(time.Now().Add(ioTimeout))
	if _, err := conn.Write(s.trailer(streamWhole)); err != nil {
		return err
	}
	// The other side answers when it has it all.
	return readAnswer(conn)
}

func writePosition(w io.Writer, kind byte, at int64) error {
	f := make([]byte, frameHeader+positionLen)
	f[frameHeader] = kind
	binary.LittleEndian.PutUint64(f[frameHeader+1:], uint64(at))
	sealFrame(f)
	_, err := w.Write(f)
	return err
}

func readPosition(r io.Reader) (kind byte, at int64, err error) {
	b, err := readFrame(r, nil, positionLen)
	if err != nil {
		return 0, 0, err
	}
	if len(b) != positionLen || b[0] > notNow {
		return 0, 0, fmt.Errorf("%w: no position in a snapshot", errFrame)
	}
	return b[0], int64(binary.LittleEndian.Uint64(b[1:]) & (1<<63 - 1)), nil
}

// arrivalKey says where snapshots come from: one sender sends one of a group at a time.
type arrivalKey struct {
	from  uint64
	group string
}

// arrival is a snapshot as it arrives, over one or more connections one after the other.
type arrival struct {
	t   *TCP
	key arrivalKey
	id  [SnapshotIDSize]byte

	chunks chan []byte   // to Read; closed behind the last one
	free   chan []byte   // buffers that Read has done with
	cut    chan struct{} // closed by giveUp
	taken  chan struct{} // closed when the Handler has begun to read
	done   chan struct{} // closed when the Handler has returned err
	err    error

	take    sync.Once  // closes taken
	feeding sync.Mutex // held by the connection that feeds; guards at (from when taken is closed on), crc and whole
	at      int64      // bytes that were verified and given to Read
	crc     uint32
	whole   bool

	mu    sync.Mutex // guards what follows
	conn  net.Conn   // that feeds or is about to
	cause error      // of cut
	timer *time.Timer

	rest, last []byte // of Read: what is left of last
}

// arrivalOf returns the snapshot that a message announces, and begins it if it is new. One
// of the same sender and group that it takes the place of is given up.
func (t *TCP) arrivalOf(from uint64, group string, m *pb.Message) (*arrival, error) {
	id := m.GetSnapshot().GetData()
	if len(id) != SnapshotIDSize {
		return nil, fmt.Errorf("%w: a snapshot without an identity", errFrame)
	}
	key := arrivalKey{from, group}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	old := t.arriving[key]
	if old != nil && string(old.id[:]) == string(id) {
		return old, nil
	}
	if old != nil {
		old.giveUp(errGivenUp)
	} else if len(t.arriving) >= maxArriving {
		return nil, fmt.Errorf("transport: %d snapshots are arriving already", len(t.arriving))
	}
	a := &arrival{
		t: t, key: key, id: [SnapshotIDSize]byte(id),
		chunks: make(chan []byte), free: make(chan []byte, 2), cut: make(chan struct{}),
		taken: make(chan struct{}), done: make(chan struct{}),
	}
	t.arriving[key] = a
	m.Snapshot.Data = nil
	t.work.Add(1)
	go a.run(m)
	return a, nil
}

// run gives the snapshot to the Handler.
func (a *arrival) run(m *pb.Message) {
	defer a.t.work.Done()
	a.err = a.t.h.ReceiveSnapshot(a.key.group, m, a)
	if a.err != nil && !a.isTaken() {
		a.forget() // there is no outcome: who comes again asks again
	}
	close(a.done)
	a.wait()
}

func (a *arrival) isTaken() bool {
	select {
	case <-a.taken:
		return true
	default:
		return false
	}
}

// forget makes the transport forget the arrival.
func (a *arrival) forget() {
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	if a.t.arriving[a.key] == a {
		delete(a.t.arriving, a.key)
	}
}

// wait gives the sender time to come back; after that the arrival is forgotten.
func (a *arrival) wait() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
	}
	a.timer = time.AfterFunc(a.t.patience, func() {
		a.giveUp(fmt.Errorf("transport: node %d did not go on with a snapshot for %v: %w", a.key.from, a.t.patience, io.ErrUnexpectedEOF))
		a.forget()
	})
}

// attach makes conn the one that feeds: the one before is closed, and has stopped when
// attach returns. The caller calls detach.
func (a *arrival) attach(conn net.Conn) {
	a.mu.Lock()
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.conn != nil {
		_ = a.conn.Close()
	}
	a.conn = conn
	a.mu.Unlock()
	a.feeding.Lock()
}

func (a *arrival) detach(conn net.Conn) {
	a.feeding.Unlock()
	a.mu.Lock()
	mine := a.conn == conn
	if mine {
		a.conn = nil
	}
	a.mu.Unlock()
	if mine {
		a.wait()
	}
}

// giveUp makes Read fail, if it has not read everything.
func (a *arrival) giveUp(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cause == nil {
		a.cause = cause
		close(a.cut)
	}
}

// Identity implements Resumable.
func (a *arrival) Identity() [SnapshotIDSize]byte { return a.id }

// GoOn implements Resumable.
func (a *arrival) GoOn(n int64, crc uint32) {
	a.take.Do(func() {
		a.at, a.crc = n, crc
		close(a.taken)
	})
}

// Read implements Resumable.
func (a *arrival) Read(p []byte) (int, error) {
	a.GoOn(0, 0)
	if len(a.rest) == 0 {
		if a.last != nil {
			select {
			case a.free <- a.last:
			default:
			}
			a.last = nil
		}
		b, ok, err := a.next()
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, io.EOF
		}
		a.last, a.rest = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// next waits for a chunk; ok is false behind the last one.
func (a *arrival) next() (b []byte, ok bool, err error) {
	select {
	case b, ok = <-a.chunks: // what is whole stays so
		return b, ok, nil
	default:
	}
	select {
	case b, ok = <-a.chunks:
		return b, ok, nil
	case <-a.cut:
		a.mu.Lock()
		defer a.mu.Unlock()
		return nil, false, a.cause
	}
}

// feed reads chunks from a connection until the snapshot has ended or nobody wants more
// of it. The caller has attached the connection.
func (a *arrival) feed(conn net.Conn) error {
	for !a.whole {
		select {
		case <-a.done:
			return nil
		default:
		}
		_ = conn.SetReadDeadline(time.Now().Add(6 * ioTimeout)) // the sender may be throttled
		var buf []byte
		select {
		case buf = <-a.free:
		default:
		}
		buf, err := readFrame(conn, buf, snapshotChunk)
		if err != nil {
			return unexpected(err)
		}
		if len(buf) == 0 {
			return a.finish(conn)
		}
		select {
		case a.chunks <- buf:
			a.crc = crc32.Update(a.crc, castagnoli, buf)
			a.at += int64(len(buf))
		case <-a.cut:
			return nil
		case <-a.done:
			return nil
		}
	}
	return nil
}

// finish reads what is behind the last chunk and compares it with what has arrived.
func (a *arrival) finish(conn net.Conn) error {
	b, err := readFrame(conn, nil, trailerSize)
	if err != nil {
		return unexpected(err)
	}
	if len(b) != trailerSize || b[0] > streamGivenUp {
		return fmt.Errorf("%w: the end of a snapshot", errFrame)
	}
	total, crc := binary.LittleEndian.Uint64(b[1:]), binary.LittleEndian.Uint32(b[9:])
	switch {
	case b[0] == streamGivenUp:
		a.giveUp(errGivenUp)
	case total != uint64(a.at) || crc != a.crc:
		a.giveUp(fmt.Errorf("%w: a snapshot of %d bytes with checksum %08x has arrived with %d and %08x", errFrame, total, crc, a.at, a.crc))
	default:
		a.whole = true
		close(a.chunks)
	}
	return nil
}

// serveSnapshot takes a snapshot, or the rest of one, over a connection.
func (t *TCP) serveSnapshot(conn net.Conn, from uint64) error {
	below := conn
	if tc, ok := conn.(*tls.Conn); ok {
		below = tc.NetConn()
	}
	if c, ok := below.(*net.TCPConn); ok {
		_ = c.SetReadBuffer(snapshotBuffer)
	}
	_ = conn.SetReadDeadline(time.Now().Add(ioTimeout))
	f, err := readFrame(conn, nil, maxFrame)
	if err != nil {
		return err
	}
	group, m, err := decodeFrame(f, true)
	if err != nil {
		return err
	}
	if m.GetFrom() != from || m.GetTo() != t.cfg.ID || m.GetType() != pb.MsgSnap {
		return fmt.Errorf("%w: node %d sends a snapshot in a %s from %d to %d", errFrame, from, m.GetType(), m.GetFrom(), m.GetTo())
	}
	a, err := t.arrivalOf(from, group, m)
	if err != nil {
		return err
	}
	a.attach(conn)
	defer a.detach(conn)
	select {
	case <-a.taken:
	case <-a.done:
	}
	kind := byte(goOn)
	select {
	case <-a.done:
		kind = settled
		if a.err != nil && !a.isTaken() {
			kind = notNow
		}
	default:
	}
	_ = conn.SetWriteDeadline(time.Now().Add(ioTimeout))
	if err := writePosition(conn, kind, a.at); err != nil {
		return err
	}
	if kind == goOn {
		if err := a.feed(conn); err != nil {
			return err
		}
	}
	<-a.done
	_ = conn.SetWriteDeadline(time.Now().Add(ioTimeout))
	return writeAnswer(conn, a.err)
}
