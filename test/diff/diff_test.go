package diff

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"vdefs/fs"
	"vdefs/fs/replica"
	"vdefs/test/posix"
	"vdefs/vde"
)

var (
	seed         = flag.Uint64("diff.seed", 1, "where the sequences begin; with -diff.for 0 means the clock")
	callsWanted  = flag.Int("diff.calls", 24000, "how many calls are made in all")
	runFor       = flag.Duration("diff.for", 0, "go on for this long instead")
	only         = flag.String("diff.only", "", "run one sequence alone: VARIANT/NUMBER, as a failure names it")
	referenceDir = flag.String("diff.reference", "", "a directory on the filesystem to compare with (default: ext4, where there is one)")
	keepFailed   = flag.Bool("diff.keep", false, "keep the directories of a failed sequence")
)

// length is how many calls a sequence has.
const sequenceLength = 400

// workers is how many sequences run at the same time on a mount.
const workers = 2

// variants are the mounts, with the share of the calls that each gets.
var variants = []struct {
	name    string
	options fs.MountOptions
	share   float64
}{
	{"writeback", fs.MountOptions{}, 0.6},
	{"writethrough", fs.MountOptions{NoWriteback: true}, 0.2},
	{"nocache", fs.MountOptions{NoCache: true}, 0.2},
}

// The main thread never ends: no sequence must get it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	posix.ServeApart(serve)
	os.Exit(m.Run())
}

// serve makes a store and mounts it.
func serve(variant, base string) (wait func() error, err error) {
	logger := logrus.New()
	logger.SetLevel(logrus.WarnLevel)
	store := filepath.Join(base, "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: 4 << 30}); err != nil {
		return nil, err
	}
	volume, err := replica.Open(store, replica.Options{Logger: logger})
	if err != nil {
		return nil, err
	}
	var options fs.MountOptions
	for _, v := range variants {
		if v.name == variant {
			options = v.options
		}
	}
	options.AllowOther, options.DefaultPermissions, options.Suid, options.Dev = true, true, true, true
	options.Logger = logger
	server, err := fs.Mount(volume, filepath.Join(base, "mnt"), options)
	if err != nil {
		return nil, errors.Join(err, volume.Close())
	}
	return func() error {
		server.Wait()
		return volume.Close()
	}, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDiff(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting, and changing users, takes root")
	}
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	var total atomic.Int64
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			wanted, number := -1, 0
			if *only != "" {
				name, rest, _ := strings.Cut(*only, "/")
				if name != v.name {
					t.Skip("not asked for")
				}
				if _, err := fmt.Sscan(rest, &number); err != nil {
					t.Fatalf("-diff.only %s: %v", *only, err)
				}
				wanted = number
			}
			ref, kind := reference(t)
			c := &comparison{
				t: t, seed: first, ref: ref, mnt: posix.Apart(t, v.name), env: environment{kind, v.name}, known: map[string]int{},
			}
			calls := int64(float64(*callsWanted) * v.share)
			began := time.Now()
			end := began.Add(time.Duration(float64(*runFor) * v.share))
			var next, made atomic.Int64
			next.Store(int64(number))
			var group sync.WaitGroup
			for range workers {
				group.Go(func() {
					for !t.Failed() {
						n := next.Add(1) - 1
						switch {
						case wanted >= 0 && n > int64(wanted), wanted < 0 && *runFor == 0 && n*sequenceLength >= calls, *runFor > 0 && time.Now().After(end):
							return
						}
						c.sequence(n)
						made.Add(sequenceLength)
						if *runFor > 0 && n%100 == 99 {
							fmt.Printf("%s: %d sequences, %d calls, %s\n", v.name, n+1, made.Load(), time.Since(began).Round(time.Second))
						}
					}
				})
			}
			group.Wait()
			total.Add(made.Load())
			t.Logf("%d calls on %s and on a mount with %s, %.1f s; known differences met: %v", made.Load(), kind, v.name, time.Since(began).Seconds(), c.known)
		})
	}
	t.Logf("%d calls, seed %d", total.Load(), first)
}

// comparison is what the sequences on one mount have in common.
type comparison struct {
	t        *testing.T
	seed     uint64
	ref, mnt string
	env      environment
	runs     atomic.Int64

	mu    sync.Mutex
	known map[string]int // how often each known difference was met; guarded by mu
}

// sequence runs one sequence, and reports where it differs.
func (c *comparison) sequence(n int64) {
	ops := sequence(c.seed*1_000_003+uint64(n), sequenceLength)
	reference, d, err := c.run(ops, true)
	if err != nil {
		c.t.Error(err)
		return
	}
	if d == nil {
		return
	}
	ops = ops[:d.at+1]
	deadline := time.Now().Add(60 * time.Second)
	short := shrink(ops, func(ops []*op) bool {
		_, d, err := c.run(ops, false)
		return err == nil && d != nil
	}, func() bool { return time.Now().Before(deadline) })
	if again, e, err := c.run(short, false); err == nil && e != nil {
		ops, reference, d = short, again, e
	}
	c.t.Errorf("%s and a mount with %s differ: run it again with -diff.seed=%d -diff.only=%s/%d\n%s",
		c.env.reference, c.env.variant, c.seed, c.env.variant, n, show(ops, reference, d))
}

// run runs calls on fresh directories on both sides.
func (c *comparison) run(ops []*op, count bool) ([]answer, *difference, error) {
	name := fmt.Sprint("run", c.runs.Add(1))
	var group sync.WaitGroup
	var answers [2][]answer
	var errs [2]error
	for i, base := range []string{c.ref, c.mnt} {
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, nil, err
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			return nil, nil, err
		}
		defer func() {
			if !*keepFailed {
				os.RemoveAll(dir)
			}
		}()
		group.Go(func() { answers[i], errs[i] = play(dir, ops, c.env, i == 0, nil) })
	}
	group.Wait()
	if err := errors.Join(errs[0], errs[1]); err != nil {
		return nil, nil, err
	}
	known := map[string]int{}
	d := compare(ops, answers[0], answers[1], c.env, known)
	if count {
		c.mu.Lock()
		for name, n := range known {
			c.known[name] += n
		}
		c.mu.Unlock()
	}
	return answers[0], d, nil
}

// TestFindsADifference has a filesystem that lies: it must be found out, and the sequence become short.
func TestFindsADifference(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing the root takes root")
	}
	differs := func(ops []*op) *difference {
		var answers [2][]answer
		for i := range answers {
			dir := t.TempDir()
			must(t, os.Chmod(dir, 0o777))
			var lie func(*op) bool
			if i == 1 {
				lie = func(o *op) bool { return o.call.name == "link" }
			}
			var err error
			answers[i], err = play(dir, ops, environment{}, false, lie)
			must(t, err)
		}
		return compare(ops, answers[0], answers[1], environment{}, map[string]int{})
	}
	ops := sequence(1, 200)
	d := differs(ops)
	if d == nil {
		t.Fatal("a filesystem whose link does nothing is not found out")
	}
	end := time.Now().Add(20 * time.Second)
	short := shrink(ops[:d.at+1], func(ops []*op) bool { return differs(ops) != nil }, func() bool { return time.Now().Before(end) })
	if len(short) > 4 {
		t.Errorf("shrunk to %d calls only:\n%s", len(short), show(short, nil, differs(short)))
	}
}
