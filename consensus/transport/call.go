package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// maxCall bounds a question and an answer, in bytes.
const maxCall = 4 << 20

// The first byte of an answer.
const (
	callAnswered = 0
	callRefused  = 1 // the rest is why
)

// ErrNoSuchQuestion is wrapped where the other node's Answer refused a question, beside ErrRefused.
var ErrNoSuchQuestion = errors.New("transport: the question was not answered")

// A connection serves one question after the other. The asking side keeps idleCalls of them to each node, for less time than the answering
// side keeps waiting for the next question.
const (
	idleCalls   = 2
	idleCallFor = ioTimeout / 2
)

// idleCall is a connection that waits for its next question.
type idleCall struct {
	conn  net.Conn
	since time.Time
}

// Call asks node to a question that is no Raft message and returns what its TCPConfig.Answer says. An error of Answer
// comes back wrapping ErrRefused and ErrNoSuchQuestion, with its text. A question may reach the other node twice.
func (t *TCP) Call(ctx context.Context, to uint64, question []byte) ([]byte, error) {
	p := t.peer(to)
	if p == nil {
		return nil, fmt.Errorf("%w: node %d", ErrUnknownPeer, to)
	}
	if len(question) > maxCall {
		return nil, fmt.Errorf("transport: a question of %d bytes, at most %d are allowed", len(question), maxCall)
	}
	if conn := t.takeIdle(p); conn != nil {
		// Should nobody be there any more, dialling finds out.
		_ = conn.SetDeadline(time.Now().Add(ioTimeout))
		answer, err := t.ask(ctx, p, conn, question)
		if err == nil || errors.Is(err, ErrRefused) || ctx.Err() != nil {
			return answer, err
		}
		// The other side has closed it meanwhile, or was started anew.
	}
	conn, _, err := t.dial(ctx, p, kindCall)
	if err != nil {
		return nil, fmt.Errorf("transport: asking node %d: %w", to, err)
	}
	return t.ask(ctx, p, conn, question)
}

// ask asks over a connection, which it keeps for the next question or closes.
func (t *TCP) ask(ctx context.Context, p *peer, conn net.Conn, question []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	answer, err := func() ([]byte, error) {
		f := append(make([]byte, frameHeader), question...)
		sealFrame(f)
		if _, err := conn.Write(f); err != nil {
			return nil, err
		}
		return readFrame(conn, nil, maxCall+1)
	}()
	if stop() && err == nil && len(answer) > 0 {
		t.keepIdle(p, conn)
	} else {
		t.untrack(conn)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("transport: asking node %d: %w", p.id, errors.Join(err, ctx.Err()))
	case len(answer) == 0:
		return nil, fmt.Errorf("transport: asking node %d: %w: an empty answer", p.id, errFrame)
	case answer[0] != callAnswered:
		return nil, fmt.Errorf("%w: %w: node %d says %.200q", ErrRefused, ErrNoSuchQuestion, p.id, answer[1:])
	}
	return answer[1:], nil
}

// takeIdle returns a connection that a question can be asked over, nil if there is none.
func (t *TCP) takeIdle(p *peer) net.Conn {
	for {
		select {
		case c := <-p.idle:
			if time.Since(c.since) < idleCallFor {
				return c.conn
			}
			t.untrack(c.conn)
		default:
			return nil
		}
	}
}

// keepIdle keeps a connection for the next question.
func (t *TCP) keepIdle(p *peer, conn net.Conn) {
	_ = conn.SetDeadline(time.Time{})
	select {
	case p.idle <- idleCall{conn, time.Now()}:
	default:
		t.untrack(conn)
	}
}

// serveCall answers the questions of a connection, until none comes any more.
func (t *TCP) serveCall(conn net.Conn, from uint64) error {
	for first := true; ; first = false {
		_ = conn.SetReadDeadline(time.Now().Add(ioTimeout))
		question, err := readFrame(conn, nil, maxCall)
		if err != nil {
			if !first && !errors.Is(err, errFrame) {
				return nil // the other side has no more
			}
			return err
		}
		answer, err := []byte(nil), errors.New("nobody answers questions here")
		if t.cfg.Answer != nil {
			answer, err = t.cfg.Answer(t.ctx, from, question)
		}
		f := make([]byte, frameHeader, frameHeader+1+len(answer))
		if err != nil {
			text := err.Error()
			f = append(append(f, callRefused), text[:min(len(text), maxReason)]...)
		} else {
			f = append(append(f, callAnswered), answer...)
		}
		sealFrame(f)
		_ = conn.SetWriteDeadline(time.Now().Add(ioTimeout))
		if _, err := conn.Write(f); err != nil {
			return err
		}
	}
}
