package transport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The suite runs on every implementation: maker makes the transports of the nodes
// 1..n, which know each other.
type maker func(t *testing.T, n int) []Transport

var implementations = map[string]maker{
	"memory": func(t *testing.T, n int) []Transport {
		net := NewNetwork()
		var ts []Transport
		for i := range n {
			ts = append(ts, net.Join(uint64(i+1)))
		}
		introduce(ts, func(int) string { return "memory" })
		return ts
	},
	"tcp": func(t *testing.T, n int) []Transport { return tcpNodes(t, n, nil) },
	"tls": func(t *testing.T, n int) []Transport { return tcpNodes(t, n, newAuthority(t)) },
}

func introduce(ts []Transport, addr func(i int) string) {
	for _, t := range ts {
		for j := range ts {
			t.SetPeer(uint64(j+1), addr(j))
		}
	}
}

func tcpNodes(t *testing.T, n int, ca *authority) []Transport {
	var ts []Transport
	for i := range n {
		cfg := TCPConfig{ID: uint64(i + 1), Cluster: [16]byte{7}, Listen: "127.0.0.1:0", QueueBytes: 8 << 20}
		if ca != nil {
			cfg.TLS = ca.node(t, uint64(i+1))
		}
		tr, err := ListenTCP(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ts = append(ts, tr)
	}
	introduce(ts, func(i int) string { return ts[i].(*TCP).Addr() })
	return ts
}

// appendFrame appends the frame of a message to b.
func appendFrame(b []byte, group string, m *pb.Message) ([]byte, error) {
	var w frameWriter
	pieces, err := w.encode(group, m)
	return append(b, bytes.Join(pieces, nil)...), err
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test cluster"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) node(t testing.TB, id uint64) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(int64(id) + 1), DNSNames: []string{NodeName(id)}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      a.pool, ClientCAs: a.pool,
	}
}

// inbox is a handler that keeps what arrives.
type inbox struct {
	mu        sync.Mutex
	got       []received
	snapshots map[string][]byte
	refuse    error
	block     chan struct{} // Receive waits for it, when not nil
	lost      map[uint64]int
}

type received struct {
	group string
	m     *pb.Message
}

func (b *inbox) Receive(group string, m *pb.Message) {
	if b.block != nil {
		<-b.block
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, received{group, m})
}

func (b *inbox) ReceiveSnapshot(group string, m *pb.Message, data io.Reader) error {
	d, err := io.ReadAll(data)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		return err
	}
	if b.snapshots == nil {
		b.snapshots = map[string][]byte{}
	}
	b.snapshots[group] = d
	return b.refuse
}

func (b *inbox) Unreachable(peer uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost == nil {
		b.lost = map[uint64]int{}
	}
	b.lost[peer]++
}

func (b *inbox) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.got)
}

func eachImplementation(t *testing.T, n int, f func(t *testing.T, ts []Transport, boxes []*inbox)) {
	for name, make := range implementations {
		t.Run(name, func(t *testing.T) {
			ts := make(t, n)
			var boxes []*inbox
			for _, tr := range ts {
				b := &inbox{}
				boxes = append(boxes, b)
				if err := tr.Start(b); err != nil {
					t.Fatal(err)
				}
			}
			defer func() {
				for _, tr := range ts {
					if err := tr.Close(); err != nil {
						t.Error(err)
					}
				}
			}()
			f(t, ts, boxes)
		})
	}
}

func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened: %s", what)
		}
	}
}

func message(from, to, index uint64, data []byte) *pb.Message {
	return &pb.Message{
		Type: pb.MsgApp.Enum(), From: new(from), To: new(to), Term: new(uint64(3)), Index: new(index),
		Entries: []*pb.Entry{{Term: new(uint64(3)), Index: new(index + 1), Type: pb.EntryNormal.Enum(), Data: data}},
	}
}

