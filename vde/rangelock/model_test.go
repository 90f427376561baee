package rangelock

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the naive twin of a BlockRangeLock: one queue per block. A request is granted when in the queue of each
// of its blocks there is nobody before it, or all before it and itself are shared.
type model struct {
	base   uint64 // number of the first block
	queues [][]*modelTicket
}

type modelTicket struct {
	first, count int // in blocks from base
	mode         Mode
}

func (m *model) enqueue(t *modelTicket) {
	for b := t.first; b < t.first+t.count; b++ {
		m.queues[b] = append(m.queues[b], t)
	}
}

func (m *model) remove(t *modelTicket) {
	for b := t.first; b < t.first+t.count; b++ {
		m.queues[b] = slices.DeleteFunc(m.queues[b], func(u *modelTicket) bool { return u == t })
	}
}

func (m *model) granted(t *modelTicket) bool {
	for b := t.first; b < t.first+t.count; b++ {
		for _, u := range m.queues[b] {
			if u == t {
				break
			}
			if u.mode == Exclusive || t.mode == Exclusive {
				return false
			}
		}
	}
	return true
}

// checkTree judges the invariants of a tree and returns how many tickets are in it.
func checkTree(t *rapid.T, root *Ticket, mode Mode) (tickets []*Ticket) {
	if root == nil {
		return nil
	}
	left := checkTree(t, root.node.left, mode)
	right := checkTree(t, root.node.right, mode)
	maxLast := root.last
	for _, c := range []*Ticket{root.node.left, root.node.right} {
		if c == nil {
			continue
		}
		maxLast = max(maxLast, c.node.maxLast)
		if c.priority() > root.priority() {
			t.Fatalf("a child has a higher priority than its parent")
		}
	}
	if root.node.maxLast != maxLast {
		t.Fatalf("maxLast is %d, should be %d", root.node.maxLast, maxLast)
	}
	if root.mode != mode || root.empty {
		t.Fatalf("a ticket of mode %v (empty: %v) in the tree of mode %v", root.mode, root.empty, mode)
	}
	if s := state(root.state.Load()); s != queued && s != granted || (s == granted) != (root.blockers == 0) {
		t.Fatalf("a ticket in state %d with %d blockers in the tree", s, root.blockers)
	}
	tickets = append(append(left, root), right...)
	if !slices.IsSortedFunc(tickets, func(a, b *Ticket) int {
		if a.before(b) {
			return -1
		}
		return 1
	}) {
		t.Fatal("the tree is out of order")
	}
	return tickets
}

func TestAgainstModel(t *testing.T) {
	const blocks = 24
	done, cancel := context.WithCancel(context.Background())
	cancel()
	rapid.Check(t, func(t *rapid.T) {
		var l BlockRangeLock
		m := &model{
			base:   rapid.SampledFrom([]uint64{0, 1 << 40, math.MaxUint64 - blocks + 1}).Draw(t, "base"),
			queues: make([][]*modelTicket, blocks),
		}
		type pair struct {
			real  *Ticket
			model *modelTicket
		}
		var live, dead []pair
		kill := func(i int) {
			m.remove(live[i].model)
			dead = append(dead, live[i])
			live = slices.Delete(live, i, i+1)
		}

		t.Repeat(map[string]func(*rapid.T){
			"enqueue": func(t *rapid.T) {
				mt := &modelTicket{mode: Mode(rapid.IntRange(0, 1).Draw(t, "mode"))}
				mt.first = rapid.IntRange(0, blocks-1).Draw(t, "first")
				mt.count = rapid.IntRange(0, blocks-mt.first).Draw(t, "count")
				count := uint64(mt.count)
				if rapid.IntRange(0, 9).Draw(t, "to the end") == 0 {
					mt.count = blocks - mt.first
					count = ToEnd
				}
				m.enqueue(mt)
				live = append(live, pair{l.Enqueue(m.base+uint64(mt.first), count, mt.mode), mt})
			},
			"release": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("nothing held")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(t, "ticket")
				live[i].real.Release()
				kill(i)
			},
			"release twice": func(t *rapid.T) {
				if len(dead) == 0 {
					t.Skip("nothing released")
				}
				rapid.SampledFrom(dead).Draw(t, "ticket").real.Release()
			},
			"wait with an ended context": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("nothing queued")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(t, "ticket")
				err := live[i].real.Wait(done)
				if m.granted(live[i].model) {
					if err != nil {
						t.Fatalf("Wait on a granted ticket: %v", err)
					}
					return
				}
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("Wait on a queued ticket with an ended context: %v", err)
				}
				kill(i)
			},
			"": func(t *rapid.T) {
				for _, p := range live {
					if got, want := p.real.Granted(), m.granted(p.model); got != want {
						t.Fatalf("%v lock on blocks %d+%d: granted is %v, should be %v",
							p.model.mode, p.model.first, p.model.count, got, want)
					}
				}
				for _, p := range dead {
					if p.real.Granted() {
						t.Fatal("a ticket that was given up is granted")
					}
				}
				inTrees := len(checkTree(t, l.shared.root, Shared)) + len(checkTree(t, l.exclusive.root, Exclusive))
				covering := 0
				for _, p := range live {
					if p.model.count > 0 {
						covering++
					}
				}
				if inTrees != covering || l.Idle() != (covering == 0) {
					t.Fatalf("%d tickets in the lock (idle: %v), should be %d", inTrees, l.Idle(), covering)
				}
			},
		})
	})
}
