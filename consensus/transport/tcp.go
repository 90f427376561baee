package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/raft/v3/raftpb"
)

// TCPConfig says how a TCP transport finds and trusts others.
type TCPConfig struct {
	ID      uint64
	Cluster [16]byte // nodes of another cluster are refused
	Listen  string   // host:port
	// TLS has this node's certificate and the cluster's roots (RootCAs and ClientCAs).
	// Both sides are verified, TLS 1.3 is required, and a peer's certificate has to
	// be for the name NodeName(id). nil: no TLS, which is refused for an address that
	// is not loopback unless Insecure says so.
	TLS      *tls.Config
	Insecure bool
	// Answer answers what other nodes ask with Call; nil: they are refused. It may be called from several goroutines and
	// must not keep the question. ctx ends with Close.
	Answer func(ctx context.Context, from uint64, question []byte) ([]byte, error)
	Logger logrus.FieldLogger // nil: nobody is told

	// Join is given connections of machines that are no nodes yet: those that offer JoinProtocol by ALPN. They
	// need no certificate and cannot send anything to a group. The handshake is done and no deadline is set; the
	// connection is closed when Join returns, and by Close, which waits for Join. nil: they are refused. Without
	// TLS there are none.
	Join func(net.Conn)

	// QueueBytes bounds what waits for one peer. 0: 64 MiB.
	QueueBytes int
	// SnapshotRate bounds the bytes per second of one snapshot. 0: no bound.
	SnapshotRate int
}

// JoinProtocol is the ALPN protocol of machines that ask to become nodes.
const JoinProtocol = "vde-join/1"

// NodeName is the DNS name that node id's certificate is for.
func NodeName(id uint64) string { return fmt.Sprintf("node-%d.vde", id) }

const (
	dialTimeout  = 5 * time.Second
	ioTimeout    = 10 * time.Second // for the other side to take what was written
	backoffFirst = 50 * time.Millisecond
	backoffLast  = 2 * time.Second
	queueLength  = 8192     // messages that wait for one peer
	writeBuffer  = 64 << 10 // gathers frames for one record of TLS, or more
	writeBatch   = 1 << 20  // bytes after which what is gathered goes out
	maxStrangers = 256      // connections that have not said who they are
)

// TCPStats counts what happened since the start.
type TCPStats struct {
	Sent, Received uint64 // messages
	Dropped        uint64 // messages that were not sent: queue full, peer unknown or away
	Refused        uint64 // connections and frames that were refused
	QueuedBytes    int64  // waiting now, for all peers
}

// TCP is the Transport over TCP and TLS.
//
// Goroutines: acceptLoop; serve for each connection that others made; sendLoop for
// each peer; arrival.run for each snapshot that arrives. Close waits for all of them.
type TCP struct {
	cfg TCPConfig
	ln  net.Listener
	h   Handler

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	sent, received, dropped, refused atomic.Uint64
	queued                           atomic.Int64

	saidMu sync.Mutex
	said   map[string]bool // what was logged once

	strangers chan struct{} // holds one for each connection that nobody is known to be behind

	mu     sync.Mutex // guards what follows
	closed bool
	peers  map[uint64]*peer
	conns  map[net.Conn]bool // closed by Close
	// arriving are the snapshots that other nodes send, for a while also those that are
	// complete.
	arriving map[arrivalKey]*arrival
	patience time.Duration // see resumePatience; constant
}

// peer is another node as this one sends to it.
type peer struct {
	id     uint64
	addr   atomic.Pointer[string]
	queue  chan outgoing
	bytes  atomic.Int64 // of what is in queue
	idle   chan idleCall
	cancel context.CancelFunc
}

type outgoing struct {
	group string
	m     *pb.Message
	size  int64
}

var _ Transport = (*TCP)(nil)

