// Package transport carries the messages of Raft groups between nodes: one
// Transport serves all groups of a node. TCP does it over mutual TLS (WIRE.md
// draws the bytes), Memory within a process. Both pass the one suite in
// suite_test.go.
package transport

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/raft/v3/raftpb"
)

// Limits of what is sent and accepted.
const (
	// MaxGroupName is the longest name of a group, in bytes.
	MaxGroupName = 32
	// MaxMessage is the largest message, encoded. The largest command and some.
	MaxMessage = 80 << 20
)

var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("transport: closed")
	// ErrUnknownPeer is returned for a node whose address nobody has told.
	ErrUnknownPeer = errors.New("transport: the peer is not known")
	// ErrRefused is returned when the other side refused a snapshot; what it said
	// is part of the message.
	ErrRefused = errors.New("transport: the peer refused the snapshot")
)

// Transport carries messages to and from the other nodes. All methods may be
// called from any goroutine.
//
// Messages may be lost, delayed and reordered: Raft copes. They are never doubled
// (a proposal on its way to the leader would be made twice), never changed, and
// never delivered to another group or node than they were sent to.
type Transport interface {
	// Start begins to deliver to h. It is called once.
	Start(h Handler) error

	// Send queues m for node m.To. It never blocks. false means that m was dropped,
	// as the peer's queue is full or the peer not known. The transport reads m later:
	// nobody may change it any more.
	Send(group string, m *pb.Message) bool

	// SendSnapshot sends m, a MsgSnap, followed by everything in data, to node m.To
	// and returns when that node's Handler has returned from ReceiveSnapshot: nil if
	// that returned nil. It does not delay what Send queues.
	SendSnapshot(ctx context.Context, group string, m *pb.Message, data io.Reader) error

	// SetPeer tells where node id is; an empty address forgets it.
	SetPeer(id uint64, addr string)

	// Close stops everything and returns when no call of the Handler is under way.
	Close() error
}

// Handler receives what arrives. Receive and Unreachable are called one after the
// other for one peer, concurrently for several.
type Handler interface {
	// Receive handles a message. It should not block for long: it delays the
	// messages behind it from the same peer, but no other. m is the handler's.
	Receive(group string, m *pb.Message)

	// ReceiveSnapshot handles a MsgSnap with its data, which ends with io.EOF when it
	// is complete and with another error when it is not. An error is told to the
	// sender.
	ReceiveSnapshot(group string, m *pb.Message, data io.Reader) error

	// Unreachable says that messages to the peer are being lost.
	Unreachable(peer uint64)
}
