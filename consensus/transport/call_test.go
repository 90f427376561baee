package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// TestCall: questions follow each other over one connection, and over another where the node was started anew or the first is old.
func TestCall(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	var asked atomic.Int64
	node := func(id uint64, listen string) *TCP {
		t.Helper()
		tr, err := ListenTCP(TCPConfig{
			ID: id, Cluster: [16]byte{7}, Listen: listen, TLS: ca.node(t, id),
			Answer: func(_ context.Context, from uint64, q []byte) ([]byte, error) {
				asked.Add(1)
				if bytes.Equal(q, []byte("no")) {
					return nil, errors.New("not that")
				}
				return fmt.Appendf(nil, "%d: %s", from, q), nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Start(&inbox{}); err != nil {
			t.Fatal(err)
		}
		return tr
	}
	a, b := node(1, "127.0.0.1:0"), node(2, "127.0.0.1:0")
	defer a.Close()
	a.SetPeer(2, b.Addr())
	b.SetPeer(1, a.Addr())
	ask := func(q string) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		got, err := a.Call(ctx, 2, []byte(q))
		if err == nil && string(got) != "1: "+q {
			t.Fatalf("asked %q: %q", q, got)
		}
		return err
	}
	connections := func(tr *TCP) int {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.conns)
	}
	for i := range 20 {
		if err := ask(fmt.Sprint("q", i)); err != nil {
			t.Fatal(err)
		}
		if err := ask("no"); !errors.Is(err, ErrRefused) || !errors.Is(err, ErrNoSuchQuestion) {
			t.Fatal(err)
		}
	}
	if asked.Load() != 40 || connections(b) != 1 {
		t.Fatalf("40 questions were asked, %d answered, over %d connections", asked.Load(), connections(b))
	}

	// Who gives up leaves no answer behind for the next question.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Call(ctx, 2, []byte("late")); err == nil {
		t.Fatal("a question that nobody waits for was answered")
	}
	if err := ask("next"); err != nil {
		t.Fatal(err)
	}

	addr := b.Addr()
	b.Close()
	if err := ask("nobody"); err == nil || errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	b = node(2, addr)
	defer b.Close()
	b.SetPeer(1, a.Addr())
	if err := ask("again"); err != nil {
		t.Fatal(err)
	}
	a.SetPeer(2, "")
	if n := connections(a); n != 0 {
		t.Fatalf("%d connections are left to a node that is none any more", n)
	}
}
