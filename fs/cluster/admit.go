package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	// maxConversations are served at a time.
	maxConversations = 8
	// A host that was wrong guessLimit times within guessWindow is not listened to until that is over.
	guessLimit  = 10
	guessWindow = 10 * time.Minute
	// guessHosts are remembered; when there are more, strangers have to wait.
	guessHosts = 1024
	// nameTries bounds the numbers that are put behind a name to make it unique.
	nameTries = 1000
)

// JoinServer admits new nodes. Its fields are not changed once it serves.
type JoinServer struct {
	Identity *Identity
	State    State
	Logger   logrus.FieldLogger
	Now      func() time.Time // nil: time.Now
	// Context ends the conversations that are going on. nil: each ends by itself.
	Context context.Context

	mu      sync.Mutex // guards what follows
	serving int
	wrong   map[string]guesses // by host
}

// guesses are the wrong secrets that came from a host since a time.
type guesses struct {
	count int
	since time.Time
}

func (s *JoinServer) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// Serve has the conversation with one new node, on a connection whose TLS handshake is done, and returns after half a minute
// at the latest. The caller closes the connection. It may be called from any goroutine.
func (s *JoinServer) Serve(conn net.Conn) {
	ctx := s.Context
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, conversation)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		host = conn.RemoteAddr().String()
	}
	log := s.Logger.WithField("from", host)

	a, err := s.serve(ctx, conn, host)
	if err != nil {
		log.WithError(err).Warn("a machine that asked to join was refused")
		a = refusal(err)
	}
	werr := writeMessage(conn, a, maxAnswer)
	switch {
	case err != nil:
		// What is still unread when the connection is closed would take the answer with it.
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, maxRequest))
	case werr != nil:
		log.WithError(werr).WithFields(logrus.Fields{"node": a.Node.ID, "name": a.Node.Name}).
			Errorf("a node was admitted, but the answer did not reach it: remove it with `vde cluster remove STORE %d` and invite again", a.Node.ID)
	default:
		log.WithFields(logrus.Fields{"node": a.Node.ID, "name": a.Node.Name, "addr": a.Node.Addr}).Info("a node has joined")
	}
}

