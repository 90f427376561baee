package cluster

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"vdefs/consensus/transport"
)

// JoinOptions say how a new node wants to be known.
type JoinOptions struct {
	Name      string // empty: DefaultName, made unique
	Listen    string
	Advertise string           // empty: Listen
	Room      uint64           // bytes of data blocks that the store of the node will have; 0: not told, so not checked either
	Now       func() time.Time // nil: time.Now
}

// Join asks the node that a token names to admit this machine, and returns who it is from then on. The caller saves that; until
// it has, what Join did can only be undone by removing the node. The errors: ErrInviteExpired and the others of State.Join,
// ErrClock, ErrCannotListen (this machine cannot listen on its address), ErrUnreachable (this machine does not reach the
// cluster, or the cluster does not reach this machine), ErrOtherCluster, ErrBadName, ErrBadAddr, ErrBusy, ErrQuorum, ErrNoRoom.
func Join(ctx context.Context, token Token, o JoinOptions) (*Identity, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	i := &Identity{Name: o.Name, Listen: o.Listen, Advertise: o.Advertise}
	unique := o.Name == ""
	if unique {
		i.Name = DefaultName()
	}
	if err := CheckName(i.Name); err != nil {
		return nil, err
	}
	if _, err := advertised(i.Listen, i.Advertise); err != nil {
		return nil, err
	}
	if now := o.Now(); !now.Before(token.Expires) {
		return nil, fmt.Errorf("%w at %s, and this machine's clock says %s: make another with `vde cluster invite`, or set the clock",
			ErrInviteExpired, token.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	answering, err := answerProbes(i.Listen, nonce)
	if err != nil {
		return nil, err
	}
	defer answering()
	if i.Key, err = newKey(); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	csr, err := newCSR(i.Key)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	a, err := converse(ctx, token, o.Now, request{
		Invite: token.Invite[:], Secret: token.Secret[:], Expires: token.Expires.Unix(), CSR: csr, Name: i.Name, Unique: unique, Addr: i.address(), Nonce: nonce,
		Room: o.Room,
	})
	if err != nil {
		return nil, err
	}
	if err := i.accept(a, token); err != nil {
		return nil, fmt.Errorf("the answer of the node at %s: %w", token.Addr, err)
	}
	return i, nil
}

// converse sends a request to the node that the token names and returns what it answers, once that node has proved to be of
// the cluster that made the token.
func converse(ctx context.Context, token Token, now func() time.Time, q request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, conversation)
	defer cancel()
	raw, err := (&net.Dialer{Timeout: callDeadline}).DialContext(ctx, "tcp", token.Addr)
	if err != nil {
		return answer{}, fmt.Errorf("%w: the node that made the invitation, at %s: %w; does it run, and is the port open?", ErrUnreachable, token.Addr, err)
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{transport.JoinProtocol},
		// No name and no root is known, only the root's fingerprint.
		InsecureSkipVerify: true,
		VerifyConnection:   func(state tls.ConnectionState) error { return verifyCluster(state, token.Fingerprint, now()) },
	})
	err = conn.HandshakeContext(ctx)
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, ErrOtherCluster), errors.Is(err, ErrClock):
		return answer{}, fmt.Errorf("the node at %s: %w", token.Addr, err)
	case errors.As(err, &record):
		return answer{}, fmt.Errorf("the node at %s: %w: it does not speak TLS", token.Addr, ErrOtherCluster)
	case err != nil:
		return answer{}, fmt.Errorf("%w: the node at %s ended the handshake: %w", ErrUnreachable, token.Addr, err)
	}
	q.Time = now().UTC()
	if err := writeMessage(conn, q, maxRequest); err != nil {
		return answer{}, fmt.Errorf("%w: sending to the node at %s: %w", ErrUnreachable, token.Addr, err)
	}
	var a answer
	if err := readMessage(conn, &a, maxAnswer); err != nil {
		return answer{}, fmt.Errorf("%w: no answer from the node at %s: %w; see `vde cluster status` there whether this machine was admitted", ErrUnreachable, token.Addr, err)
	}
	return a, a.err()
}

// verifyCluster checks that the other side has a certificate of the authority with this fingerprint.
func verifyCluster(state tls.ConnectionState, want [32]byte, now time.Time) error {
	certs := state.PeerCertificates
	if len(certs) == 0 {
		return ErrOtherCluster
	}
	for _, ca := range certs[1:] {
		if fingerprint(ca) != want {
			continue
		}
		err := verifyNode(ca, certs[0], 0, now)
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return fmt.Errorf("%w: by this machine's clock it is %s, but the cluster's certificates hold from %s to %s: set the clock",
				ErrClock, now.UTC().Format(time.RFC3339), certs[0].NotBefore.UTC().Format(time.RFC3339), certs[0].NotAfter.UTC().Format(time.RFC3339))
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrOtherCluster, err)
		}
		return nil
	}
	return ErrOtherCluster
}

// accept takes over what the cluster answered, if it fits together.
func (i *Identity) accept(a answer, token Token) error {
	if len(a.ClusterID) != len(i.ClusterID) {
		return fmt.Errorf("%w: the cluster's id has %d bytes", ErrRequest, len(a.ClusterID))
	}
	i.ClusterID, i.NodeID, i.Name, i.Peers, i.Joined = [16]byte(a.ClusterID), a.Node.ID, a.Node.Name, a.Peers, a.Node.Joined
	var err error
	if i.CA, err = x509.ParseCertificate(a.CA); err != nil {
		return fmt.Errorf("%w: the authority's certificate: %w", ErrRequest, err)
	}
	if fingerprint(i.CA) != token.Fingerprint {
		return ErrOtherCluster
	}
	if i.CAKey, err = parseKey(a.CAKey); err != nil {
		return fmt.Errorf("%w: the authority's key: %w", ErrRequest, err)
	}
	if i.Cert, err = x509.ParseCertificate(a.Cert); err != nil {
		return fmt.Errorf("%w: the certificate: %w", ErrRequest, err)
	}
	if err := i.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return nil
}

// answerProbes listens on an address and tells whoever calls that it is this machine, until the returned function is called. That
// shows, too, that the address can be listened on.
func answerProbes(listen string, nonce []byte) (stop func(), err error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("%w: %w; choose another with --listen", ErrCannotListen, err)
	}
	greeting := probeGreeting(nonce)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
				continue
			}
			_ = conn.SetDeadline(time.Now().Add(callDeadline))
			_, _ = conn.Write(greeting)
			_ = conn.Close()
		}
	})
	return func() {
		_ = l.Close()
		running.Wait()
	}, nil
}
