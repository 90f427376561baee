package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	pb "go.etcd.io/raft/v3/raftpb"

	"vdefs/consensus/transport"
)

// freeAddr finds an address of this machine that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// inbox counts the messages that arrive.
type inbox struct{ got chan uint64 }

func (b inbox) Receive(_ string, m *pb.Message)                      { b.got <- m.GetFrom() }
func (b inbox) ReceiveSnapshot(string, *pb.Message, io.Reader) error { return nil }
func (b inbox) Unreachable(uint64)                                   {}

// member is a running node: its identity, and a transport that admits others.
type member struct {
	id        *Identity
	state     *fakeState
	server    *JoinServer
	transport *transport.TCP
	box       inbox
	log       *bytes.Buffer
}

// start runs a node on a real port.
func start(t *testing.T, id *Identity, state *fakeState) *member {
	t.Helper()
	m := &member{id: id, state: state, box: inbox{make(chan uint64, 16)}, log: &bytes.Buffer{}}
	logger := logrus.New()
	logger.SetOutput(m.log)
	m.server = &JoinServer{Identity: id, State: state, Logger: logger}
	c := id.Config()
	c.OnJoin = m.server.Serve
	tr, err := transport.ListenTCP(transport.TCPConfig{ID: c.NodeID, Cluster: c.ClusterID, Listen: c.Listen, TLS: c.TLS, Join: c.OnJoin})
	if err != nil {
		t.Fatal(err)
	}
	m.transport = tr
	if err := tr.Start(m.box); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return m
}

func founder(t *testing.T) *member {
	t.Helper()
	_, id := create(t, CreateOptions{Listen: freeAddr(t), Name: "one"})
	self := id.Config().Self()
	return start(t, id, newFakeState(self))
}

func (m *member) invite(t *testing.T, life time.Duration) Token {
	t.Helper()
	token, invite, err := m.id.NewInvite(time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.state.PutInvite(t.Context(), invite); err != nil {
		t.Fatal(err)
	}
	return token
}

// Three machines: the second is invited by the first, the third by the second, and then each pair talks over TLS.
func TestJoin(t *testing.T) {
	one := founder(t)
	stores := []string{t.TempDir(), t.TempDir()}
	members := []*member{one}
	for n, store := range stores {
		inviter := members[n]
		token, err := ParseToken(inviter.invite(t, time.Hour).String())
		if err != nil {
			t.Fatal(err)
		}
		addr := freeAddr(t)
		id, err := Join(t.Context(), token, JoinOptions{Listen: addr, Name: fmt.Sprintf("n%d", n+2)})
		if err != nil {
			t.Fatal(err)
		}
		if err := id.Save(store); err != nil {
			t.Fatal(err)
		}
		loaded, err := Load(store)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Node{ID: uint64(n + 2), Name: fmt.Sprintf("n%d", n+2), Addr: addr}); loaded.Config().Self() != want {
			t.Fatalf("joined as %+v, want %+v", loaded.Config().Self(), want)
		}
		if c := loaded.Config(); c.Founder || c.ClusterID != one.id.ClusterID || len(c.Peers) != n+1 || c.Peers[0].Addr != one.id.Listen {
			t.Fatalf("%+v", c)
		}
		members = append(members, start(t, loaded, one.state))
	}
	for _, from := range members {
		for _, to := range members {
			if from == to {
				continue
			}
			from.transport.SetPeer(to.id.NodeID, to.id.Listen)
			m := &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: new(from.id.NodeID), To: new(to.id.NodeID), Term: new(uint64(1))}
			if !from.transport.Send("g", m) {
				t.Fatal("dropped")
			}
			select {
			case got := <-to.box.got:
				if got != from.id.NodeID {
					t.Fatalf("node %d heard from %d, want %d", to.id.NodeID, got, from.id.NodeID)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("node %d does not hear node %d", to.id.NodeID, from.id.NodeID)
			}
		}
	}
	nodes, err := one.state.Nodes(t.Context())
	if err != nil || len(nodes) != 3 {
		t.Fatalf("%v, %v", nodes, err)
	}
	if strings.Contains(one.log.String(), "refused") || !strings.Contains(one.log.String(), "a node has joined") {
		t.Error(one.log)
	}
}

