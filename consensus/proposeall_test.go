package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// proposeAllEach has callers, whose numbers begin with first, make proposals of count commands at once, each times, while others propose single ones beside them.
func proposeAllEach(g *Group, first, callers, each, count int, got func(cmd string, i int, a Answer)) {
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for n := range each {
				var cmds [][]byte
				var locals []any
				for i := range count {
					cmd := fmt.Sprintf("%d/%d", first+c, n*count+i)
					if i%16 == 7 {
						cmd += strings.Repeat(" ", maxJoinedBytes/3)
					}
					cmds, locals = append(cmds, []byte(cmd)), append(locals, i)
				}
				for i, a := range g.ProposeAll(bg, cmds, locals) {
					got(string(cmds[i]), i, a)
				}
			}
		})
		wg.Go(func() {
			for range each {
				if _, err := g.Propose(bg, []byte("single"), nil); err != nil && !errors.Is(err, ErrUnknownOutcome) {
					got("single", 0, Answer{Err: err})
				}
			}
		})
	}
	wg.Wait()
}

// TestProposeAll: where a group is alone, each command gets its own answer, durable where it has to be, in its order.
func TestProposeAll(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncOnBarrier} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			const callers, each, count = 4, 6, 40
			m := mustManager(t, Config{FS: vfs.NewMem(), Sync: policy})
			r := newRecorder(0)
			g := mustCreate(t, m, "default", r)
			proposeAllEach(g, 0, callers, each, count, func(cmd string, i int, a Answer) {
				if want := fmt.Sprintf("%s/%d", cmd, i); a.Err != nil || a.Result != want {
					t.Errorf("%.20s: %.30v, %v", cmd, a.Result, a.Err)
				}
			})
			if policy == SyncAlways && g.DurableIndex() != g.LastIndex() {
				t.Errorf("%+v", g.Status())
			}
			cmds := map[uint64]string{}
			for index, cmd := range r.cmds {
				if cmd != "single" {
					cmds[index] = cmd
				}
			}
			inOrder(t, cmds, g.LastIndex(), callers, each*count)

			last := g.LastIndex()
			for _, a := range g.ProposeAll(bg, [][]byte{[]byte("x"), make([]byte, MaxCommandSize+1)}, nil) {
				if !errors.Is(a.Err, ErrTooLarge) {
					t.Errorf("beside a command that is too large: %v", a.Err)
				}
			}
			canceled, cancel := context.WithCancel(bg)
			cancel()
			for _, a := range g.ProposeAll(canceled, [][]byte{[]byte("x"), []byte("y")}, nil) {
				if !errors.Is(a.Err, context.Canceled) {
					t.Errorf("canceled: %v", a.Err)
				}
			}
			if g.LastIndex() != last {
				t.Errorf("what was refused was appended: %d, %d", last, g.LastIndex())
			}
			if a := g.ProposeAll(bg, nil, nil); len(a) != 0 {
				t.Errorf("%v", a)
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			for _, a := range g.ProposeAll(bg, [][]byte{[]byte("x"), []byte("y")}, nil) {
				if !errors.Is(a.Err, ErrClosed) {
					t.Errorf("closed: %v", a.Err)
				}
			}
		})
	}
}

// TestProposeAllInThree: on the leader and on a follower, each command is applied once and answered.
func TestProposeAllInThree(t *testing.T) {
	const callers, each, count = 3, 4, 24
	c := newClusterWith(t, func(cfg *Config) { cfg.TickInterval = 50 * time.Millisecond }, 1, 2, 3)
	c.create(1, 2, 3)
	leader := c.leader(1, 2, 3)
	var unknown sync.Map // what became of them nobody could say: on a busy machine leaders change
	for n, id := range []uint64{leader, leader%3 + 1} {
		proposeAllEach(c.nodes[id].g, n*callers, callers, each, count, func(cmd string, i int, a Answer) {
			switch want := fmt.Sprintf("%s/%d", cmd, i); {
			case errors.Is(a.Err, ErrUnknownOutcome):
				unknown.Store(cmd, true)
			case a.Err != nil || a.Result != want:
				t.Errorf("node %d, %.20s: %.30v, %v", id, cmd, a.Result, a.Err)
			}
		})
		times := appliedTimes(c)
		for caller := range callers {
			for i := range each * count {
				cmd := fmt.Sprintf("%d/%d", n*callers+caller, i)
				if i%count%16 == 7 {
					cmd += strings.Repeat(" ", maxJoinedBytes/3)
				}
				if _, ok := unknown.Load(cmd); times[cmd] != 1 && !(ok && times[cmd] == 0) {
					t.Errorf("%.20s is applied %d times", cmd, times[cmd])
				}
			}
		}
	}
}
