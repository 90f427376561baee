// Command consensus measures what a group does with its log beside what the disk does by itself, in one run: each round
// takes the disk and the groups one after the other, so that what the machine does besides hits all alike. It prints
// medians over the rounds.
//
//   - 64 proposals of 128 bytes under way at once, each durable before it is answered, in a group of one node and in one of
//     three (all on this machine, over loopback TCP), as a share of 64 times the rate at which the disk syncs 64 x 128 bytes
//     that are written behind each other in a file;
//   - proposals of 1 MiB in a group of one node, synced at the end, as a share of writing a file of that size and syncing it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"vdefs/consensus"
	"vdefs/consensus/transport"
)

const (
	small    = 128
	inFlight = 64
	large    = 1 << 20
)

type options struct {
	dir     string
	rounds  int
	seconds float64 // of each measurement of small proposals
	sizeMB  int
	json    bool
}

// result is one line of the table.
type result struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Group float64 `json:"group"`
	Disk  float64 `json:"disk"`
	Share float64 `json:"share"` // of the disk; the median of the rounds' shares
	Aim   float64 `json:"aim,omitempty"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench consensus:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	flag.StringVar(&o.dir, "dir", "", "directory on the disk that is measured (default: a temporary one in the current directory)")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds")
	flag.Float64Var(&o.seconds, "seconds", 1.2, "seconds for each measurement of small proposals")
	flag.IntVar(&o.sizeMB, "size", 256, "MiB for each measurement of large proposals")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.Parse()
	if o.rounds < 1 || o.seconds <= 0 || o.sizeMB < 1 || flag.NArg() > 0 {
		return fmt.Errorf("-rounds, -seconds and -size are positive, and there are no arguments")
	}
	parent := o.dir
	if parent == "" {
		parent = "."
	}
	dir, err := os.MkdirTemp(parent, ".bench-consensus-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.dir = dir
	one, three, bulk, err := measure(o)
	if err != nil {
		return err
	}
	results := []result{
		one.result("64 x 128 bytes, 1 node", "proposals/s", 0.8),
		three.result("64 x 128 bytes, 3 nodes", "proposals/s", 0),
		bulk.result("1 MiB, 1 node", "MiB/s", 0.7),
	}
	if o.json {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "proposals\tgroup\tdisk\t\tshare\taim\t")
	for _, r := range results {
		aim := "-"
		if r.Aim > 0 {
			aim = fmt.Sprintf("%.0f %%", 100*r.Aim)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%s\t%.0f %%\t%s\t\n", r.Name, r.Group, r.Disk, r.Unit, 100*r.Share, aim)
	}
	return w.Flush()
}

// rounds are what the rounds had, disk[i] measured beside group[i].
type rounds struct{ group, disk []float64 }

func (r *rounds) add(group, disk float64) {
	r.group, r.disk = append(r.group, group), append(r.disk, disk)
}

func (r *rounds) result(name, unit string, aim float64) result {
	var shares []float64
	for i := range r.group {
		shares = append(shares, r.group[i]/r.disk[i])
	}
	return result{name, unit, median(r.group), median(r.disk), median(shares), aim}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func measure(o options) (one, three, bulk rounds, err error) {
	single, closeSingle, err := nodes(filepath.Join(o.dir, "one"), 1, consensus.SyncAlways)
	if err != nil {
		return one, three, bulk, err
	}
	defer closeSingle()
	triple, closeTriple, err := nodes(filepath.Join(o.dir, "three"), 3, consensus.SyncAlways)
	if err != nil {
		return one, three, bulk, err
	}
	defer closeTriple()
	lazy, closeLazy, err := nodes(filepath.Join(o.dir, "lazy"), 1, consensus.SyncOnBarrier)
	if err != nil {
		return one, three, bulk, err
	}
	defer closeLazy()
	for range o.rounds {
		before, err := syncRate(o)
		if err != nil {
			return one, three, bulk, err
		}
		ofOne, err := proposals(o, single)
		if err != nil {
			return one, three, bulk, err
		}
		between, err := syncRate(o)
		if err != nil {
			return one, three, bulk, err
		}
		ofThree, err := proposals(o, triple)
		if err != nil {
			return one, three, bulk, err
		}
		one.add(ofOne, inFlight*(before+between)/2)
		three.add(ofThree, inFlight*between)
		file, err := fileSpeed(o)
		if err != nil {
			return one, three, bulk, err
		}
		log, err := logSpeed(o, lazy)
		if err != nil {
			return one, three, bulk, err
		}
		bulk.add(log, file)
	}
	return one, three, bulk, nil
}

// nodes makes a group of n nodes on this machine and returns it as its leader sees it.
func nodes(dir string, n int, policy consensus.SyncPolicy) (leader *consensus.Group, done func(), err error) {
	var closers []func() error
	done = func() {
		for _, c := range slices.Backward(closers) {
			_ = c() // what was measured was durable before
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	var links []*transport.TCP
	var ids []uint64
	for id := uint64(1); id <= uint64(n); id++ {
		link, err := transport.ListenTCP(transport.TCPConfig{ID: id, Listen: "127.0.0.1:0"})
		if err != nil {
			return nil, nil, err
		}
		closers = append(closers, link.Close)
		links, ids = append(links, link), append(ids, id)
	}
	var groups []*consensus.Group
	for i, link := range links {
		for j, other := range links {
			link.SetPeer(ids[j], other.Addr())
		}
		m, err := consensus.Open(consensus.Config{Dir: filepath.Join(dir, fmt.Sprint(ids[i])), NodeID: ids[i], Transport: link, Sync: policy})
		if err != nil {
			return nil, nil, err
		}
		closers = append(closers, m.Close)
		g, err := m.CreateReplicatedGroup(consensus.DefaultGroup, nothing{}, ids...)
		if err != nil {
			return nil, nil, err
		}
		groups = append(groups, g)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, g := range groups {
			if g.Leads() {
				return g, done, nil
			}
		}
	}
	return nil, nil, fmt.Errorf("%d nodes have no leader after 10 s", n)
}

// nothing is a state machine without a state.
type nothing struct{}

func (nothing) Apply(_, _ uint64, _ []byte, _ any) (any, error) { return nil, nil }
func (nothing) AppliedIndex() uint64                            { return 0 }

// proposals is how many small proposals per second a group answers, inFlight at once.
func proposals(o options, g *consensus.Group) (perSecond float64, err error) {
	cmd := make([]byte, small)
	var count atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	begin := time.Now()
	end := begin.Add(time.Duration(o.seconds * float64(time.Second)))
	for range inFlight {
		wg.Go(func() {
			for time.Now().Before(end) && failed.Load() == nil {
				if _, err := g.Propose(context.Background(), cmd, nil); err != nil {
					failed.Store(&err)
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return 0, *e
	}
	if err := g.Compact(g.AppliedIndex()); err != nil {
		return 0, err
	}
	return float64(count.Load()) / time.Since(begin).Seconds(), nil
}

// syncRate is how many batches per second the disk takes behind each other in a file whose space is there.
func syncRate(o options) (perSecond float64, err error) {
	const size, space = small * inFlight, 32 << 20
	f, err := os.Create(filepath.Join(o.dir, "file"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data := make([]byte, space)
	if _, err := f.Write(data); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	begin := time.Now()
	count := 0
	for ; time.Since(begin).Seconds() < o.seconds; count++ {
		if _, err := f.WriteAt(data[:size], int64(count*size%space)); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
	}
	return float64(count) / time.Since(begin).Seconds(), nil
}

// fileSpeed is how many MiB per second of a new file are written and synced.
func fileSpeed(o options) (float64, error) {
	path := filepath.Join(o.dir, "large")
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer os.Remove(path)
	defer f.Close()
	data := make([]byte, large)
	begin := time.Now()
	for range o.sizeMB {
		if _, err := f.Write(data); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return float64(o.sizeMB) / time.Since(begin).Seconds(), nil
}

// logSpeed is how many MiB per second of large proposals a group takes, the sync at the end included.
func logSpeed(o options, g *consensus.Group) (float64, error) {
	cmd := make([]byte, large)
	begin := time.Now()
	for range o.sizeMB {
		if _, err := g.Propose(context.Background(), cmd, nil); err != nil {
			return 0, err
		}
	}
	if err := g.Sync(context.Background()); err != nil {
		return 0, err
	}
	speed := float64(o.sizeMB) / time.Since(begin).Seconds()
	return speed, g.Compact(g.AppliedIndex())
}