func TestJoinIsRefused(t *testing.T) {
	one := founder(t)
	used := one.invite(t, time.Hour)
	if _, err := Join(t.Context(), used, JoinOptions{Listen: freeAddr(t), Name: "two"}); err != nil {
		t.Fatal(err)
	}
	forged := one.invite(t, time.Minute)
	forged.Expires = forged.Expires.Add(time.Hour)
	wrong := one.invite(t, time.Hour)
	wrong.Secret[3] ^= 1
	unknown, _, err := one.id.NewInvite(time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := one.invite(t, time.Hour)
	elsewhere.Addr = freeAddr(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	later := func(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }
	good := func() Token { return one.invite(t, time.Hour) }

	for name, c := range map[string]struct {
		token Token
		o     JoinOptions
		want  error
		tells string
	}{
		"used twice":                    {used, JoinOptions{Name: "three"}, ErrInviteUsed, "vde cluster invite"},
		"unknown":                       {unknown, JoinOptions{Name: "three"}, ErrInviteUnknown, "vde cluster invite"},
		"wrong secret":                  {wrong, JoinOptions{Name: "three"}, ErrWrongSecret, ""},
		"made to live longer":           {forged, JoinOptions{Name: "three"}, ErrWrongSecret, ""},
		"expired":                       {one.invite(t, -time.Minute), JoinOptions{Name: "three"}, ErrInviteExpired, "this machine's clock"},
		"a name that is taken":          {good(), JoinOptions{Name: "one"}, ErrNameTaken, "--name"},
		"a name that is none":           {good(), JoinOptions{Name: "a b"}, ErrBadName, ""},
		"an address that is in use":     {good(), JoinOptions{Name: "three", Listen: busy.Addr().String()}, ErrCannotListen, "--listen"},
		"not of this machine":           {good(), JoinOptions{Name: "three", Listen: "192.0.2.1:7420"}, ErrCannotListen, ""},
		"nobody there":                  {elsewhere, JoinOptions{Name: "three"}, ErrUnreachable, elsewhere.Addr},
		"advertised where nobody is":    {good(), JoinOptions{Name: "three", Advertise: elsewhere.Addr}, ErrUnreachable, elsewhere.Addr},
		"advertised as somebody else":   {good(), JoinOptions{Name: "three", Advertise: one.id.Listen}, ErrUnreachable, "somebody else answers"},
		"no address for others":         {good(), JoinOptions{Name: "three", Listen: "0.0.0.0:7420"}, ErrBadAddr, "--advertise"},
		"a clock that is ahead":         {good(), JoinOptions{Name: "three", Now: later(2 * time.Minute)}, ErrClock, "2m0s ahead of"},
		"a clock that is behind":        {good(), JoinOptions{Name: "three", Now: later(-2 * time.Minute)}, ErrClock, "2m0s behind"},
		"a clock from before the flood": {good(), JoinOptions{Name: "three", Now: later(-100 * 24 * time.Hour)}, ErrClock, "set the clock"},
	} {
		if c.o.Listen == "" {
			c.o.Listen = freeAddr(t)
		}
		id, err := Join(t.Context(), c.token, c.o)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.tells) || id != nil {
			t.Errorf("%s: %v, want %v with %q", name, err, c.want, c.tells)
		}
	}
	if nodes, _ := one.state.Nodes(t.Context()); len(nodes) != 2 {
		t.Errorf("there are %v", nodes)
	}
	if strings.Contains(one.log.String(), string(used.Secret[:])) {
		t.Error("the log has a secret")
	}
	// A store that does not hold what is there is refused with both numbers; one that is large enough, and one whose size is not told, is not.
	small := good()
	one.state.need = 300 << 20
	_, err = Join(t.Context(), small, JoinOptions{Name: "three", Listen: freeAddr(t), Room: 200 << 20})
	if !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), "300 MiB") || !strings.Contains(err.Error(), "200 MiB") {
		t.Errorf("a store that is too small: %v", err)
	}
	if id, err := Join(t.Context(), small, JoinOptions{Name: "large", Listen: freeAddr(t), Room: 300 << 20}); err != nil || time.Since(id.Joined).Abs() > time.Hour {
		t.Errorf("a store that is large enough: %+v, %v", id, err)
	}
	// An invitation whose use failed still counts.
	again := good()
	if _, err := Join(t.Context(), again, JoinOptions{Name: "one", Listen: freeAddr(t)}); !errors.Is(err, ErrNameTaken) {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), again, JoinOptions{Name: "three", Listen: freeAddr(t)}); err != nil {
		t.Fatal(err)
	}
}

