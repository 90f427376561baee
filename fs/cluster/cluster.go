// Package cluster is how machines become one cluster: who a node is (Identity), invitations that are printed on one
// machine and typed in on another (Token), and the conversation by which a new node is admitted (JoinServer, Join).
//
// What the cluster as a whole knows of its members is replicated elsewhere; this package sees it as a State.
//
// All nodes are trusted alike: each holds the key of the cluster's certificate authority, so that each can admit
// others. A node that was removed still has that key.
package cluster

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"net"
	"time"
)

// Errors of joining. What State implementations and a JoinServer return wraps one of these; they reach the new node as
// they are.
var (
	ErrInviteUnknown = errors.New("the cluster does not know this invitation")
	ErrInviteUsed    = errors.New("the invitation has been used")
	ErrInviteExpired = errors.New("the invitation has expired")
	ErrWrongSecret   = errors.New("the secret of the invitation is wrong")
	ErrNameTaken     = errors.New("another node has this name")
	ErrAddrTaken     = errors.New("another node has this address")
	ErrNoRoom        = errors.New("the new store is too small for what is in the cluster")
)

// ErrRemoved: this node was a member once, and is none any more. That is for good: no id is given twice.
var ErrRemoved = errors.New("this node was removed from its cluster")

// Errors of changing the membership and the groups.
var (
	ErrUnknownNode  = errors.New("no such node")
	ErrUnknownGroup = errors.New("no such group")
	ErrGroupExists  = errors.New("there is such a group already")
	ErrGroupInUse   = errors.New("the group cannot be removed")
	// ErrQuorum: the nodes that answer are no majority, or would be none.
	ErrQuorum = errors.New("no majority")
)

// Node is a member of the cluster.
type Node struct {
	ID     uint64    `json:"id"`   // 1 made the cluster; never given twice
	Name   string    `json:"name"` // unique, see CheckName
	Addr   string    `json:"addr"` // host:port at which the others reach it, unique
	Joined time.Time `json:"joined"`
}

// Invite is an invitation as the cluster keeps it: of the secret only its hash.
type Invite struct {
	ID         [16]byte
	SecretHash [32]byte // HashSecret
	Expires    time.Time
}

// HashSecret is what the cluster keeps of an invitation's secret.
func HashSecret(secret [32]byte) [32]byte { return sha256.Sum256(secret[:]) }

// Admits tells whether the invitation admits whoever knows a secret with this hash: nil, ErrWrongSecret or
// ErrInviteExpired. The comparison takes the same time wherever they differ.
func (i Invite) Admits(secretHash [32]byte, now time.Time) error {
	if subtle.ConstantTimeCompare(i.SecretHash[:], secretHash[:]) != 1 {
		return ErrWrongSecret
	}
	if !now.Before(i.Expires) {
		return ErrInviteExpired
	}
	return nil
}

// Group is a Raft group as the cluster knows it.
type Group struct {
	Name     string      `json:"name"`
	Slot     uint16      `json:"slot"`
	Leader   uint64      `json:"leader"` // 0: none that is known
	Voters   []uint64    `json:"voters"`
	Learners []uint64    `json:"learners,omitempty"`
	Nodes    []GroupNode `json:"nodes,omitempty"` // as far as the leader, or else this node, knows
}

// GroupNode is what is known of a group on one node.
type GroupNode struct {
	Node    uint64 `json:"node"`
	State   string `json:"state"`             // like leader, follower, learner, unreachable, snapshot
	Match   uint64 `json:"match"`             // last entry known to be in its log
	Applied uint64 `json:"applied,omitempty"` // last entry known to be applied there; 0: not known
}

// State is the replicated membership; every method answers for the whole cluster and goes through the log of group
// default. The methods may be called from any goroutine. They return ctx.Err(), wrapped, when the cluster does not
// answer in time, which is what happens without a majority.
type State interface {
	// Nodes lists the members by id.
	Nodes(ctx context.Context) ([]Node, error)
	// PutSelf records this node's name and address: at the first start of the node that makes the cluster, and
	// when they have changed. ErrNameTaken, ErrAddrTaken; ErrUnknownNode when the node has been removed. Joined
	// counts only when the node is new.
	PutSelf(ctx context.Context, n Node) error
	// PutInvite keeps an invitation until it is used or has expired.
	PutInvite(ctx context.Context, i Invite) error
	// Join uses an invitation up and admits n under a new id, never given before, in one step; n.ID is ignored. On
	// an error nothing has changed, the invitation still counts: ErrInviteUsed, ErrInviteUnknown, ErrInviteExpired,
	// ErrWrongSecret, ErrNameTaken, ErrAddrTaken.
	Join(ctx context.Context, invite [16]byte, secret [32]byte, now time.Time, n Node) (Node, error)
	// Need tells how many bytes of data blocks the store of a node must have at least: what is in use, and what is kept free.
	Need(ctx context.Context) (uint64, error)
	// Remove takes a node out of all groups and the membership. ErrUnknownNode; ErrQuorum (unless force) when the
	// others that answer are no majority.
	Remove(ctx context.Context, id uint64, force bool) error

	// Groups lists the groups by slot. It answers without a majority too.
	Groups(ctx context.Context) ([]Group, error)
	// AddGroup makes a group on the nodes of group default. ErrGroupExists.
	AddGroup(ctx context.Context, name string) error
	// RemoveGroup: ErrUnknownGroup, ErrGroupInUse for group default and for one that cannot be emptied.
	RemoveGroup(ctx context.Context, name string) error
	// MoveLeader makes a node the leader of a group and returns when it is. ErrUnknownGroup, ErrUnknownNode.
	MoveLeader(ctx context.Context, group string, node uint64) error
}

// Config is what a node needs to take part: the transport is opened with it.
type Config struct {
	ClusterID [16]byte
	NodeID    uint64
	Name      string
	Listen    string // host:port to listen on
	Advertise string // host:port at which others reach this node; never empty
	// Founder: this node made the cluster, and makes group default when it has none yet. Any other node waits until
	// it is added to the groups.
	Founder bool
	// Peers are the other nodes as they were when this one joined; empty for the founder. The replicated
	// membership is newer, once this node has it.
	Peers []Node
	// TLS has this node's certificate, for transport.NodeName(NodeID), and the cluster's authority as RootCAs and
	// ClientCAs.
	TLS *tls.Config
	// OnJoin is given connections that negotiated ALPN transport.JoinProtocol, after the handshake, without a client
	// certificate. The connection is closed when it returns. nil: such connections are refused.
	OnJoin func(net.Conn)
}

// Self is this node as a member.
func (c *Config) Self() Node { return Node{ID: c.NodeID, Name: c.Name, Addr: c.Advertise} }
