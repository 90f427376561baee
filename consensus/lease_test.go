package consensus

import (
	"encoding/binary"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
)

// TestLease: from when and how long a lease counts, and what ends it.
func TestLease(t *testing.T) {
	now := time.Unix(1000, 0)
	l := lease{length: 10 * time.Second, now: func() time.Time { return now }}
	states := func(seq uint64) []raft.ReadState {
		return []raft.ReadState{{Index: 1, RequestCtx: binary.LittleEndian.AppendUint64(nil, seq)}}
	}
	holds := func(term uint64) bool { return l.untilTerm == term && now.Before(l.until) }

	l.requested(1, true, 3)
	now = now.Add(6 * time.Second)
	l.confirmed(states(1), true, 3)
	if !holds(3) {
		t.Error("a request that was confirmed gives no lease")
	}
	now = now.Add(5 * time.Second) // 11 s after the request
	if holds(3) {
		t.Error("a lease counts from the confirmation: it must from the request")
	}
	for name, c := range map[string]struct {
		ledThen bool
		seq     uint64
		ledNow  bool
		term    uint64
	}{
		"it did not lead":  {false, 2, true, 3},
		"another request":  {true, 1, true, 3},
		"it leads no more": {true, 2, false, 3},
		"it leads anew":    {true, 2, true, 4},
	} {
		l.end()
		l.requested(2, c.ledThen, 3)
		l.confirmed(states(c.seq), c.ledNow, c.term)
		if holds(3) || holds(4) {
			t.Errorf("%s: a lease all the same", name)
		}
	}
	l.requested(3, true, 5)
	l.end() // a change of membership in between
	l.confirmed(states(3), true, 5)
	if holds(5) {
		t.Error("a lease by a request of before its end")
	}
	l.forbid(5)
	l.requested(4, true, 5)
	l.confirmed(states(4), true, 5)
	if holds(5) {
		t.Error("a lease in a term in which the leader has handed over")
	}
	l.requested(5, true, 6)
	l.confirmed(states(5), true, 6)
	if !holds(6) {
		t.Error("no lease in the term after that")
	}
}
