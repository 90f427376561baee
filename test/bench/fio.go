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

// programInDir runs a command in a directory.
func programInDir(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s in %s: %w: %.300s", name, filepath.Base(dir), err, output)
	}
	return nil
}