// A node that does not insist on a name gets one that nobody has; its address is its own.
func TestUniqueNames(t *testing.T) {
	one := founder(t)
	names := []string{"one"}
	for range 3 {
		id, err := Join(t.Context(), one.invite(t, time.Hour), JoinOptions{Listen: freeAddr(t)})
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(names, id.Name) || !strings.HasPrefix(id.Name, DefaultName()) {
			t.Fatalf("%q after %q", id.Name, names)
		}
		names = append(names, id.Name)
	}
}

// Two machines with one token: one of them joins.
func TestOneTokenTwoMachines(t *testing.T) {
	one := founder(t)
	token := one.invite(t, time.Hour)
	var both sync.WaitGroup
	errs := make([]error, 2)
	for n := range errs {
		addr := freeAddr(t)
		both.Go(func() { _, errs[n] = Join(t.Context(), token, JoinOptions{Listen: addr}) })
	}
	both.Wait()
	if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), ErrInviteUsed) {
		t.Fatalf("%v", errs)
	}
}

// Without a majority nobody joins, and the new machine is told so.
func TestJoinWithoutMajority(t *testing.T) {
	one := founder(t)
	token := one.invite(t, time.Hour)
	one.state.stuck = true
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	q := request{Invite: token.Invite[:], Secret: token.Secret[:], Expires: token.Expires.Unix(), Name: "two", Addr: freeAddr(t), Time: time.Now(), Nonce: make([]byte, 16)}
	stop, err := answerProbes(q.Addr, q.Nonce)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	q.CSR = sampleCSR(t)
	_, err = one.server.admit(ctx, q)
	if !errors.Is(err, ErrQuorum) || !errors.Is(refusal(err).err(), ErrQuorum) {
		t.Fatal(err)
	}
}

// impostor listens and does what serve says with each connection.
func impostor(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); serve(conn) }()
		}
	}()
	return l.Addr().String()
}

