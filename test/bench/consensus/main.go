// Command consensus measures what a group does with its log beside what the disk does by itself, in one run: each round
// takes the disk and the groups one after the other, so that what the machine does besides hits all alike. It prints
// medians over the rounds.
//
//   - 64 proposals of 128 bytes under way at once, each durable before it is answered, in a group of one node and in one of
//     three (all on this machine, over loopback TCP): of 64 goroutines with one each, and of one with 64 (ProposeAll). Beside them one thread writes 64 x 128 bytes behind each other in a file
//     and syncs each time: the disk's sync rate. How many entries each sync of the leader's log made durable is the mean batch.
//     The share is that of the sync rate times the mean batch, and of the sync rate times 64. CPU is what this process used for each
//     proposal, all nodes together;
//   - proposals of 1 MiB in a group of one node, synced at the end, as a share of writing a file of that size and syncing it.
package main

import (
	"context"
	"encoding/json"
	"errors"
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

	"github.com/prometheus/client_golang/prometheus"

	"vdefs/consensus"
	"vdefs/consensus/transport"
	"vdefs/fs"
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

// result is one line of a table. All numbers are medians of the rounds.
type result struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Group float64 `json:"group"`
	Disk  float64 `json:"disk"`  // for small proposals 64 in each sync
	Share float64 `json:"share"` // of the disk
	Aim   float64 `json:"aim,omitempty"`
	*batching
}

// batching says how the small proposals were put together.
type batching struct {
	Syncs     float64 `json:"syncs"` // of the leader's log, per second
	DiskSyncs float64 `json:"disk_syncs"`
	Batch     float64 `json:"batch"`          // entries in each sync of the leader's log
	Share     float64 `json:"share_of_batch"` // of the disk with so many in each sync
	CPU       float64 `json:"cpu_us"`         // microseconds for each proposal
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
	fs.CalmMonitor() // as in the daemon; the disk's own rate is measured with it too
	m, err := measure(o)
	if err != nil {
		return err
	}
	results := []result{
		m.oneAll.result("64 x 128 bytes of one caller, 1 node", "proposals/s", 0.8),
		m.one.result("64 callers of 128 bytes, 1 node", "proposals/s", 0.8),
		m.threeAll.result("64 x 128 bytes of one caller, 3 nodes", "proposals/s", 0),
		m.three.result("64 callers of 128 bytes, 3 nodes", "proposals/s", 0),
		m.bulk.result("1 MiB, 1 node", "MiB/s", 0.7),
	}
	if o.json {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	return printResults(results)
}

func printResults(results []result) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "proposals\tgroup\tdisk\t\tshare\taim\t")
	for _, r := range results {
		aim := "-"
		if r.Aim > 0 {
			aim = fmt.Sprintf("%.0f %%", 100*r.Aim)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%s\t%.0f %%\t%s\t\n", r.Name, r.Group, r.Disk, r.Unit, 100*r.Share, aim)
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, "syncs\tgroup\tdisk\t\tmean batch\tshare with it\tCPU for each\t")
	for _, r := range results {
		if b := r.batching; b != nil {
			fmt.Fprintf(w, "%s\t%.0f\t%.0f\tsyncs/s\t%.1f\t%.0f %%\t%.1f µs\t\n", r.Name, b.Syncs, b.DiskSyncs, b.Batch, 100*b.Share, b.CPU)
		}
	}
	return w.Flush()
}

// burst is one measurement of small proposals.
type burst struct {
	proposals float64 // answered, per second
	syncs     float64 // of the leader's log, per second
	cpu       float64 // microseconds for each
}

// rounds are what the rounds had, disk[i] measured beside group[i]. small is empty for large proposals.
type rounds struct {
	group, disk []float64
	small       []burst
}

func (r *rounds) add(group, disk float64) {
	r.group, r.disk = append(r.group, group), append(r.disk, disk)
}

// addSmall adds a measurement of small proposals, beside which the disk made syncs per second.
func (r *rounds) addSmall(g burst, syncs float64) {
	r.add(g.proposals, inFlight*syncs)
	r.small = append(r.small, g)
}

