package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// WIRE.md draws the conversation.
const (
	maxRequest = 16 << 10 // bytes, far more than a request has
	maxAnswer  = 4 << 20  // bytes; a node in the list takes some 150

	// conversation bounds one joining, from the handshake to the answer; callDeadline the call that tries the new
	// node's address within it.
	conversation = 30 * time.Second
	callDeadline = 5 * time.Second

	// MaxClockDifference is how far the clocks of a new node and of the cluster may differ.
	MaxClockDifference = time.Minute
)

// request is what a new node sends.
type request struct {
	Invite  []byte    `json:"invite"`
	Secret  []byte    `json:"secret"`
	Expires int64     `json:"expires"` // of the invitation, seconds since 1970
	CSR     []byte    `json:"csr"`     // certificate request for its key
	Name    string    `json:"name"`
	Unique  bool      `json:"unique"` // a number may be put behind the name
	Addr    string    `json:"addr"`
	Nonce   []byte    `json:"nonce"` // what answers at addr knows it
	Time    time.Time `json:"time"`
	Room    uint64    `json:"room,omitempty"` // bytes of data blocks of its store; 0: not told
}

// answer is what it gets: an error, or all the rest.
type answer struct {
	Code  string `json:"code,omitempty"` // of errorCodes
	Error string `json:"error,omitempty"`

	ClusterID []byte `json:"cluster_id,omitempty"`
	Node      Node   `json:"node,omitzero"`
	Cert      []byte `json:"cert,omitempty"`   // DER
	CA        []byte `json:"ca,omitempty"`     // DER
	CAKey     []byte `json:"ca_key,omitempty"` // PKCS #8
	Peers     []Node `json:"peers,omitempty"`
}

// Errors of the conversation itself.
var (
	ErrClock        = errors.New("the clocks differ")
	ErrUnreachable  = errors.New("the address cannot be reached")
	ErrCannotListen = errors.New("the address cannot be listened on")
	ErrOtherCluster = errors.New("what answers there is not of the cluster that made the invitation")
	ErrBusy         = errors.New("the node admits too many at the moment, or was given too many wrong secrets: try again in a few minutes")
	ErrRequest      = errors.New("the message makes no sense")
)

// errorCodes are the errors that cross the wire as themselves.
var errorCodes = map[string]error{
	"invite-unknown": ErrInviteUnknown, "invite-used": ErrInviteUsed, "invite-expired": ErrInviteExpired, "wrong-secret": ErrWrongSecret,
	"name-taken": ErrNameTaken, "addr-taken": ErrAddrTaken, "bad-name": ErrBadName, "bad-addr": ErrBadAddr,
	"clock": ErrClock, "unreachable": ErrUnreachable, "busy": ErrBusy, "no-room": ErrNoRoom, "request": ErrRequest, "quorum": ErrQuorum,
}

// refusal makes the answer of an error.
func refusal(err error) answer {
	a := answer{Code: "failed", Error: err.Error()}
	for code, known := range errorCodes {
		if errors.Is(err, known) {
			a.Code = code
		}
	}
	return a
}

// remoteError is an error that came over the wire: its text, and what it is.
type remoteError struct {
	text string
	is   error // nil: none of errorCodes
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

// err gives an answer's error.
func (a answer) err() error {
	if a.Code == "" {
		return nil
	}
	return &remoteError{fmt.Sprintf("the cluster says: %.1000s", a.Error), errorCodes[a.Code]}
}

// probeGreeting is what a new node says, while it joins, to whoever calls the address that it will have: that is how the cluster
// knows that the address leads there.
func probeGreeting(nonce []byte) []byte {
	sum := sha256.Sum256(append([]byte("vde join probe "), nonce...))
	return sum[:]
}

// writeMessage writes a value as JSON behind its length.
func writeMessage(w io.Writer, v any, limit int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > limit {
		return fmt.Errorf("the message has %d bytes, at most %d are allowed", len(b), limit)
	}
	_, err = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readMessage reads what writeMessage wrote.
func readMessage(r io.Reader, v any, limit int) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return fmt.Errorf("a message of %d bytes, at most %d are allowed", n, limit)
	}
	// Memory is taken as the bytes come, not as the length promises.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(b) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(b, v)
}
