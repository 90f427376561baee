// Command bench measures a VDE mount beside the disk that its store lies on and beside go-fuse's loopback example on the same disk, in one
// run: every workload goes round the three before the next one, so that what the machine does besides hits all alike. It prints
// medians, and ratios to the loopback.
//
// The loopback uses passthrough: reads and writes of its files do not reach its daemon at all, which makes it a hard mark.
//
// With -cluster it measures three nodes on this machine, through the mount of one, beside a store that stands alone and beside GlusterFS
// with three replicas, where that is installed.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// options are the flags.
type options struct {
	dir     string
	rounds  int
	seconds int
	sizeMB  int
	files   int // 0: as many as suit what is compared
	only    *regexp.Regexp
	json    bool
	store   string // size of the store
	cluster bool
	groups  int // of a cluster
}

// workload is something that is measured on one directory.
type workload struct {
	name string
	unit string
	aim  float64 // ratio to the loopback that is aimed at, 0 for none
	// peerAim is the ratio of three nodes to GlusterFS that is aimed at. Without one a cluster is measured only if asked for by name.
	peerAim float64
	// run works in an empty directory and returns the figure, larger being better.
	run func(o options, dir string) (float64, error)
}

// result is one line of the table.
type result struct {
	Name   string               `json:"name"`
	Unit   string               `json:"unit"`
	Median map[string]float64   `json:"median"` // by target
	All    map[string][]float64 `json:"all"`
	Ratios map[string]float64   `json:"ratios"` // of what is measured to the others, by target
	Aim    float64              `json:"aim,omitempty"`
	Failed map[string]string    `json:"failed,omitempty"` // errors, by target
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	var only string
	flag.StringVar(&o.dir, "dir", "", "directory on the disk to measure (default: a new one in the system's place for temporary files)")
	flag.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	flag.IntVar(&o.seconds, "seconds", 3, "how long a fio job runs")
	flag.IntVar(&o.sizeMB, "size", 512, "MiB of a file for streams")
	flag.IntVar(&o.files, "files", 0, "files of a metadata workload (default 4000, and 1000 with -cluster)")
	flag.StringVar(&only, "only", "", "measure only what matches this regular expression")
	flag.StringVar(&o.store, "store", "8G", "size of the store")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.BoolVar(&o.cluster, "cluster", false, "measure three nodes on this machine, through the mount of one, beside a store that stands alone and GlusterFS")
	flag.IntVar(&o.groups, "groups", 1, "groups of the cluster")
	flag.Parse()
	if o.files == 0 {
		o.files = 4000
		if o.cluster {
			o.files = 1000 // GlusterFS makes about a hundred in a second
		}
	}
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("it mounts and drops the kernel's caches: run it as root")
	}
	root, err := os.MkdirTemp(o.dir, "vde-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	// From here on there is something to clean up.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	mount, measured := mountTargets, vdeTarget
	if o.cluster {
		mount, measured = mountCluster, clusterTarget
	}
	var bed testbed
	defer bed.close()
	if err := mount(o, root, &bed); err != nil {
		return err
	}
	targets := bed.targets

	results := make([]*result, 0, len(workloads))
	for _, w := range workloads {
		if !o.only.MatchString(w.name) || o.cluster && only == "" && w.peerAim == 0 {
			continue
		}
		r := &result{Name: w.name, Unit: w.unit, Aim: w.aim, Median: map[string]float64{}, All: map[string][]float64{}, Failed: map[string]string{}}
		if o.cluster {
			r.Aim = w.peerAim
		}
		results = append(results, r)
		for round := range o.rounds {
			for i := range targets {
				// Another order each round, so that none always comes after the same.
				t := targets[(i+round)%len(targets)]
				select {
				case <-interrupted:
					return fmt.Errorf("interrupted")
				default:
				}
				fmt.Fprintf(os.Stderr, "\r%-40s round %d of %d: %-10s", w.name, round+1, o.rounds, t.name)
				value, err := measure(o, w, t)
				if err != nil {
					r.Failed[t.name] = err.Error()
					continue
				}
				r.All[t.name] = append(r.All[t.name], value)
			}
		}
		r.sum(measured)
	}
	fmt.Fprintf(os.Stderr, "\r%-78s\r", "")
	if o.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(map[string]any{"machine": machine(), "rounds": o.rounds, "results": results, "notes": bed.notes})
	}
	if o.cluster {
		printClusterTable(results)
	} else {
		printTable(results)
	}
	printNotes(bed.notes, results)
	return nil
}

// measure runs a workload in a new directory of a target, with nothing left to be written by others.
func measure(o options, w workload, t target) (float64, error) {
	dir := filepath.Join(t.dir, "work")
	if err := os.RemoveAll(dir); err != nil {
		return 0, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	unix.Sync()
	value, err := w.run(o, dir)
	if cleanErr := os.RemoveAll(dir); err == nil {
		err = cleanErr
	}
	return value, err
}

// sum computes medians, and ratios of what is measured to the others.
func (r *result) sum(measured string) {
	for name, values := range r.All {
		slices.Sort(values)
		n := len(values)
		r.Median[name] = (values[(n-1)/2] + values[n/2]) / 2
	}
	r.Ratios = map[string]float64{}
	for name, median := range r.Median {
		if name != measured && median > 0 && r.Median[measured] > 0 {
			r.Ratios[name] = r.Median[measured] / median
		}
	}
}

// aimed tells the aim, and whether the ratio to a target misses it.
func (r *result) aimed(other string) string {
	ratio, ok := r.Ratios[other]
	switch {
	case r.Aim == 0:
		return ""
	case ok && ratio < r.Aim:
		return fmt.Sprintf("%.1f missed", r.Aim)
	default:
		return fmt.Sprintf("%.1f", r.Aim)
	}
}

// ratio is the ratio to a target as it is printed; "-" where one of both was not measured.
func (r *result) ratio(other string) string { return cell("%.2f", r.Ratios[other]) }

// median is that of a target as it is printed.
func (r *result) median(target string) string { return cell("%.0f", r.Median[target]) }

func cell(format string, value float64) string {
	if value == 0 {
		return "-"
	}
	return fmt.Sprintf(format, value)
}

func printTable(results []*result) {
	fmt.Println(machine())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tunit\tdisk\tloopback\tvde\tvde/disk\tvde/loopback\taim\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Name, r.Unit, r.median(diskTarget), r.median(loopbackTarget), r.median(vdeTarget),
			r.ratio(diskTarget), r.ratio(loopbackTarget), r.aimed(loopbackTarget))
	}
	w.Flush()
}

func printClusterTable(results []*result) {
	fmt.Println(machine())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tunit\talone\tthree nodes\tgluster\tnodes/alone\tnodes/gluster\taim\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.Name, r.Unit, r.median(vdeTarget), r.median(clusterTarget), r.median(glusterTarget),
			r.ratio(vdeTarget), r.ratio(glusterTarget), r.aimed(glusterTarget))
	}
	w.Flush()
}

// printNotes says what is missing in a table.
func printNotes(notes []string, results []*result) {
	for _, note := range notes {
		fmt.Println(note)
	}
	for _, r := range results {
		for target, reason := range r.Failed {
			fmt.Printf("%s on %s failed: %s\n", r.Name, target, reason)
		}
	}
}

func machine() string {
	var u unix.Utsname
	unix.Uname(&u)
	return fmt.Sprintf("Linux %s, %d processors, %s", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.Version())
}
