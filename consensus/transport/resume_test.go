package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
)

// proxy passes connections on and cuts them as it is told.
type proxy struct {
	ln   net.Listener
	to   string
	cut  func() (forward, backward int64) // bytes after which a connection ends; < 0: never
	work sync.WaitGroup

	connections, forwarded atomic.Int64
}

func newProxy(t *testing.T, to string, cut func() (forward, backward int64)) *proxy {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, to: to, cut: cut}
	p.work.Go(p.accept)
	t.Cleanup(func() { _ = ln.Close(); p.work.Wait() })
	return p
}

func (p *proxy) accept() {
	for {
		in, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.connections.Add(1)
		forward, backward := p.cut()
		out, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		closeBoth := func() { _ = in.Close(); _ = out.Close() }
		pass := func(to, from net.Conn, limit int64, count *atomic.Int64) {
			defer closeBoth()
			src := io.Reader(from)
			if limit >= 0 {
				src = io.LimitReader(from, limit)
			}
			n, _ := io.Copy(to, src)
			if count != nil {
				count.Add(n)
			}
		}
		p.work.Go(func() { pass(out, in, forward, &p.forwarded) })
		p.work.Go(func() { pass(in, out, backward, nil) })
	}
}

// taker is a handler that keeps each snapshot that it is given, and how it ended.
type taker struct {
	inbox
	mu    sync.Mutex
	took  []taken
	early bool // it takes none
}

type taken struct {
	data []byte
	err  error
}

func (h *taker) ReceiveSnapshot(_ string, m *pb.Message, data io.Reader) error {
	if h.early {
		return errors.New("none for me")
	}
	d, err := io.ReadAll(data)
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.Snapshot.Data != nil {
		err = errors.New("the identity is the transport's")
	}
	h.took = append(h.took, taken{d, err})
	return err
}

func (h *taker) snapshots() []taken {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]taken(nil), h.took...)
}

// behindProxy is a sender and a receiver, with TLS, and a proxy between them.
func behindProxy(t *testing.T, patience time.Duration, rate int, cut func() (forward, backward int64)) (*TCP, *taker, *proxy) {
	ca := newAuthority(t)
	var ts []*TCP
	for id := uint64(1); id <= 2; id++ {
		tr, err := ListenTCP(TCPConfig{ID: id, Listen: "127.0.0.1:0", TLS: ca.node(t, id), SnapshotRate: rate})
		if err != nil {
			t.Fatal(err)
		}
		tr.patience = patience
		t.Cleanup(func() { _ = tr.Close() })
		ts = append(ts, tr)
	}
	h := &taker{}
	for i, handler := range []Handler{&inbox{}, h} {
		if err := ts[i].Start(handler); err != nil {
			t.Fatal(err)
		}
	}
	p := newProxy(t, ts[1].Addr(), cut)
	ts[0].SetPeer(2, p.ln.Addr().String())
	return ts[0], h, p
}

func snapMessage(index uint64) *pb.Message {
	return &pb.Message{Type: pb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(1)),
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: &index, Term: new(uint64(1)), ConfState: &pb.ConfState{}}}}
}

func randomBytes(seed uint64, n int) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	_, _ = rng.Read(b)
	return b
}

// TestSnapshotResumes cuts the connection at random bytes, in both directions: the
// receiver's handler sees one snapshot, whole.
func TestSnapshotResumes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 7))
			cuts := 6
			tr, h, p := behindProxy(t, 10*time.Second, 0, func() (forward, backward int64) {
				if cuts--; cuts < 0 {
					return -1, -1
				}
				if rng.IntN(4) == 0 {
					// Within the handshake, the position, or the answer at the end.
					return -1, rng.Int64N(1700)
				}
				return rng.Int64N(4 * snapshotChunk), -1
			})
			data := randomBytes(seed, 10*snapshotChunk+int(seed)*1001)
			if seed == 0 {
				// Exactly whole chunks.
				data = data[:8*snapshotChunk]
			}
			// A connection that never came to send anything is an error at once: as the group
			// does, it is tried again.
			var err error
			for range 8 {
				if err = tr.SendSnapshot(context.Background(), "g", snapMessage(5), bytes.NewReader(data)); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			got := h.snapshots()
			if last := got[len(got)-1]; last.err != nil || !bytes.Equal(last.data, data) {
				t.Fatalf("%d bytes arrived, %v, sent were %d", len(last.data), last.err, len(data))
			}
			for _, s := range got[:len(got)-1] {
				if s.err == nil {
					t.Fatal("a part was taken for a whole")
				}
			}
			if p.connections.Load() < 2 {
				t.Fatal("nothing was cut")
			}
		})
	}
}

