package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// fioJob is a workload made of one fio job.
type fioJob struct {
	args string
	size int  // MiB of the file, 0 for options.sizeMB
	cold bool // lay the file out first, and drop the caches
	ops  bool // count operations instead of MiB
	// timed has it run for options.seconds instead of over the file once.
	timed bool
}

func (j fioJob) run(o options, dir string) (float64, error) {
	size := j.size
	if size == 0 {
		size = o.sizeMB
	}
	// Files are laid out whole by a job of their own, so that only what is to be measured is.
	layout := fmt.Sprintf("--name=file --directory=%s --size=%dM", dir, size)
	args := strings.Fields(layout + " --group_reporting --randrepeat=0 --norandommap " + j.args)
	if j.timed {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%d", o.seconds))
	}
	if j.cold || j.timed {
		jobs := "--numjobs=1"
		for _, a := range args {
			if strings.HasPrefix(a, "--numjobs=") {
				jobs = a
			}
		}
		lay := append(strings.Fields(layout), "--rw=write", "--bs=1M", "--end_fsync=1", jobs)
		if strings.Contains(j.args, "--filename=") {
			lay = append(strings.Fields(layout), "--rw=write", "--bs=1M", "--end_fsync=1", "--filename=shared")
		}
		if output, err := exec.Command("fio", lay...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("fio: %w: %.300s", err, output)
		}
	}
	if j.cold {
		if err := dropCaches(); err != nil {
			return 0, err
		}
	}
	output, err := exec.Command("fio", append(args, "--output-format=json")...).Output()
	if err != nil {
		return 0, fmt.Errorf("fio: %w: %.300s", err, output)
	}
	var report struct {
		Jobs []struct {
			Read, Write struct {
				IOPS     float64 `json:"iops"`
				BW       float64 `json:"bw_bytes"`
				TotalIOs float64 `json:"total_ios"`
			}
			JobRuntime float64 `json:"job_runtime"` // ms, the final fsync included
			Sync       struct{ TotalIOs float64 }
		}
	}
	if err := json.Unmarshal(output[strings.IndexByte(string(output), '{'):], &report); err != nil || len(report.Jobs) == 0 {
		return 0, fmt.Errorf("fio's report: %w", err)
	}
	job := report.Jobs[0]
	switch {
	case j.ops:
		return job.Read.IOPS + job.Write.IOPS, nil
	case strings.Contains(j.args, "--end_fsync=1"):
		return float64(size) / (job.JobRuntime / 1000), nil
	default:
		return (job.Read.BW + job.Write.BW) / (1 << 20), nil
	}
}

// sharedDirect writes to disjoint ranges of one file, durably and past the cache.
func sharedDirect(writers int) fioJob {
	const perWriter = 16 // MiB
	return fioJob{size: perWriter * writers, timed: true, ops: true, args: fmt.Sprintf(
		"--filename=shared --rw=randwrite --bs=4k --direct=1 --sync=dsync --numjobs=%d --thread --size=%dM --offset_increment=%dM", writers, perWriter, perWriter)}
}

var workloads = []workload{
	{"sequential 1M write + fsync", "MiB/s", 0.9, fioJob{args: "--rw=write --bs=1M --end_fsync=1"}.run},
	{"sequential 1M read, cold", "MiB/s", 1.0, fioJob{args: "--rw=read --bs=1M", cold: true}.run},
	{"random 4k write + fsync, 1 job", "op/s", 1.0, fioJob{args: "--rw=randwrite --bs=4k --fsync=1", size: 128, timed: true, ops: true}.run},
	{"random 4k write + fsync, 8 jobs", "op/s", 1.5, fioJob{args: "--rw=randwrite --bs=4k --fsync=1 --numjobs=8", size: 32, timed: true, ops: true}.run},
	{"direct dsync 4k, 1 writer", "op/s", 0, sharedDirect(1).run},
	{"direct dsync 4k, 8 writers, 1 file", "op/s", 0, sharedDirect(8).run},
	{"random 4k write, buffered", "op/s", 5.0, fioJob{args: "--rw=randwrite --bs=4k", size: 256, timed: true, ops: true}.run},
	{"random 4k read, cold", "op/s", 1.0, fioJob{args: "--rw=randread --bs=4k", size: 256, timed: true, cold: true, ops: true}.run},
	{"direct 4k random write, depth 64", "op/s", 2.0, fioJob{args: "--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=64", size: 256, timed: true, ops: true}.run},
	{"create, 1 thread", "op/s", 2.0, metadata(1, createFiles).run},
	{"create, 4 threads", "op/s", 2.0, metadata(4, createFiles).run},
	{"stat, cold, 1 thread", "op/s", 2.0, metadata(1, statFiles).after(createFiles).cold().run},
	{"stat, cold, 4 threads", "op/s", 2.0, metadata(4, statFiles).after(createFiles).cold().run},
	{"stat, again, 1 thread", "op/s", 0, metadata(1, statFiles).after(createFiles, statFiles).run},
	{"ls -l, cold", "entries/s", 1.5, metadata(1, listLong).after(createFiles).cold().run},
	{"readdir, again", "entries/s", 0, metadata(1, listAgain).after(createFiles, list).run},
	{"rename, 1 thread", "op/s", 2.0, metadata(1, renameFiles).after(createFiles).run},
	{"rename, 4 threads", "op/s", 2.0, metadata(4, renameFiles).after(createFiles).run},
	{"unlink, 1 thread", "op/s", 2.0, metadata(1, unlinkFiles).after(createFiles).run},
	{"unlink, 4 threads", "op/s", 2.0, metadata(4, unlinkFiles).after(createFiles).run},
	{"untar small files", "files/s", 2.0, untar},
	{"rm -rf small files", "files/s", 2.0, removeTree},
}

// programInDir runs a command in a directory.
func programInDir(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s in %s: %w: %.300s", name, filepath.Base(dir), err, output)
	}
	return nil
}