func TestSuiteDelivers(t *testing.T) {
	eachImplementation(t, 3, func(t *testing.T, ts []Transport, boxes []*inbox) {
		const n = 200
		for i := range uint64(n) {
			for _, to := range []uint64{2, 3} {
				if !ts[0].Send(fmt.Sprintf("g%d", i%5), message(1, to, i, fmt.Appendf(nil, "%d for %d", i, to))) {
					t.Fatalf("message %d was dropped", i)
				}
			}
		}
		for k, to := range []uint64{2, 3} {
			b := boxes[k+1]
			within(t, "all messages arrive", func() bool { return b.count() == n })
			for i, r := range b.got {
				if r.m.GetIndex() != uint64(i) || r.group != fmt.Sprintf("g%d", i%5) || r.m.GetTo() != to ||
					string(r.m.Entries[0].GetData()) != fmt.Sprintf("%d for %d", i, to) {
					t.Fatalf("message %d is %v for %s", i, r.m, r.group)
				}
			}
		}
		if boxes[0].count() != 0 {
			t.Fatal("node 1 got something")
		}
	})
}

func TestSuiteLargeMessages(t *testing.T) {
	eachImplementation(t, 2, func(t *testing.T, ts []Transport, boxes []*inbox) {
		sizes := []int{0, 1, 64<<10 - 1, 64 << 10, 1<<20 + 7, 5 << 20}
		for i, size := range sizes {
			i := uint64(i)
			within(t, "the queue has room", func() bool { return ts[0].Send("g", message(1, 2, i, bytes.Repeat([]byte{byte(i + 1)}, size))) })
		}
		within(t, "all messages arrive", func() bool { return boxes[1].count() == len(sizes) })
		for i, r := range boxes[1].got {
			if d := r.m.Entries[0].GetData(); !bytes.Equal(d, bytes.Repeat([]byte{byte(i + 1)}, sizes[i])) {
				t.Fatalf("message %d has %d bytes, want %d", i, len(d), sizes[i])
			}
		}
	})
}