func (s *JoinServer) serve(ctx context.Context, conn net.Conn, host string) (answer, error) {
	if !s.enter() {
		return answer{}, ErrBusy
	}
	defer s.leave()
	var q request
	if err := readMessage(conn, &q, maxRequest); err != nil {
		s.guessed(host)
		return answer{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if !s.listens(host) {
		return answer{}, ErrBusy
	}
	a, err := s.admit(ctx, q)
	if errors.Is(err, ErrWrongSecret) || errors.Is(err, ErrInviteUnknown) || errors.Is(err, ErrRequest) {
		s.guessed(host)
	}
	return a, err
}

// admit judges a request and makes its sender a node. Nothing is done for a stranger before the secret has been found right.
func (s *JoinServer) admit(ctx context.Context, q request) (answer, error) {
	now := s.now()
	invite, secret, err := s.checkSecret(q)
	if err != nil {
		return answer{}, err
	}
	if d := q.Time.Sub(now); d.Abs() > MaxClockDifference {
		return answer{}, fmt.Errorf("%w: the new node's clock is %v %s that of node %q, at most %v are allowed: set the clocks, best by NTP",
			ErrClock, d.Abs().Round(time.Second), aheadOrBehind(d), s.Identity.Name, MaxClockDifference)
	}
	if expires := time.Unix(q.Expires, 0); !now.Before(expires) {
		return answer{}, fmt.Errorf("%w at %s: make another with `vde cluster invite`", ErrInviteExpired, expires.UTC().Format(time.RFC3339))
	}
	key, err := requestKey(q.CSR)
	if err != nil {
		return answer{}, fmt.Errorf("%w: the certificate request: %w", ErrRequest, err)
	}
	if err := errors.Join(CheckName(q.Name), CheckAddr(q.Addr)); err != nil {
		return answer{}, err
	}
	if err := s.hasRoom(ctx, q.Room); err != nil {
		return answer{}, s.explain(err, q)
	}
	if err := probe(ctx, q.Addr, q.Nonce); err != nil {
		return answer{}, fmt.Errorf("%w: node %q does not find the new node at %s: %w; is it the right address, and not closed by a firewall?",
			ErrUnreachable, s.Identity.Name, q.Addr, err)
	}
	node, err := s.join(ctx, invite, secret, now, q)
	if err != nil {
		return answer{}, s.explain(err, q)
	}
	return s.welcome(ctx, node, key, now)
}

// checkSecret compares in the same time wherever the secrets differ.
func (s *JoinServer) checkSecret(q request) (invite [16]byte, secret [32]byte, err error) {
	if len(q.Invite) != len(invite) || len(q.Secret) != len(secret) || len(q.Nonce) < 16 {
		return invite, secret, fmt.Errorf("%w: invitation, secret or nonce are too short", ErrRequest)
	}
	invite, secret = [16]byte(q.Invite), [32]byte(q.Secret)
	want, err := s.Identity.inviteSecret(invite, time.Unix(q.Expires, 0))
	if err == nil && subtle.ConstantTimeCompare(want[:], secret[:]) != 1 {
		err = ErrWrongSecret
	}
	return invite, secret, err
}

// hasRoom refuses a node whose store would not hold what the cluster has.
func (s *JoinServer) hasRoom(ctx context.Context, room uint64) error {
	if room == 0 {
		return nil
	}
	need, err := s.State.Need(ctx)
	if err == nil && room < need {
		err = fmt.Errorf("%w: a node has room for everything, so this one needs at least %d MiB of data blocks, and a store of this size has %d MiB: join with a larger --size",
			ErrNoRoom, (need+1<<20-1)>>20, room>>20)
	}
	return err
}

// join has the State admit the node, under a name that is made unique if the node does not insist on one.
func (s *JoinServer) join(ctx context.Context, invite [16]byte, secret [32]byte, now time.Time, q request) (Node, error) {
	for n := 1; ; n++ {
		node := Node{Name: uniqueName(q.Name, n), Addr: q.Addr, Joined: now.UTC().Truncate(time.Second)}
		admitted, err := s.State.Join(ctx, invite, secret, now, node)
		if !errors.Is(err, ErrNameTaken) || !q.Unique || n == nameTries {
			return admitted, err
		}
	}
}

// explain says what an error of State.Join is about.
func (s *JoinServer) explain(err error, q request) error {
	switch {
	case errors.Is(err, ErrNameTaken):
		return fmt.Errorf("%w: %q; choose another with --name", err, q.Name)
	case errors.Is(err, ErrAddrTaken):
		return fmt.Errorf("%w: %s; remove that node first if this one takes its place", err, q.Addr)
	case errors.Is(err, ErrInviteUsed), errors.Is(err, ErrInviteUnknown), errors.Is(err, ErrInviteExpired):
		return fmt.Errorf("%w: make another with `vde cluster invite`", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: too few nodes of the cluster answer to admit another: %w", ErrQuorum, err)
	}
	return err
}

// welcome makes what an admitted node needs to know.
func (s *JoinServer) welcome(ctx context.Context, node Node, key *ecdsa.PublicKey, now time.Time) (answer, error) {
	fail := func(err error) (answer, error) {
		return answer{}, fmt.Errorf("node %d was admitted, but cannot be told: remove it with `vde cluster remove STORE %d`: %w", node.ID, node.ID, err)
	}
	cert, err := certify(s.Identity.CA, s.Identity.CAKey, node.ID, key, now)
	if err != nil {
		return fail(err)
	}
	caKey, err := x509.MarshalPKCS8PrivateKey(s.Identity.CAKey)
	if err != nil {
		return fail(err)
	}
	nodes, err := s.State.Nodes(ctx)
	if err != nil {
		return fail(err)
	}
	a := answer{ClusterID: s.Identity.ClusterID[:], Node: node, Cert: cert.Raw, CA: s.Identity.CA.Raw, CAKey: caKey}
	for _, n := range nodes {
		if n.ID != node.ID {
			a.Peers = append(a.Peers, n)
		}
	}
	return a, nil
}

// probe finds out whether an address leads to the node that knows the nonce.
func probe(ctx context.Context, addr string, nonce []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	want := probeGreeting(nonce)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		return errors.New("somebody else answers there")
	}
	return nil
}

func (s *JoinServer) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving >= maxConversations {
		return false
	}
	s.serving++
	return true
}

func (s *JoinServer) leave() {
	s.mu.Lock()
	s.serving--
	s.mu.Unlock()
}

// listens tells whether a host has not guessed too often.
func (s *JoinServer) listens(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for h, g := range s.wrong {
		if now.Sub(g.since) > guessWindow {
			delete(s.wrong, h)
		}
	}
	g, known := s.wrong[host]
	return g.count < guessLimit && (known || len(s.wrong) < guessHosts)
}

// guessed notes that a host was wrong.
func (s *JoinServer) guessed(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, known := s.wrong[host]
	if !known {
		if len(s.wrong) >= guessHosts {
			return
		}
		g.since = s.now()
	}
	g.count++
	if s.wrong == nil {
		s.wrong = map[string]guesses{}
	}
	s.wrong[host] = g
}

func aheadOrBehind(d time.Duration) string {
	if d > 0 {
		return "ahead of"
	}
	return "behind"
}
