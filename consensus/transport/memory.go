package transport

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Network connects Memory transports within a process, for tests. It can be cut.
type Network struct {
	mu    sync.Mutex
	nodes map[uint64]*Memory
	cuts  map[[2]uint64]bool // from, to
}

// NewNetwork returns a network without nodes.
func NewNetwork() *Network {
	return &Network{nodes: map[uint64]*Memory{}, cuts: map[[2]uint64]bool{}}
}

// Cut makes messages from one node to another vanish, or arrive again.
func (n *Network) Cut(from, to uint64, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[[2]uint64{from, to}] = cut
}

// Isolate cuts a node off from all others in both directions, or connects it.
func (n *Network) Isolate(id uint64, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.nodes {
		n.cuts[[2]uint64{id, other}] = cut
		n.cuts[[2]uint64{other, id}] = cut
	}
}

// peer returns the node that a message gets to, nil if none.
func (n *Network) peer(from, to uint64) *Memory {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cuts[[2]uint64{from, to}] {
		return nil
	}
	return n.nodes[to]
}

// Memory is a Transport within a process. Every message is encoded and decoded, so
// that nobody shares memory with another node by mistake.
type Memory struct {
	net *Network
	id  uint64
	h   Handler

	mu      sync.Mutex
	closed  bool
	known   map[uint64]bool
	inboxes map[uint64]chan frame // by sender; closed never
	quit    chan struct{}
	work    sync.WaitGroup // one goroutine per sender, and snapshots being received
}

type frame struct {
	group string
	data  []byte
}

var _ Transport = (*Memory)(nil)

// memoryQueue is how many messages from one node may wait at another.
const memoryQueue = 1024

// Join adds a node to the network.
func (n *Network) Join(id uint64) *Memory {
	return &Memory{net: n, id: id, known: map[uint64]bool{}, inboxes: map[uint64]chan frame{}, quit: make(chan struct{})}
}

// Start implements Transport.
func (t *Memory) Start(h Handler) error {
	t.h = h
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.net.nodes[t.id] = t
	return nil
}

// SetPeer implements Transport. The address is not used, unless it is empty.
func (t *Memory) SetPeer(id uint64, addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[id] = addr != ""
}

func (t *Memory) knows(id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[id] && !t.closed
}

// Send implements Transport.
func (t *Memory) Send(group string, m *pb.Message) bool {
	if !t.knows(m.GetTo()) {
		return false
	}
	peer := t.net.peer(t.id, m.GetTo())
	if peer == nil {
		return true // the network loses it
	}
	data, err := proto.Marshal(m)
	if err != nil || len(data) > MaxMessage {
		return false
	}
	return peer.deliver(t.id, frame{group, data})
}

// deliver queues a frame from another node.
func (t *Memory) deliver(from uint64, f frame) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	inbox := t.inboxes[from]
	if inbox == nil {
		inbox = make(chan frame, memoryQueue)
		t.inboxes[from] = inbox
		t.work.Add(1)
		go t.receiveLoop(inbox)
	}
	t.mu.Unlock()
	select {
	case inbox <- f:
		return true
	default:
		return false
	}
}

func (t *Memory) receiveLoop(inbox chan frame) {
	defer t.work.Done()
	for {
		select {
		case <-t.quit:
			return
		case f := <-inbox:
			m := &pb.Message{}
			if proto.Unmarshal(f.data, m) == nil {
				t.h.Receive(f.group, m)
			}
		}
	}
}

// SendSnapshot implements Transport.
func (t *Memory) SendSnapshot(ctx context.Context, group string, m *pb.Message, data io.Reader) error {
	if !t.knows(m.GetTo()) {
		return fmt.Errorf("%w: node %d", ErrUnknownPeer, m.GetTo())
	}
	peer := t.net.peer(t.id, m.GetTo())
	if peer == nil {
		return fmt.Errorf("transport: node %d does not answer", m.GetTo())
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, data); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	peer.mu.Lock()
	if peer.closed {
		peer.mu.Unlock()
		return fmt.Errorf("transport: node %d does not answer", m.GetTo())
	}
	peer.work.Add(1)
	peer.mu.Unlock()
	defer peer.work.Done()
	if err := peer.h.ReceiveSnapshot(group, proto.Clone(m).(*pb.Message), &buf); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return nil
}

// Close implements Transport.
func (t *Memory) Close() error {
	t.net.mu.Lock()
	if t.net.nodes[t.id] == t {
		delete(t.net.nodes, t.id)
	}
	t.net.mu.Unlock()
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	close(t.quit)
	t.work.Wait()
	return nil
}
