package transport

import (
	"net"
	"sync"

	pb "go.etcd.io/raft/v3/raftpb"
)

// heldConn gathers what is written to a connection while it is held, so that the many
// records which TLS makes of a batch take few system calls. A failed write leaves bytes
// behind that nobody sends any more: the connection is of no use then.
type heldConn struct {
	net.Conn

	mu   sync.Mutex // guards what follows
	held bool
	buf  []byte
}

// holdBytes is how much is gathered at most.
const holdBytes = 128 << 10

// Write implements net.Conn.
func (c *heldConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held {
		return c.Conn.Write(b)
	}
	if len(c.buf)+len(b) > holdBytes {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
		if len(b) > holdBytes {
			return c.Conn.Write(b)
		}
	}
	c.buf = append(c.buf, b...)
	return len(b), nil
}

// hold says whether what is written from now on is gathered until flush.
func (c *heldConn) hold(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = on
}

// flush writes what was gathered.
func (c *heldConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flushLocked()
}

func (c *heldConn) flushLocked() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// maxJoined bounds the data of a message that was made of several, in bytes.
const maxJoined = 1 << 20

// joined returns the one message that says what a and then b say, nil if there is none:
// both append to a log, and b goes on where a ends. Many proposals that are made at once
// become few messages with few answers that way.
func joined(a, b outgoing) *pb.Message {
	m, n := a.m, b.m
	if a.group != b.group || m.GetType() != pb.MsgApp || n.GetType() != pb.MsgApp || a.size+b.size > maxJoined {
		return nil
	}
	index, term := m.GetIndex(), m.GetLogTerm()
	if es := m.GetEntries(); len(es) > 0 {
		index, term = es[len(es)-1].GetIndex(), es[len(es)-1].GetTerm()
	}
	if m.GetTerm() != n.GetTerm() || m.GetFrom() != n.GetFrom() || m.GetTo() != n.GetTo() || n.GetIndex() != index || n.GetLogTerm() != term ||
		n.GetCommit() < m.GetCommit() {
		return nil
	}
	entries := m.GetEntries()
	if len(n.GetEntries()) > 0 {
		// The engine has slices of its own: one of a's entries is never appended to.
		entries = append(entries[:len(entries):len(entries)], n.GetEntries()...)
	}
	return &pb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, LogTerm: m.LogTerm, Index: m.Index, Commit: n.Commit, Entries: entries,
	}
}