func TestSuiteUnknownPeerAndClosed(t *testing.T) {
	eachImplementation(t, 2, func(t *testing.T, ts []Transport, boxes []*inbox) {
		if ts[0].Send("g", message(1, 9, 1, nil)) {
			t.Fatal("a message for an unknown node was taken")
		}
		if err := ts[0].SendSnapshot(context.Background(), "g", &pb.Message{Type: pb.MsgSnap.Enum(), To: new(uint64(9))}, bytes.NewReader(nil)); !errors.Is(err, ErrUnknownPeer) {
			t.Fatalf("snapshot for an unknown node: %v", err)
		}
		ts[0].SetPeer(2, "")
		if ts[0].Send("g", message(1, 2, 1, nil)) {
			t.Fatal("a message for a forgotten node was taken")
		}
		if err := ts[0].Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSuiteSlowPeerBlocksNobody(t *testing.T) {
	eachImplementation(t, 3, func(t *testing.T, ts []Transport, boxes []*inbox) {
		boxes[1].block = make(chan struct{})
		defer close(boxes[1].block)
		dropped := false
		for i := range uint64(3000) {
			begin := time.Now()
			if !ts[0].Send("g", message(1, 2, i, make([]byte, 32<<10))) {
				dropped = true
			}
			if d := time.Since(begin); d > 2*time.Second {
				t.Fatalf("Send blocked for %v", d)
			}
			if dropped {
				break
			}
		}
		if !dropped {
			t.Fatal("the queue has no bound")
		}
		if !ts[0].Send("g", message(1, 3, 1, []byte("x"))) {
			t.Fatal("the message for the other node was dropped")
		}
		within(t, "the other node gets its message", func() bool { return boxes[2].count() == 1 })
	})
}

func TestSuiteSnapshots(t *testing.T) {
	eachImplementation(t, 2, func(t *testing.T, ts []Transport, boxes []*inbox) {
		m := &pb.Message{Type: pb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(1)),
			Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(uint64(5)), Term: new(uint64(1)), ConfState: &pb.ConfState{}}}}
		for _, size := range []int{0, 1, snapshotChunk, 3*snapshotChunk + 5} {
			data := make([]byte, size)
			_, _ = rand.Read(data)
			if err := ts[0].SendSnapshot(context.Background(), "g", m, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(boxes[1].snapshots["g"], data) {
				t.Fatalf("a snapshot of %d bytes arrived with %d", size, len(boxes[1].snapshots["g"]))
			}
		}
		boxes[1].refuse = errors.New("I am full")
		if err := ts[0].SendSnapshot(context.Background(), "g", m, bytes.NewReader([]byte("x"))); !errors.Is(err, ErrRefused) || !bytes.Contains([]byte(err.Error()), []byte("I am full")) {
			t.Fatalf("refused snapshot: %v", err)
		}
		boxes[1].refuse = nil
		broken := errors.New("the disk broke")
		delete(boxes[1].snapshots, "g")
		if err := ts[0].SendSnapshot(context.Background(), "g", m, io.MultiReader(bytes.NewReader(make([]byte, 1000)), errReader{broken})); !errors.Is(err, broken) {
			t.Fatalf("snapshot that breaks off: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
		boxes[1].mu.Lock()
		defer boxes[1].mu.Unlock()
		if _, ok := boxes[1].snapshots["g"]; ok {
			t.Fatal("half a snapshot was taken for a whole one")
		}
	})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestPeerComesBack(t *testing.T) {
	ts := tcpNodes(t, 2, nil)
	a, b := ts[0].(*TCP), ts[1].(*TCP)
	boxA, boxB := &inbox{}, &inbox{}
	if err := errors.Join(a.Start(boxA), b.Start(boxB)); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Send("g", message(1, 2, 1, nil))
	within(t, "a message arrives", func() bool { return boxB.count() == 1 })
	addr := b.Addr()
	_ = b.Close()
	within(t, "the loss is noticed", func() bool {
		a.Send("g", message(1, 2, 2, nil))
		boxA.mu.Lock()
		defer boxA.mu.Unlock()
		return boxA.lost[2] > 0
	})
	b2, err := ListenTCP(TCPConfig{ID: 2, Cluster: [16]byte{7}, Listen: addr})
	if err != nil {
		t.Fatal(err)
	}
	defer b2.Close()
	box := &inbox{}
	if err := b2.Start(box); err != nil {
		t.Fatal(err)
	}
	within(t, "messages arrive again", func() bool {
		a.Send("g", message(1, 2, 3, nil))
		return box.count() > 0
	})
}

// TestStrangers: everything that is not a node of the cluster is refused and
// counted, and the others go on.
func TestStrangers(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	ts := tcpNodes(t, 2, ca)
	node := ts[0].(*TCP)
	box := &inbox{}
	if err := errors.Join(node.Start(box), ts[1].Start(&inbox{})); err != nil {
		t.Fatal(err)
	}
	defer ts[1].Close()
	defer node.Close()

	join := func(id uint64, cluster byte, cfg *tls.Config) (Transport, *inbox) {
		tr, err := ListenTCP(TCPConfig{ID: id, Cluster: [16]byte{cluster}, Listen: "127.0.0.1:0", TLS: cfg})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		b := &inbox{}
		if err := tr.Start(b); err != nil {
			t.Fatal(err)
		}
		tr.SetPeer(1, node.Addr())
		return tr, b
	}
	for name, tr := range map[string]func() (Transport, *inbox){
		"another authority":           func() (Transport, *inbox) { return join(2, 7, other.node(t, 2)) },
		"another cluster":             func() (Transport, *inbox) { return join(2, 8, ca.node(t, 2)) },
		"another node's certificate":  func() (Transport, *inbox) { return join(2, 7, ca.node(t, 3)) },
		"no certificate":              func() (Transport, *inbox) { return join(2, 7, &tls.Config{RootCAs: ca.pool}) },
		"no TLS":                      func() (Transport, *inbox) { return join(2, 7, nil) },
		"the id of the node it calls": func() (Transport, *inbox) { return join(1, 7, ca.node(t, 1)) },
	} {
		before := node.Stats().Refused
		tr, b := tr()
		if name == "the id of the node it calls" {
			// A node never calls itself, so say it by hand.
			_ = b
			rawHello(t, node.Addr(), ca.node(t, 1), hello{kindMessages, [16]byte{7}, 1, 1}.encode())
		} else {
			tr.Send("g", message(2, 1, 1, nil))
		}
		within(t, name+" is refused", func() bool { return node.Stats().Refused > before })
	}
	good := hello{kindMessages, [16]byte{7}, 2, 1}
	frame, err := appendFrame(nil, "g", message(2, 1, 1, []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	flipped := append([]byte(nil), frame...)
	flipped[len(flipped)-1] ^= 1
	long := append([]byte(nil), frame...)
	binary.LittleEndian.PutUint32(long, 1<<31)
	foreign, err := appendFrame(nil, "g", message(3, 1, 1, nil))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"a damaged frame":            append(good.encode(), flipped...),
		"a frame that is too long":   append(good.encode(), long...),
		"a message of another node":  append(good.encode(), foreign...),
		"another protocol":           []byte("GET / HTTP/1.1\r\nHost: example.org\r\nAccept: everything\r\n\r\n"),
		"another version":            append([]byte("VDERAFT\x63"), make([]byte, helloSize-8)...),
		"an unknown kind":            hello{9, [16]byte{7}, 2, 1}.encode(),
		"somebody else's connection": hello{kindMessages, [16]byte{7}, 2, 5}.encode(),
	} {
		before := node.Stats().Refused
		rawHello(t, node.Addr(), ca.node(t, 2), b)
		within(t, name+" is refused", func() bool { return node.Stats().Refused > before })
	}
	if box.count() != 0 {
		t.Fatalf("%d messages of strangers got in", box.count())
	}
	ts[1].Send("g", message(2, 1, 1, nil))
	within(t, "the real node 2 is heard", func() bool { return box.count() == 1 })
}

// rawHello connects and sends bytes.
func rawHello(t testing.TB, addr string, cfg *tls.Config, b []byte) {
	t.Helper()
	cfg.ServerName = NodeName(1)
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, _ = conn.Write(b)
}

func TestNoTLSNeedsLoopback(t *testing.T) {
	if _, err := ListenTCP(TCPConfig{ID: 1, Listen: "0.0.0.0:0"}); err == nil {
		t.Fatal("listening to the world without TLS was allowed")
	}
	tr, err := ListenTCP(TCPConfig{ID: 1, Listen: "0.0.0.0:0", Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = tr.Close()
}

func TestOldTLSIsRefused(t *testing.T) {
	ca := newAuthority(t)
	ts := tcpNodes(t, 1, ca)
	node := ts[0].(*TCP)
	if err := node.Start(&inbox{}); err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	cfg := ca.node(t, 2)
	cfg.ServerName, cfg.MaxVersion = NodeName(1), tls.VersionTLS12
	if conn, err := tls.Dial("tcp", node.Addr(), cfg); err == nil {
		_ = conn.Close()
		t.Fatal("TLS 1.2 was accepted")
	}
}

// TestGoldenFrame is WIRE.md's example: the drawing holds.
func TestGoldenFrame(t *testing.T) {
	doc, err := os.ReadFile("WIRE.md")
	if err != nil {
		t.Fatal(err)
	}
	f, err := appendFrame(nil, "g1", &pb.Message{Type: pb.MsgHeartbeat.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(3))})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(f); i += 16 {
		if line := fmt.Sprintf("%04x  % x\n", i, f[i:min(i+16, len(f))]); !bytes.Contains(doc, []byte(line)) {
			t.Errorf("WIRE.md does not show %s", line)
		}
	}
	if f, err = appendFrame(nil, strings.Repeat("g", MaxGroupName+1), &pb.Message{}); err == nil {
		t.Errorf("a long name was taken: %x", f)
	}
}

func FuzzFrame(f *testing.F) {
	b, err := appendFrame(nil, "default", message(1, 2, 3, []byte("data")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := readFrame(bytes.NewReader(data), nil, 1<<20)
		if err == nil {
			_, _, _ = decodeFrame(body, true)
		}
		// Past the checksum, which random bytes hardly ever pass.
		if group, m, err := decodeFrame(data, true); err == nil && (group == "" || len(group) > MaxGroupName || m == nil) {
			t.Fatalf("decoded %q", group)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{kindMessages, [16]byte{1}, 2, 3}.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodeHello(data)
		if err == nil {
			again := h.encode()
			copy(again[9:12], data[9:12])
			if !bytes.Equal(again[:9], data[:9]) || !bytes.Equal(again[12:44], data[12:44]) {
				t.Fatal("decoded and encoded again it differs")
			}
		}
	})
}

// FuzzMessage holds the encoding by hand against the library's.
func FuzzMessage(f *testing.F) {
	long := bytes.Repeat([]byte("payload "), 1024)
	for _, m := range []*pb.Message{
		message(1, 2, 3, []byte("data")), message(1, 2, 3, nil), message(1, 2, 3, long),
		{Type: pb.MsgApp.Enum(), Commit: new(uint64(9)), Entries: []*pb.Entry{
			{Term: new(uint64(1)), Index: new(uint64(1 << 60)), Data: long}, {Type: pb.EntryConfChangeV2.Enum()}, {Data: []byte{}}, {Data: long[:directData]}, {},
		}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{7<<3 | 2, 2, 1 << 3, 77}) // an entry of an unknown type
	f.Fuzz(func(t *testing.T, data []byte) {
		want := &pb.Message{}
		wantErr := proto.Unmarshal(data, want)
		var w frameWriter
		for _, alias := range []bool{false, true} {
			m, err := decodeMessage(bytes.Clone(data), alias)
			if (err == nil) != (wantErr == nil) {
				t.Fatalf("alias %v: %v, the library says %v", alias, err, wantErr)
			}
			if err != nil {
				continue
			}
			forgetUnknown(want)
			forgetUnknown(m)
			if !proto.Equal(m, want) {
				t.Fatalf("alias %v:\n%v\nthe library says\n%v", alias, m, want)
			}
			pieces, err := w.encode("g", m)
			if err != nil {
				t.Fatal(err)
			}
			body, err := readFrame(bytes.NewReader(bytes.Join(pieces, nil)), nil, maxFrame)
			if err != nil {
				t.Fatal(err)
			}
			again := &pb.Message{}
			if err := proto.Unmarshal(body[2:], again); err != nil || !proto.Equal(again, want) {
				t.Fatalf("encoded again: %v\n%v\nwant\n%v", err, again, want)
			}
		}
	})
}

// forgetUnknown drops what another version may have added, in entries: by hand it is not
// kept.
func forgetUnknown(m *pb.Message) {
	m.ProtoReflect().SetUnknown(nil)
	for _, e := range m.Entries {
		e.ProtoReflect().SetUnknown(nil)
	}
}

// TestJoined joins messages of a log and compares what a follower would do.
func TestJoined(t *testing.T) {
	app := func(index, logTerm, commit uint64, terms ...uint64) outgoing {
		m := &pb.Message{Type: pb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(5)), LogTerm: &logTerm, Index: &index, Commit: &commit}
		for i, term := range terms {
			m.Entries = append(m.Entries, &pb.Entry{Index: new(index + 1 + uint64(i)), Term: new(term), Data: []byte{byte(i)}})
		}
		return outgoing{"g", m, 100}
	}
	change := func(o outgoing, f func(*outgoing)) outgoing { f(&o); return o }
	next := app(12, 5, 11, 5)
	for name, c := range map[string]struct {
		a, b outgoing
		want *pb.Message
	}{
		"two":             {app(10, 4, 9, 4, 5), next, app(10, 4, 11, 4, 5, 5).m},
		"only commit":     {app(10, 4, 9, 4, 5), app(12, 5, 12), app(10, 4, 12, 4, 5).m},
		"commit before":   {app(12, 5, 9), next, next.m},
		"a gap":           {app(10, 4, 9, 5), next, nil},
		"another term":    {app(10, 4, 9, 4, 4), next, nil},
		"commit backward": {app(10, 4, 12, 4, 5), next, nil},
		"other group":     {app(10, 4, 9, 4, 5), change(next, func(o *outgoing) { o.group = "h" }), nil},
		"too large":       {app(10, 4, 9, 4, 5), change(next, func(o *outgoing) { o.size = maxJoined }), nil},
		"no append":       {app(10, 4, 9, 4, 5), outgoing{"g", message(1, 2, 5, nil), 100}, nil},
	} {
		before := proto.Clone(c.a.m)
		got := joined(c.a, c.b)
		if c.want == nil && got != nil || c.want != nil && !sameAppend(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if !proto.Equal(before, c.a.m) {
			t.Errorf("%s: a message changed that others refer to", name)
		}
	}
}

// sameAppend compares all but the data.
func sameAppend(a, b *pb.Message) bool {
	strip := func(m *pb.Message) *pb.Message {
		m = proto.Clone(m).(*pb.Message)
		for _, e := range m.Entries {
			e.Data = nil
		}
		return m
	}
	return a != nil && proto.Equal(strip(a), strip(b))
}