// ListenTCP opens the port. Nothing is accepted before Start.
func ListenTCP(cfg TCPConfig) (*TCP, error) {
	if cfg.ID == 0 {
		return nil, errors.New("transport: TCPConfig.ID is 0, which is no node")
	}
	if cfg.QueueBytes == 0 {
		cfg.QueueBytes = 64 << 20
	}
	if cfg.Logger == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		cfg.Logger = quiet
	}
	if cfg.TLS == nil && !cfg.Insecure {
		host, _, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("transport: the address to listen on: %w", err)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("transport: listening on %q without TLS would let anybody in: give certificates, listen on 127.0.0.1, or allow it explicitly", cfg.Listen)
		}
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("transport: %w", err)
	}
	t := &TCP{cfg: cfg, ln: ln, peers: map[uint64]*peer{}, said: map[string]bool{}, strangers: make(chan struct{}, maxStrangers), conns: map[net.Conn]bool{},
		arriving: map[arrivalKey]*arrival{}, patience: resumePatience}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Addr is the address that is listened on.
func (t *TCP) Addr() string { return t.ln.Addr().String() }

// Stats returns the counters.
func (t *TCP) Stats() TCPStats {
	return TCPStats{Sent: t.sent.Load(), Received: t.received.Load(), Dropped: t.dropped.Load(), Refused: t.refused.Load(), QueuedBytes: t.queued.Load()}
}

// Start implements Transport.
func (t *TCP) Start(h Handler) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	t.h = h
	t.work.Add(1)
	go t.acceptLoop()
	for _, p := range t.peers {
		t.startPeerLocked(p)
	}
	return nil
}

func (t *TCP) startPeerLocked(p *peer) {
	ctx, cancel := context.WithCancel(t.ctx)
	p.cancel = cancel
	t.work.Add(1)
	go t.sendLoop(ctx, p)
}

// SetPeer implements Transport.
func (t *TCP) SetPeer(id uint64, addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || id == t.cfg.ID {
		return
	}
	p := t.peers[id]
	switch {
	case addr == "":
		if p != nil && p.cancel != nil {
			p.cancel()
		}
		delete(t.peers, id)
		for p != nil {
			select {
			case c := <-p.idle:
				delete(t.conns, c.conn)
				_ = c.conn.Close()
				continue
			default: // a question may have taken the last one meanwhile
			}
			break
		}
	case p != nil:
		p.addr.Store(&addr)
	default:
		p = &peer{id: id, queue: make(chan outgoing, queueLength), idle: make(chan idleCall, idleCalls)}
		p.addr.Store(&addr)
		t.peers[id] = p
		if t.h != nil {
			t.startPeerLocked(p)
		}
	}
}

func (t *TCP) peer(id uint64) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[id]
}

// Send implements Transport.
func (t *TCP) Send(group string, m *pb.Message) bool {
	p := t.peer(m.GetTo())
	if p == nil {
		t.dropped.Add(1)
		return false
	}
	// What the entries hold is what counts.
	size := int64(64)
	for _, e := range m.GetEntries() {
		size += int64(len(e.GetData())) + 32
	}
	if p.bytes.Add(size) > int64(t.cfg.QueueBytes) && p.bytes.Load() > size {
		p.bytes.Add(-size)
		t.dropped.Add(1)
		return false
	}
	select {
	case p.queue <- outgoing{group, m, size}:
		t.queued.Add(size)
		return true
	default:
		p.bytes.Add(-size)
		t.dropped.Add(1)
		return false
	}
}

// sendLoop keeps a connection to the peer and writes what is queued for it. What
// is queued at the same time, for whatever group, goes out in one write.
func (t *TCP) sendLoop(ctx context.Context, p *peer) {
	defer t.work.Done()
	backoff := backoffFirst
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-p.queue:
			began := time.Now()
			err := t.sendOver(ctx, p, first)
			if ctx.Err() != nil {
				return
			}
			t.once(fmt.Sprintf("send %d %.60s", p.id, err), "raft transport: sending to node %d at %s: %v", p.id, *p.addr.Load(), err)
			t.drain(p)
			t.h.Unreachable(p.id)
			if time.Since(began) > ioTimeout {
				backoff = backoffFirst
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(backoff):
			}
			t.drain(p) // what came in meanwhile is old; the groups send again
			backoff = min(2*backoff, backoffLast)
		}
	}
}