// Whoever answers at the address without the cluster's authority does not get to see the secret.
func TestImpostors(t *testing.T) {
	one := founder(t)
	_, other := create(t, CreateOptions{})
	var mu sync.Mutex
	var heard []byte
	listen := func(conn io.Reader) {
		b, _ := io.ReadAll(io.LimitReader(conn, 1<<16))
		mu.Lock()
		heard = append(heard, b...)
		mu.Unlock()
	}
	speak := func(c *tls.Config) func(net.Conn) {
		c.NextProtos = []string{transport.JoinProtocol}
		return func(conn net.Conn) {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			listen(tls.Server(conn, c))
		}
	}
	foreign := other.Config().TLS
	// One that shows the right authority, which did not sign its certificate.
	borrowed := other.Config().TLS
	borrowed.Certificates[0].Certificate = [][]byte{other.Cert.Raw, one.id.CA.Raw}
	// One whose own certificate is the authority's: it lacks the key, so the handshake cannot end well.
	copied := other.Config().TLS
	copied.Certificates[0].Certificate = [][]byte{one.id.Cert.Raw, one.id.CA.Raw}

	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  error
	}{
		"another cluster":          {speak(foreign), ErrOtherCluster},
		"a certificate of another": {speak(borrowed), ErrOtherCluster},
		"a copied certificate":     {speak(copied), ErrUnreachable},
		"no TLS":                   {func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n") }, ErrOtherCluster},
		"somebody who hangs up":    {func(net.Conn) {}, ErrUnreachable},
	} {
		token := one.invite(t, time.Hour)
		token.Addr = impostor(t, c.serve)
		if _, err := Join(t.Context(), token, JoinOptions{Listen: freeAddr(t)}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		mu.Lock()
		if len(heard) > 0 {
			t.Errorf("%s: it heard %q", name, heard)
		}
		heard = nil
		mu.Unlock()
	}
}

// An answer that does not fit together is not taken, even from a node of the cluster.
func TestStrangeAnswers(t *testing.T) {
	one := founder(t)
	_, other := create(t, CreateOptions{})
	token := one.invite(t, time.Hour)
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	good, err := one.server.welcome(t.Context(), Node{ID: 2, Name: "two"}, &key.PublicKey, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := (&JoinServer{Identity: other, State: one.state}).welcome(t.Context(), Node{ID: 2, Name: "two"}, &key.PublicKey, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	accept := func(a answer) error {
		i := &Identity{Listen: "127.0.0.1:7420", Name: "two", Key: key}
		return i.accept(a, token)
	}
	if err := accept(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*answer){
		"nothing":                 func(a *answer) { *a = answer{} },
		"another authority":       func(a *answer) { a.CA = foreign.CA },
		"another authority's key": func(a *answer) { a.CAKey = foreign.CAKey },
		"another's certificate":   func(a *answer) { a.Cert = foreign.Cert },
		"another node":            func(a *answer) { a.Node.ID = 3 },
		"no node":                 func(a *answer) { a.Node = Node{} },
		"a name that is none":     func(a *answer) { a.Node.Name = "a b" },
		"a short id":              func(a *answer) { a.ClusterID = a.ClusterID[:3] },
		"no certificate":          func(a *answer) { a.Cert = nil },
		"a torn key":              func(a *answer) { a.CAKey = a.CAKey[:20] },
	} {
		a := good
		change(&a)
		if err := accept(a); !errors.Is(err, ErrRequest) && !errors.Is(err, ErrOtherCluster) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Guessing secrets ends after a few, for a while, and for the host that guesses alone.
func TestGuessing(t *testing.T) {
	one := founder(t)
	now := time.Now()
	one.server.Now = func() time.Time { return now }
	wrong := one.invite(t, time.Hour)
	wrong.Secret[0] ^= 1
	addr := freeAddr(t)
	for n := range guessLimit {
		if _, err := Join(t.Context(), wrong, JoinOptions{Listen: addr}); !errors.Is(err, ErrWrongSecret) {
			t.Fatalf("guess %d: %v", n, err)
		}
	}
	good := one.invite(t, time.Hour)
	for _, token := range []Token{wrong, good} {
		if _, err := Join(t.Context(), token, JoinOptions{Listen: addr}); !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
	}
	if !one.server.listens("192.0.2.1") {
		t.Fatal("another host has to wait too")
	}
	now = now.Add(guessWindow + time.Second)
	if !one.server.listens("127.0.0.1") || len(one.server.wrong) != 0 {
		t.Fatal("it is never forgotten")
	}
	for n := range 2 * guessHosts {
		one.server.guessed(fmt.Sprint(n))
	}
	if len(one.server.wrong) > guessHosts {
		t.Fatalf("%d hosts are remembered", len(one.server.wrong))
	}
}

// What is no request is answered with an error, and never more is read than a request may have.
func TestNoRequests(t *testing.T) {
	one := founder(t)
	for name, b := range map[string][]byte{
		"too long":      {0xff, 0xff, 0xff, 0xff},
		"no JSON":       {3, 0, 0, 0, 'a', 'b', 'c'},
		"an empty one":  {2, 0, 0, 0, '{', '}'},
		"not an object": {2, 0, 0, 0, '1', '2'},
	} {
		conn, err := tls.Dial("tcp", one.id.Listen, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{transport.JoinProtocol}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		var a answer
		if err := readMessage(conn, &a, maxAnswer); err != nil || !errors.Is(a.err(), ErrRequest) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		conn.Close()
	}
}

func sampleCSR(t testing.TB) []byte {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := newCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00{}"))
	f.Add([]byte(`{"invite":"AAAA","csr":"MIIB"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q request
		_ = readMessage(bytes.NewReader(b), &q, maxRequest)
		_, _ = requestKey(b)
		var a answer
		if readMessage(bytes.NewReader(b), &a, maxAnswer) == nil && a.err() == nil {
			_ = new(Identity).accept(a, Token{})
		}
	})
}
