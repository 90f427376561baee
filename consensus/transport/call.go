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

// Call asks node to a question that is no Raft message and returns what its TCPConfig.Answer says. An error of Answer
// comes back wrapping ErrRefused, with its text.
func (t *TCP) Call(ctx context.Context, to uint64, question []byte) ([]byte, error) {
	p := t.peer(to)
	if p == nil {
		return nil, fmt.Errorf("%w: node %d", ErrUnknownPeer, to)
	}
	if len(question) > maxCall {
		return nil, fmt.Errorf("transport: a question of %d bytes, at most %d are allowed", len(question), maxCall)
	}
	conn, _, err := t.dial(ctx, p, kindCall)
	if err != nil {
		return nil, fmt.Errorf("transport: asking node %d: %w", to, err)
	}
	defer t.untrack(conn)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	answer, err := func() ([]byte, error) {
		f := append(make([]byte, frameHeader), question...)
		sealFrame(f)
		if _, err := conn.Write(f); err != nil {
			return nil, err
		}
		return readFrame(conn, nil, maxCall+1)
	}()
	switch {
	case err != nil:
		return nil, fmt.Errorf("transport: asking node %d: %w", to, errors.Join(err, ctx.Err()))
	case len(answer) == 0:
		return nil, fmt.Errorf("transport: asking node %d: %w: an empty answer", to, errFrame)
	case answer[0] != callAnswered:
		return nil, fmt.Errorf("%w: node %d says %.200q", ErrRefused, to, answer[1:])
	}
	return answer[1:], nil
}

// serveCall answers the one question of a connection.
func (t *TCP) serveCall(conn net.Conn, from uint64) error {
	_ = conn.SetReadDeadline(time.Now().Add(ioTimeout))
	question, err := readFrame(conn, nil, maxCall)
	if err != nil {
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
	_, err = conn.Write(f)
	return err
}