// sendOver makes a connection and writes first and what follows, until it breaks.
func (t *TCP) sendOver(ctx context.Context, p *peer, first outgoing) error {
	conn, held, err := t.dial(ctx, p, kindMessages)
	if err != nil {
		t.taken(p, first)
		t.dropped.Add(1)
		return err
	}
	defer t.untrack(conn)
	// The other side sends nothing more; that it closes is noticed at once.
	gone := make(chan error, 1)
	t.work.Add(1)
	go func() {
		defer t.work.Done()
		var one [1]byte
		_, err := conn.Read(one[:])
		gone <- fmt.Errorf("the peer closed the connection: %w", unexpected(err))
	}()
	var frames frameWriter
	held.hold(true)
	out := bufio.NewWriterSize(conn, writeBuffer)
	next, more := first, true
	for {
		_ = conn.SetWriteDeadline(time.Now().Add(ioTimeout))
		for size := int64(0); more && size < writeBatch; {
			size += next.size
			msg := next
			t.taken(p, next)
			for more = false; !more; {
				// What follows in the same log can go in the same message.
				select {
				case next = <-p.queue:
					more = true
					if m := joined(msg, next); m != nil {
						t.taken(p, next)
						size += next.size
						msg, more = outgoing{msg.group, m, msg.size + next.size}, false
						continue
					}
				default:
				}
				break
			}
			switch err := frames.writeTo(out, msg.group, msg.m); {
			case errors.Is(err, errNotSent):
				t.dropped.Add(1)
				t.once("encode "+msg.group, "raft transport: group %s: %v", msg.group, err)
			case err != nil:
				return err
			default:
				t.sent.Add(1)
			}
		}
		if err := out.Flush(); err != nil {
			return err
		}
		if err := held.flush(); err != nil {
			return err
		}
		if more {
			continue // the batch is full; next is the first of the next one
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-gone:
			return err
		case next = <-p.queue:
			more = true
		}
	}
}

// taken accounts for a message that left the queue.
func (t *TCP) taken(p *peer, o outgoing) {
	p.bytes.Add(-o.size)
	t.queued.Add(-o.size)
}

func (t *TCP) drain(p *peer) {
	for {
		select {
		case o := <-p.queue:
			t.taken(p, o)
			t.dropped.Add(1)
		default:
			return
		}
	}
}

// dial makes a connection to the peer, with the handshake done. held is what is below
// TLS, if any.
func (t *TCP) dial(ctx context.Context, p *peer, kind connKind) (conn net.Conn, held *heldConn, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", *p.addr.Load())
	if err != nil {
		return nil, nil, err
	}
	held = &heldConn{Conn: raw}
	conn = held
	if t.cfg.TLS != nil {
		c := t.cfg.TLS.Clone()
		c.MinVersion = tls.VersionTLS13
		c.ServerName = NodeName(p.id)
		c.DynamicRecordSizingDisabled = true // latency is not in the first record, but in the last
		tc := tls.Client(held, c)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, nil, err
		}
		conn = tc
	}
	if !t.track(conn) {
		return nil, nil, ErrClosed
	}
	_ = conn.SetDeadline(time.Now().Add(dialTimeout))
	if _, err = conn.Write(hello{kind, t.cfg.Cluster, t.cfg.ID, p.id}.encode()); err == nil {
		err = readAnswer(conn)
	}
	_ = conn.SetDeadline(time.Time{})
	if err != nil {
		t.untrack(conn)
		return nil, nil, err
	}
	return conn, held, nil
}

