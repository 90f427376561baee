package consensus

import (
	"encoding/binary"
	"slices"

	"go.etcd.io/raft/v3"
)

// readRetryTicks is after how many ticks an unanswered request for a read index
// is sent again: messages get lost.
const readRetryTicks = 4

// readQueue batches read barriers: while one request for a read index is under
// way, new readers wait for the next one, which serves them all.
//
//	waiting → asked (seq) → confirmed (at an index) → answered when that is applied
type readQueue struct {
	waiting []*ticket
	asked   []*ticket // served by the request seq; none: no request is under way
	seq     uint64
	age     int // ticks since the request

	confirmedReads []confirmedRead
	askNext        bool // a request is due for those who wait
}

type confirmedRead struct {
	index uint64
	t     *ticket
}

// add takes a reader. It reports whether a request has to be made now.
func (q *readQueue) add(t *ticket) bool {
	q.waiting = append(q.waiting, t)
	return len(q.asked) == 0
}

// issue begins a request numbered seq.
func (q *readQueue) issue(seq uint64) {
	// Those who asked before may be served by a later answer as well.
	q.asked = append(q.asked, q.waiting...)
	q.waiting = nil
	q.seq, q.age, q.askNext = seq, 0, false
}

// confirmed takes what the engine says.
func (q *readQueue) confirmed(states []raft.ReadState) {
	for _, s := range states {
		if len(s.RequestCtx) != 8 || binary.LittleEndian.Uint64(s.RequestCtx) != q.seq {
			continue // an earlier request; the later one serves its readers
		}
		for _, t := range q.asked {
			q.confirmedReads = append(q.confirmedReads, confirmedRead{s.Index, t})
		}
		q.asked = nil
		q.askNext = len(q.waiting) > 0
	}
}

// release answers those whose index is applied.
func (q *readQueue) release(applied uint64) {
	rest := q.confirmedReads[:0]
	for _, c := range q.confirmedReads {
		if c.index <= applied {
			c.t.finish(nil, nil)
		} else {
			rest = append(rest, c)
		}
	}
	clear(q.confirmedReads[len(rest):])
	q.confirmedReads = rest
}

// retryDue is called once per tick; it reports whether to issue a request.
func (q *readQueue) retryDue() bool {
	if len(q.asked) == 0 {
		return len(q.waiting) > 0
	}
	q.age++
	return q.age >= readRetryTicks
}

func (q *readQueue) len() int { return len(q.waiting) + len(q.asked) + len(q.confirmedReads) }

// forget drops a reader that no longer waits; false if it was answered.
func (q *readQueue) forget(t *ticket) bool {
	for _, list := range []*[]*ticket{&q.waiting, &q.asked} {
		if i := slices.Index(*list, t); i >= 0 {
			*list = slices.Delete(*list, i, i+1)
			return true
		}
	}
	i := slices.IndexFunc(q.confirmedReads, func(c confirmedRead) bool { return c.t == t })
	if i >= 0 {
		q.confirmedReads = slices.Delete(q.confirmedReads, i, i+1)
	}
	return i >= 0
}

func (q *readQueue) abandon(err error) {
	for _, t := range append(q.waiting, q.asked...) {
		t.finish(nil, err)
	}
	for _, c := range q.confirmedReads {
		c.t.finish(nil, err)
	}
	*q = readQueue{}
}