func (r *rounds) result(name, unit string, aim float64) result {
	var shares []float64
	for i := range r.group {
		shares = append(shares, r.group[i]/r.disk[i])
	}
	res := result{Name: name, Unit: unit, Group: median(r.group), Disk: median(r.disk), Share: median(shares), Aim: aim}
	if len(r.small) == 0 {
		return res
	}
	var syncs, disk, batch, share, cpu []float64
	for i, s := range r.small {
		d := r.disk[i] / inFlight
		syncs, disk, batch = append(syncs, s.syncs), append(disk, d), append(batch, s.proposals/s.syncs)
		share, cpu = append(share, s.syncs/d), append(cpu, s.cpu)
	}
	res.batching = &batching{Syncs: median(syncs), DiskSyncs: median(disk), Batch: median(batch), Share: median(share), CPU: median(cpu)}
	return res
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// measured is everything: All is of one caller with all proposals, the others of as many callers.
type measured struct{ oneAll, one, threeAll, three, bulk rounds }

func measure(o options) (m measured, err error) {
	single, closeSingle, err := nodes(filepath.Join(o.dir, "one"), 1, consensus.SyncAlways)
	if err != nil {
		return m, err
	}
	defer closeSingle()
	triple, closeTriple, err := nodes(filepath.Join(o.dir, "three"), 3, consensus.SyncAlways)
	if err != nil {
		return m, err
	}
	defer closeTriple()
	lazy, closeLazy, err := nodes(filepath.Join(o.dir, "lazy"), 1, consensus.SyncOnBarrier)
	if err != nil {
		return m, err
	}
	defer closeLazy()
	for range o.rounds {
		before, err := syncRate(o)
		if err != nil {
			return m, err
		}
		for _, part := range []struct {
			to *rounds
			g  group
			by func(options, node) (burst, error)
		}{
			{&m.oneAll, single, proposalsOfOne}, {&m.one, single, proposals},
			{&m.threeAll, triple, proposalsOfOne}, {&m.three, triple, proposals},
		} {
			b, err := part.g.led(o, part.by)
			if err != nil {
				return m, err
			}
			after, err := syncRate(o)
			if err != nil {
				return m, err
			}
			part.to.addSmall(b, (before+after)/2)
			before = after
		}
		file, err := fileSpeed(o)
		if err != nil {
			return m, err
		}
		log, err := logSpeed(o, lazy[0])
		if err != nil {
			return m, err
		}
		m.bulk.add(log, file)
	}
	return m, nil
}

// node is one node and the group that it has.
type node struct {
	*consensus.Group
	manager *consensus.Manager
}

// group is all nodes of a group.
type group []node

// leader waits for a node that leads.
func (g group) leader() (node, error) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, n := range g {
			if n.Leads() {
				return n, nil
			}
		}
	}
	return node{}, fmt.Errorf("%d nodes have no leader after 10 s", len(g))
}

// leaders is how many leaders may be lost in one measurement.
const leaders = 10

// led has the node that leads measured. A machine that is busy with other things can make a leader late for its followers, which elect another one; what was measured until then
// counts for nothing, and the new one is measured.
func (g group) led(o options, by func(options, node) (burst, error)) (burst, error) {
	for lost := 0; ; lost++ {
		n, err := g.leader()
		if err != nil {
			return burst{}, err
		}
		b, err := by(o, n)
		changed := errors.Is(err, consensus.ErrUnknownOutcome) || errors.Is(err, consensus.ErrDropped) || err == nil && !n.Leads()
		if !changed || lost == leaders {
			return b, err
		}
		fmt.Fprintln(os.Stderr, "bench consensus: the leader has changed: measuring again")
	}
}

// syncs is how often the node has made its log durable.
func (n node) syncs() (count uint64, err error) {
	all := prometheus.NewRegistry()
	if err := all.Register(n.manager.Collector()); err != nil {
		return 0, err
	}
	families, err := all.Gather()
	if err != nil {
		return 0, err
	}
	for _, f := range families {
		if f.GetName() == "vde_raft_sync_seconds" {
			return f.GetMetric()[0].GetHistogram().GetSampleCount(), nil
		}
	}
	return 0, errors.New("the node does not count its syncs")
}

// nodes makes a group of n nodes on this machine, which has a leader when it returns.
func nodes(dir string, n int, policy consensus.SyncPolicy) (all group, done func(), err error) {
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
		all = append(all, node{g, m})
	}
	_, err = all.leader()
	return all, done, err
}

// nothing is a state machine without a state.
type nothing struct{}

func (nothing) Apply(_, _ uint64, _ []byte, _ any) (any, error) { return nil, nil }
func (nothing) AppliedIndex() uint64                            { return 0 }

// proposals makes small proposals, inFlight at once, each of a goroutine of its own.
func proposals(o options, g node) (burst, error) {
	cmd := make([]byte, small)
	return during(o, g, func(end time.Time, count *atomic.Int64) error {
		var failed atomic.Pointer[error]
		var wg sync.WaitGroup
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
			return *e
		}
		return nil
	})
}

// proposalsOfOne makes small proposals, inFlight at once, all of one goroutine.
func proposalsOfOne(o options, g node) (burst, error) {
	cmds := slices.Repeat([][]byte{make([]byte, small)}, inFlight)
	return during(o, g, func(end time.Time, count *atomic.Int64) error {
		for time.Now().Before(end) {
			for _, a := range g.ProposeAll(context.Background(), cmds, nil) {
				if a.Err != nil {
					return a.Err
				}
			}
			count.Add(inFlight)
		}
		return nil
	})
}

// during has f make proposals until the end that it is told, and count them.
func during(o options, g node, f func(end time.Time, count *atomic.Int64) error) (burst, error) {
	synced, err := g.syncs()
	if err != nil {
		return burst{}, err
	}
	var count atomic.Int64
	used := cpuTime()
	begin := time.Now()
	if err := f(begin.Add(time.Duration(o.seconds*float64(time.Second))), &count); err != nil {
		return burst{}, err
	}
	took := time.Since(begin).Seconds()
	used = cpuTime() - used
	now, err := g.syncs()
	if err != nil {
		return burst{}, err
	}
	n := float64(count.Load())
	r := burst{proposals: n / took, syncs: float64(now-synced) / took, cpu: float64(used.Nanoseconds()) / 1e3 / n}
	return r, g.Compact(g.AppliedIndex())
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // cannot fail
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
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
func logSpeed(o options, g node) (float64, error) {
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
