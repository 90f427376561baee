// Command bench measures a VDE mount beside the disk that its store lies on and beside go-fuse's loopback example on the same disk, in one
// run: every workload goes round the three before the next one, so that what the machine does besides hits all alike. It prints
// medians, and ratios to the loopback.
//
// The loopback uses passthrough: reads and writes of its files do not reach its daemon at all, which makes it a hard mark.
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
	files   int
	only    *regexp.Regexp
	json    bool
	store   string // size of the store
	cluster bool
}

// workload is something that is measured on one directory.
type workload struct {
	name string
	unit string
	aim  float64 // ratio to the loopback that is aimed at, 0 for none
	// run works in an empty directory and returns the figure, larger being better.
	run func(o options, dir string) (float64, error)
}

// result is one line of the table.
type result struct {
	Name   string               `json:"name"`
	Unit   string               `json:"unit"`
	Median map[string]float64   `json:"median"` // by target
	All    map[string][]float64 `json:"all"`
	Ratio  float64              `json:"ratio_to_loopback"`
	Disk   float64              `json:"ratio_to_disk"`
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
	flag.IntVar(&o.files, "files", 4000, "files of a metadata workload")
	flag.StringVar(&only, "only", "", "measure only what matches this regular expression")
	flag.StringVar(&o.store, "store", "8G", "size of the store")
	flag.BoolVar(&o.json, "json", false, "print JSON")
	flag.BoolVar(&o.cluster, "cluster", false, "measure three nodes on this machine, through the mount of one, beside a store that stands alone")
	flag.Parse()
	if o.cluster && only == "" {
		only = "^(seq|random 4k write .|create|stat, cold, 1|unlink, 1|untar)"
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
	mount := mountTargets
	if o.cluster {
		mount = mountCluster
	}
	targets, unmount, err := mount(o, root)
	defer unmount()
	if err != nil {
		return err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)

	results := make([]*result, 0, len(workloads))
	for _, w := range workloads {
		if !o.only.MatchString(w.name) {
			continue
		}
		r := &result{Name: w.name, Unit: w.unit, Aim: w.aim, Median: map[string]float64{}, All: map[string][]float64{}, Failed: map[string]string{}}
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
		r.sum()
	}
	fmt.Fprintf(os.Stderr, "\r%-78s\r", "")
	if o.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(map[string]any{"machine": machine(), "rounds": o.rounds, "results": results})
	}
	if o.cluster {
		printClusterTable(results)
	} else {
		printTable(results)
	}
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

// sum computes medians and ratios.
func (r *result) sum() {
	for name, values := range r.All {
		slices.Sort(values)
		n := len(values)
		r.Median[name] = (values[(n-1)/2] + values[n/2]) / 2
	}
	if m := r.Median[loopbackTarget]; m > 0 {
		r.Ratio = r.Median[vdeTarget] / m
	}
	if m := r.Median[diskTarget]; m > 0 {
		r.Disk = r.Median[vdeTarget] / m
	}
}

func printTable(results []*result) {
	fmt.Println(machine())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tunit\tdisk\tloopback\tvde\tvde/disk\tvde/loopback\taim\t")
	for _, r := range results {
		aim, mark := "", ""
		if r.Aim > 0 {
			aim = fmt.Sprintf("%.1f", r.Aim)
			if r.Ratio < r.Aim {
				mark = " missed"
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t%s%s\t\n", r.Name, r.Unit, r.Median[diskTarget], r.Median[loopbackTarget], r.Median[vdeTarget],
			r.Disk, r.Ratio, aim, mark)
	}
	w.Flush()
	for _, r := range results {
		for target, reason := range r.Failed {
			fmt.Printf("%s on %s failed: %s\n", r.Name, target, reason)
		}
	}
}

func printClusterTable(results []*result) {
	fmt.Println(machine())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tunit\talone\tthree nodes\tratio\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%.2f\t\n", r.Name, r.Unit, r.Median[vdeTarget], r.Median[clusterTarget], r.Median[clusterTarget]/r.Median[vdeTarget])
	}
	w.Flush()
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