// TestSnapshotResumesOnce: with a cut in the middle, one handler reads one stream, and what
// was there is not sent again.
func TestSnapshotResumesOnce(t *testing.T) {
	t.Parallel()
	const size, cutAt = 8 << 20, 7 << 20
	first := true
	tr, h, p := behindProxy(t, 10*time.Second, 0, func() (forward, backward int64) {
		if first {
			first = false
			return cutAt, -1
		}
		return -1, -1
	})
	data := randomBytes(1, size)
	if err := tr.SendSnapshot(context.Background(), "g", snapMessage(5), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if got := h.snapshots(); len(got) != 1 || got[0].err != nil || !bytes.Equal(got[0].data, data) {
		t.Fatalf("%d snapshots were begun", len(got))
	}
	if c := p.connections.Load(); c != 2 {
		t.Fatalf("%d connections", c)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	_ = p.ln.Close()
	p.work.Wait()
	// What was on its way goes again, and TLS has some bytes of its own.
	if n := p.forwarded.Load(); n < size || n > size+cutAt*3/4 {
		t.Fatalf("%d bytes were sent for a snapshot of %d", n, size)
	}
}

// TestSnapshotsDoNotMix: a sender that gives one up and sends another never has both in
// one stream.
func TestSnapshotsDoNotMix(t *testing.T) {
	t.Parallel()
	const size = 8 * snapshotChunk
	tr, h, p := behindProxy(t, time.Minute, 0, func() (forward, backward int64) { return -1, -1 })
	ctx, cancel := context.WithCancel(context.Background())
	half := io.MultiReader(bytes.NewReader(randomBytes(1, size/2)), readerFunc(func([]byte) (int, error) {
		cancel() // the connection is closed; nothing says so to the receiver but that
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond)
		return 0, ctx.Err()
	}))
	if err := tr.SendSnapshot(ctx, "g", snapMessage(5), half); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	data := randomBytes(2, size)
	if err := tr.SendSnapshot(context.Background(), "g", snapMessage(6), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	whole := 0
	for _, s := range h.snapshots() {
		if s.err == nil {
			whole++
			if !bytes.Equal(s.data, data) {
				t.Fatal("another snapshot than the one that was sent")
			}
		}
	}
	if whole != 1 {
		t.Fatalf("%d whole snapshots", whole)
	}
	if c := p.connections.Load(); c != 2 {
		t.Fatalf("%d connections", c)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestSnapshotOtherBytes goes on with other bytes under the same identity: that is found
// out at the end.
func TestSnapshotOtherBytes(t *testing.T) {
	t.Parallel()
	tr, h, _ := behindProxy(t, time.Minute, 0, func() (forward, backward int64) { return -1, -1 })
	m := snapMessage(5)
	m.Snapshot.Data = bytes.Repeat([]byte{7}, SnapshotIDSize)
	send := func(s *outgoingSnapshot, stop int64) error {
		conn, _, err := tr.dial(context.Background(), tr.peer(2), kindSnapshot)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.untrack(conn)
		var w frameWriter
		if err := w.writeTo(conn, "g", m); err != nil {
			t.Fatal(err)
		}
		_, at, err := readPosition(conn)
		if err != nil {
			t.Fatal(err)
		}
		for stop < 0 || at < stop {
			f, err := s.chunk(at)
			if err != nil {
				t.Fatal(err)
			}
			if f == nil {
				break
			}
			if _, err := conn.Write(f); err != nil {
				t.Fatal(err)
			}
			at += int64(len(f) - frameHeader)
		}
		if stop >= 0 {
			return nil
		}
		if _, err := conn.Write(s.trailer(streamWhole)); err != nil {
			t.Fatal(err)
		}
		return readAnswer(conn)
	}
	one := &outgoingSnapshot{data: bytes.NewReader(randomBytes(1, 4*snapshotChunk))}
	if err := send(one, 2*snapshotChunk); err != nil {
		t.Fatal(err)
	}
	other := &outgoingSnapshot{data: bytes.NewReader(randomBytes(2, 4*snapshotChunk))}
	for at := int64(0); at < 4*snapshotChunk; at += snapshotChunk {
		if _, err := other.chunk(at); err != nil {
			t.Fatal(err)
		}
	}
	if err := send(other, -1); !errors.Is(err, ErrRefused) {
		t.Fatalf("a mixture was taken: %v", err)
	}
	if got := h.snapshots(); len(got) != 1 || !errors.Is(got[0].err, errFrame) {
		t.Fatalf("the handler read %d snapshots, %v", len(got), got[0].err)
	}
	// The outcome is still known to who asks again.
	if err := send(other, 0); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotIsNotWaitedForForever: a sender that does not come back is given up.
func TestSnapshotIsNotWaitedForForever(t *testing.T) {
	t.Parallel()
	tr, h, p := behindProxy(t, 50*time.Millisecond, 0, func() (forward, backward int64) { return 4 * snapshotChunk, -1 })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- tr.SendSnapshot(ctx, "g", snapMessage(5), bytes.NewReader(make([]byte, 40*snapshotChunk)))
	}()
	for p.connections.Load() == 0 || len(h.snapshots()) == 0 {
		if p.connections.Load() == 1 {
			_ = p.ln.Close() // no second one
		}
		time.Sleep(time.Millisecond)
	}
	if got := h.snapshots(); !errors.Is(got[0].err, io.ErrUnexpectedEOF) {
		t.Fatalf("the handler read %v", got[0].err)
	}
	cancel()
	if err := <-done; err == nil {
		t.Fatal("the sender believes that the snapshot has arrived")
	}
}

// TestSnapshotThatIsNotWanted is refused while it is being sent, and the reason arrives.
func TestSnapshotThatIsNotWanted(t *testing.T) {
	t.Parallel()
	tr, h, _ := behindProxy(t, time.Minute, 0, func() (forward, backward int64) { return -1, -1 })
	h.early = true
	err := tr.SendSnapshot(context.Background(), "g", snapMessage(5), bytes.NewReader(make([]byte, 200*snapshotChunk)))
	if !errors.Is(err, ErrRefused) || !bytes.Contains([]byte(err.Error()), []byte("none for me")) {
		t.Fatal(err)
	}
}

// keeper is a handler that has kept a part of the snapshot, and begins with refusals.
type keeper struct {
	inbox
	refusals atomic.Int64
	has      []byte
	got      chan taken
}

func (h *keeper) ReceiveSnapshot(_ string, _ *pb.Message, data io.Reader) error {
	if h.refusals.Add(-1) >= 0 {
		return errors.New("not open yet")
	}
	if len(h.has) > 0 {
		data.(Resumable).GoOn(int64(len(h.has)), crc32.Checksum(h.has, castagnoli))
	}
	d, err := io.ReadAll(data)
	h.got <- taken{slices.Concat(h.has, d), err}
	return err
}

// TestSnapshotGoesOnAfterARestart replaces the receiver, in the middle of a snapshot, by
// one that knows of nothing but what its handler has kept.
func TestSnapshotGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	const chunks, cutAfter = 60, 20
	data := randomBytes(3, chunks*snapshotChunk+77)
	other := randomBytes(4, chunks*snapshotChunk)
	for _, c := range []struct {
		name string
		has  []byte
		want error // of the sender
	}{
		{"everything that was written", data[:cutAfter*snapshotChunk], nil},
		{"a part of it", data[:(cutAfter-3)*snapshotChunk], nil},
		{"nothing, of little", nil, nil},
		{"more than was sent", data, errTooOld},
		{"other bytes", other[:cutAfter*snapshotChunk], ErrRefused},
		{"another place", data[:cutAfter*snapshotChunk-1], errTooOld},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ca := newAuthority(t)
			listen := func(id uint64, h Handler) *TCP {
				tr, err := ListenTCP(TCPConfig{ID: id, Listen: "127.0.0.1:0", TLS: ca.node(t, id)})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = tr.Close() })
				if err := tr.Start(h); err != nil {
					t.Fatal(err)
				}
				return tr
			}
			one := listen(1, &inbox{})
			first := listen(2, &taker{})
			one.SetPeer(2, first.Addr())
			// The sender reads so far, and then the first receiver goes.
			read, paused, reached := 0, false, make(chan struct{})
			src := bytes.NewReader(data)
			done := make(chan error, 1)
			replaced := make(chan struct{})
			go func() {
				done <- one.SendSnapshot(context.Background(), "g", snapMessage(5), readerFunc(func(p []byte) (int, error) {
					if read >= cutAfter*snapshotChunk && !paused {
						paused = true
						close(reached)
						<-replaced
					}
					n, err := src.Read(p)
					read += n
					return n, err
				}))
			}()
			<-reached
			_ = first.Close()
			h := &keeper{has: c.has, got: make(chan taken, 1)}
			h.refusals.Store(2)
			one.SetPeer(2, listen(2, h).Addr())
			close(replaced)
			err := <-done
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want != nil {
				return
			}
			if got := <-h.got; got.err != nil || !bytes.Equal(got.data, data) {
				t.Fatalf("%d bytes arrived, %v, sent were %d", len(got.data), got.err, len(data))
			}
		})
	}
}

// TestOutgoingSnapshotKeepsSome: what is too old cannot be sent again.
func TestOutgoingSnapshotKeepsSome(t *testing.T) {
	t.Parallel()
	s := &outgoingSnapshot{data: bytes.NewReader(make([]byte, (keptChunks+5)*snapshotChunk))}
	at := int64(0)
	for {
		f, err := s.chunk(at)
		if err != nil {
			t.Fatal(err)
		}
		if f == nil {
			break
		}
		at += int64(len(f) - frameHeader)
	}
	for i := range int64(keptChunks + 5) {
		f, err := s.chunk(i * snapshotChunk)
		if i < 5 != errors.Is(err, errTooOld) || i >= 5 && len(f) != frameHeader+snapshotChunk {
			t.Fatalf("chunk %d: %d bytes, %v", i, len(f), err)
		}
	}
	if _, err := s.chunk(1); !errors.Is(err, errTooOld) {
		t.Fatalf("a byte within a chunk: %v", err)
	}
}
