package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/fs/replica"
	"vdefs/vde"
	"vdefs/vde/check"
)

// fault is one way in which a disk fails.
type fault struct {
	name   string
	err    error
	stays  bool // every later write fails too
	writes bool // only writes fail, not syncs, removals and so on
}

var faults = []fault{
	{name: "EIO once", err: unix.EIO},
	{name: "ENOSPC from then on", err: unix.ENOSPC, stays: true, writes: true},
	{name: "half a write, once", err: shortWrite{unix.ENOSPC}, writes: true},
}

// TestFaultEverywhere has the disk fail at every single operation of short workloads: of image, log and metadata, while the
// store is opened, used and closed. Nothing may panic, hang or answer wrong bytes; what was promised before must be there when
// the store is opened again, with a power cut between and without.
func TestFaultEverywhere(t *testing.T) {
	for seed := range shorts() {
		refMin := []int{1 << 30, 4096}[seed%2]
		t.Run(fmt.Sprintf("seed %d, references from %d bytes", seed+1, refMin), func(t *testing.T) {
			t.Parallel()
			s := script{seed: seed + 1, refMin: refMin}
			s.run(t, -1, fault{})
			for _, f := range faults {
				at := 0
				for s.run(t, at, f) && !t.Failed() {
					at++
				}
				t.Logf("%s: at each of %d operations", f.name, at)
			}
		})
	}
}

// script is a deterministic workload. The first run, without a fault, notes what it should do.
type script struct {
	seed   uint64
	refMin int
	did    []string // what each step did and answered
	states []string // states[i]: after i steps, without times
}

var times = regexp.MustCompile(` [mc]time=\{[^}]*\}`)

func timeless(v *replica.Volume) (string, error) {
	s, err := dump(v)
	return times.ReplaceAllString(s, ""), err
}

// run runs the script with a fault at an operation (negative: none) and tells whether there was such an operation.
func (s *script) run(t *testing.T, at int, f fault) (struck bool) {
	t.Helper()
	mem := vfs.NewCrashableMem()
	if _, err := vde.Format("store", vde.FormatOptions{Size: storeSize, FS: mem}); err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex
		n     int    // operations so far; guarded by mu
		where string // the operation that failed first; guarded by mu
	)
	hooked := &hookFS{FS: mem, hook: func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if at < 0 || f.writes && op != "write" && op != "create" {
			return nil
		}
		n++
		if n-1 == at {
			where = op + " of " + name
		}
		if n-1 == at || f.stays && n-1 > at {
			return f.err
		}
		return nil
	}}
	fail := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		t.Errorf("seed %d, %s at operation %d (%s): %s\nall changes:\n%s", s.seed, f.name, at, where, fmt.Sprintf(format, args...),
			strings.Join(s.did, "\n"))
	}
	hit := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return where != ""
	}

	synced, done := 0, 0 // states that are promised, and that were seen
	v, err := open(hooked, s.refMin)
	if err == nil {
		var sure bool
		synced, done, sure = s.play(v, at < 0, fail)
		cut := mem.CrashClone(vfs.CrashCloneCfg{})
		closed := make(chan error, 1)
		go func() { closed <- v.Close() }()
		select {
		case err = <-closed:
		case <-time.After(30 * time.Second):
			fail("closing hangs")
			return true
		}
		s.reopen(cut, synced, done, false, fail)
		switch {
		case err == nil && sure:
			synced = done
		case err == nil:
			synced = max(synced, done-1)
		}
	}
	if err != nil && !hit() {
		fail("no fault, but %v", err)
	}
	if err != nil && !errors.Is(err, vde.ErrFailed) && !errors.Is(err, errors.Unwrap(f.err)) && !errors.Is(err, f.err) {
		fail("an error of another kind: %v", err)
	}
	s.reopen(mem, synced, done, true, fail)
	return hit()
}

// play does the steps as long as they go as they should. It tells how many are promised to be durable, and how many
// were done; unless sure, the last may have been refused, or done though an error was answered.
func (s *script) play(v *replica.Volume, first bool, fail func(string, ...any)) (synced, done int, sure bool) {
	rng := rand.New(rand.NewPCG(s.seed, 1))
	w := &workload{v, rng}
	look := func() bool {
		got, err := timeless(v)
		switch {
		case err != nil:
			return false
		case first:
			s.states = append(s.states, got)
		case got != s.states[done] && (done == 0 || got != s.states[done-1]):
			fail("after step %d the volume shows\n%s\nnot\n%s", done, got, s.states[done])
			return false
		default:
			return got == s.states[done]
		}
		return true
	}
	if !look() {
		return 0, 0, true
	}
	for i := range shortSteps {
		what, err := w.step()
		done = i + 1
		if first {
			s.did = append(s.did, what)
		}
		ok := look()
		if err != nil || !ok || what != s.did[i] {
			return synced, done, false
		}
		switch {
		case i == shortSteps/2:
			err = v.Checkpoint()
		case rng.IntN(4) == 0:
			if err = v.Sync(context.Background()); err == nil {
				synced = done
			}
		}
		if err != nil {
			return synced, done, true
		}
	}
	return synced, done, true
}

// reopen opens what is left on a disk that works again, and checks it. whole: no power cut lies between.
func (s *script) reopen(f *vfs.MemFS, synced, done int, whole bool, fail func(string, ...any)) {
	v, err := open(f, s.refMin)
	if err != nil {
		fail("opened again (%v): %v", whole, err)
		return
	}
	got, err := timeless(v)
	if err = errors.Join(err, v.Close()); err != nil {
		fail("read again (%v): %v", whole, err)
		return
	}
	// Of unsynced writes by reference a power cut leaves any blocks.
	exact := whole || s.refMin > storeSize || synced == done
	if window := s.states[synced : done+1]; exact && !slices.Contains(window, got) {
		fail("opened again (no power cut: %v) it shows\n%s\nnone of the states after steps %d to %d:\n%s", whole, got, synced, done,
			strings.Join(window, "\n\n"))
	}
	report, err := check.Run("store", check.Options{FS: f, Data: true})
	if err != nil || len(report.Findings) > 0 {
		fail("checked (no power cut: %v): %v, %v", whole, err, report.Findings)
	}
}
