package transport

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"
)

// joinable starts node 1 of a cluster, which gives connections of joining machines to join.
func joinable(t *testing.T, ca *authority, join func(net.Conn)) (*TCP, *inbox) {
	t.Helper()
	node, err := ListenTCP(TCPConfig{ID: 1, Cluster: [16]byte{7}, Listen: "127.0.0.1:0", TLS: ca.node(t, 1), Join: join})
	if err != nil {
		t.Fatal(err)
	}
	box := &inbox{}
	if err := node.Start(box); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return node, box
}

func stranger(ca *authority, protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: ca.pool, ServerName: NodeName(1), NextProtos: protocols}
}

// A machine without a certificate gets through to Join, and its bytes nowhere else.
func TestJoinConnection(t *testing.T) {
	ca := newAuthority(t)
	got := make(chan []byte, 1)
	node, box := joinable(t, ca, func(conn net.Conn) {
		b := make([]byte, helloSize)
		_, err := io.ReadFull(conn, b)
		if err != nil {
			b = nil
		}
		_, _ = conn.Write([]byte("welcome"))
		got <- b
	})
	conn, err := tls.Dial("tcp", node.Addr(), stranger(ca, JoinProtocol))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if p := conn.ConnectionState().NegotiatedProtocol; p != JoinProtocol {
		t.Fatalf("negotiated %q", p)
	}
	// What a node would say is nothing but bytes here.
	frame, err := appendFrame(hello{kindMessages, [16]byte{7}, 2, 1}.encode(), "g", message(2, 1, 1, []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.LimitReader(conn, 7))
	if err != nil || string(b) != "welcome" {
		t.Fatalf("%q, %v", b, err)
	}
	if b := <-got; string(b) != string(frame[:helloSize]) {
		t.Fatalf("Join read %x", b)
	}
	if box.count() != 0 || node.Stats().Received != 0 {
		t.Fatal("a frame of a joining machine got to a group")
	}
}

// A node with a certificate that offers the protocol is served as one that joins.
func TestJoinConnectionWithCertificate(t *testing.T) {
	ca := newAuthority(t)
	joined := make(chan bool, 1)
	node, box := joinable(t, ca, func(net.Conn) { joined <- true })
	cfg := ca.node(t, 2)
	cfg.NextProtos = []string{"h2", JoinProtocol}
	rawHello(t, node.Addr(), cfg, hello{kindMessages, [16]byte{7}, 2, 1}.encode())
	<-joined
	if box.count() != 0 {
		t.Fatal("it got to a group")
	}
}

// Without the protocol a certificate is needed as ever, also by a client that has had a session without.
func TestNoCertificateNoGroup(t *testing.T) {
	ca := newAuthority(t)
	node, box := joinable(t, ca, func(conn net.Conn) { _, _ = conn.Write([]byte("x")) })
	cache := tls.NewLRUClientSessionCache(4)
	join := stranger(ca, JoinProtocol)
	join.ClientSessionCache = cache
	conn, err := tls.Dial("tcp", node.Addr(), join)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(conn) // takes a session ticket, if there were one
	_ = conn.Close()

	frame, err := appendFrame(hello{kindMessages, [16]byte{7}, 2, 1}.encode(), "g", message(2, 1, 1, []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	for name, protocols := range map[string][]string{"no protocol": nil, "another protocol": {"h2"}, "almost the protocol": {"vde-join/2"}} {
		before := node.Stats().Refused
		cfg := stranger(ca, protocols...)
		cfg.ClientSessionCache = cache
		rawHello(t, node.Addr(), cfg, frame)
		within(t, name+" is refused", func() bool { return node.Stats().Refused > before })
	}
	if box.count() != 0 {
		t.Fatal("a frame without a certificate got to a group")
	}
}

// A node that admits nobody refuses the handshake.
func TestNobodyJoins(t *testing.T) {
	ca := newAuthority(t)
	node, _ := joinable(t, ca, nil)
	if conn, err := tls.Dial("tcp", node.Addr(), stranger(ca, JoinProtocol)); err == nil {
		_ = conn.Close()
		t.Fatal("the handshake went through")
	}
	within(t, "it is counted", func() bool { return node.Stats().Refused == 1 })
}

// Close ends a conversation that is under way, and waits for it.
func TestCloseEndsJoins(t *testing.T) {
	ca := newAuthority(t)
	began, ended := make(chan bool), make(chan bool, 1)
	node, _ := joinable(t, ca, func(conn net.Conn) {
		close(began)
		_, _ = conn.Read(make([]byte, 1))
		time.Sleep(10 * time.Millisecond)
		ended <- true
	})
	conn, err := tls.Dial("tcp", node.Addr(), stranger(ca, JoinProtocol))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-began
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	default:
		t.Fatal("Close did not wait")
	}
}