// readAnswer reads the other side's yes or its refusal.
func readAnswer(r io.Reader) error {
	b, err := readFrame(r, nil, maxReason)
	if err != nil {
		return err
	}
	if len(b) > 0 {
		return fmt.Errorf("%w: it says %.200q", ErrRefused, b)
	}
	return nil
}

// writeAnswer writes yes, or why not.
func writeAnswer(w io.Writer, refusal error) error {
	f := make([]byte, frameHeader)
	if refusal != nil {
		text := refusal.Error()
		f = append(f, text[:min(len(text), maxReason)]...)
	}
	sealFrame(f)
	_, err := w.Write(f)
	return err
}

// track remembers a connection, so that Close ends it; false after Close.
func (t *TCP) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close()
		return false
	}
	t.conns[c] = true
	return true
}

func (t *TCP) untrack(c net.Conn) {
	t.mu.Lock()
	delete(t.conns, c)
	t.mu.Unlock()
	_ = c.Close()
}

// once logs a warning the first time that key comes up. Who connects has a say in the
// keys: after maxSaid of them nothing more is logged or remembered.
func (t *TCP) once(key, format string, args ...any) {
	t.saidMu.Lock()
	defer t.saidMu.Unlock()
	if t.said[key] || len(t.said) >= maxSaid {
		return
	}
	t.said[key] = true
	t.cfg.Logger.Warnf(format, args...)
}

const maxSaid = 1000

func (t *TCP) acceptLoop() {
	defer t.work.Done()
	for {
		conn, err := t.ln.Accept()
		if err != nil {
			if t.ctx.Err() != nil {
				return
			}
			t.once("accept "+err.Error(), "raft transport: accepting: %v", err)
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(backoffFirst): // out of descriptors, most likely
			}
			continue
		}
		if !t.track(conn) {
			return
		}
		select {
		case t.strangers <- struct{}{}:
			t.work.Add(1)
			go t.serve(conn)
		default:
			t.untrack(conn)
			t.refused.Add(1)
			t.once("strangers", "raft transport: %d connections are open that have not said who they are: more are refused", maxStrangers)
		}
	}
}

// serve takes what another node sends over a connection that it made.
func (t *TCP) serve(raw net.Conn) {
	defer t.work.Done()
	defer t.untrack(raw)
	known := sync.OnceFunc(func() { <-t.strangers })
	defer known()
	conn, join, err := t.secure(raw)
	var from uint64
	if err == nil && join {
		t.cfg.Join(conn)
		_ = conn.Close() // says so to the other side, before untrack cuts the connection
		return
	}
	if err == nil {
		var kind connKind
		if from, kind, err = t.welcome(conn); err == nil {
			known()
		}
		switch {
		case err != nil:
		case kind == kindSnapshot:
			err = t.serveSnapshot(conn, from)
		case kind == kindCall:
			err = t.serveCall(conn, from)
		default:
			err = t.serveMessages(conn, from)
		}
	}
	if err != nil && err != io.EOF && t.ctx.Err() == nil {
		t.refused.Add(1)
		host, _, _ := net.SplitHostPort(raw.RemoteAddr().String())
		t.once(fmt.Sprintf("serve %s %.60s", host, err), "raft transport: connection from %s (node %d): %v", host, from, err)
	}
}

// secure does the TLS handshake. join tells that the other side is no node and asks to become one: it has shown no
// certificate.
func (t *TCP) secure(raw net.Conn) (conn net.Conn, join bool, err error) {
	if t.cfg.TLS == nil {
		return raw, false, nil
	}
	_ = raw.SetDeadline(time.Now().Add(dialTimeout))
	defer func() { _ = raw.SetDeadline(time.Time{}) }()
	nodes := t.cfg.TLS.Clone()
	nodes.MinVersion = tls.VersionTLS13
	nodes.ClientAuth = tls.RequireAndVerifyClientCert
	// A session that began without a certificate is never taken up again by one that needs it.
	nodes.SessionTicketsDisabled = true
	nodes.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(info.SupportedProtos, JoinProtocol) {
			return nil, nil
		}
		if t.cfg.Join == nil {
			return nil, errors.New("transport: nobody can join here")
		}
		strangers := nodes.Clone()
		strangers.GetConfigForClient = nil
		strangers.NextProtos = []string{JoinProtocol}
		strangers.ClientAuth = tls.NoClientCert
		return strangers, nil
	}
	tc := tls.Server(raw, nodes)
	if err := tc.HandshakeContext(t.ctx); err != nil {
		return tc, false, unexpected(err)
	}
	return tc, tc.ConnectionState().NegotiatedProtocol == JoinProtocol, nil
}

// welcome reads who is calling and on what business, and answers whether that is right.
func (t *TCP) welcome(conn net.Conn) (from uint64, kind connKind, err error) {
	_ = conn.SetDeadline(time.Now().Add(dialTimeout))
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	b := make([]byte, helloSize)
	if _, err := io.ReadFull(conn, b); err != nil {
		return 0, 0, unexpected(err)
	}
	h, err := decodeHello(b)
	switch {
	case err != nil:
	case h.cluster != t.cfg.Cluster:
		err = errors.New("transport: a node of another cluster")
	case h.to != t.cfg.ID:
		err = fmt.Errorf("transport: this is node %d, not %d: is its address right?", t.cfg.ID, h.to)
	case h.from == 0 || h.from == t.cfg.ID:
		err = fmt.Errorf("transport: node %d cannot call node %d: do two nodes have one id?", h.from, t.cfg.ID)
	default:
		if tc, ok := conn.(*tls.Conn); ok {
			certs := tc.ConnectionState().PeerCertificates
			if len(certs) == 0 {
				err = errors.New("transport: no certificate")
			} else if verr := certs[0].VerifyHostname(NodeName(h.from)); verr != nil {
				err = fmt.Errorf("transport: the certificate is not for node %d: %w", h.from, verr)
			}
		}
	}
	if werr := writeAnswer(conn, err); err == nil {
		err = werr
	}
	return h.from, h.kind, err
}

func (t *TCP) serveMessages(conn net.Conn, from uint64) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	var kept []byte // for frames that nothing refers to afterwards
	for {
		n, crc, err := readHeader(r, maxFrame)
		if err != nil {
			return err
		}
		var frame []byte
		alias := n >= aliasFrom
		if alias {
			frame, err = readBody(r, nil, n, crc)
		} else {
			kept, err = readBody(r, kept, n, crc)
			frame = kept
		}
		if err != nil {
			return err
		}
		group, m, err := decodeFrame(frame, alias)
		if err != nil {
			return err
		}
		if m.GetFrom() != from && !forwarded(m) || m.GetTo() != t.cfg.ID {
			return fmt.Errorf("%w: node %d sends a message from %d to %d", errFrame, from, m.GetFrom(), m.GetTo())
		}
		t.received.Add(1)
		t.h.Receive(group, m)
	}
}

// Close implements Transport.
func (t *TCP) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	conns := t.conns
	t.conns = map[net.Conn]bool{}
	for _, a := range t.arriving {
		a.giveUp(ErrClosed)
	}
	t.mu.Unlock()
	t.cancel()
	err := t.ln.Close()
	for c := range conns {
		_ = c.Close()
	}
	t.work.Wait()
	return err
}

// forwarded tells whether a message may come from another node than the one that made it: a follower passes proposals, requests
// for a read index, and the wish that another node lead, which is written as if that one had it, on to the leader that it knows.
func forwarded(m *pb.Message) bool {
	switch m.GetType() {
	case pb.MsgProp, pb.MsgReadIndex, pb.MsgTransferLeader:
		return true
	default:
		return false
	}
}
