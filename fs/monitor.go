package fs

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// monitorSlack is how late the Go runtime's monitor thread may wake from its naps. It naps 20 microseconds at a time while system
// calls come and go, which a store makes all the time: with the kernel's slack of 50 microseconds that were some 14,000 switches of threads a
// second, a tenth of the processor time of a small cluster. What the monitor does, taking the processor from a thread that
// is in a system call, is done that much later. docs/performance.md has what it is worth.
const monitorSlack = 200 * time.Microsecond

// CalmMonitor sets monitorSlack. Only who has CAP_SYS_NICE may; others go on without.
func CalmMonitor() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	// The runtime starts the monitor before anything else, and none of the two ever ends. The directory lists threads in the order in
	// which they were started, ReadDir by name.
	self := os.Getpid()
	var ids []int
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil && id > self {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return // numbers have wrapped around in between
	}
	path := filepath.Join("/proc", strconv.Itoa(slices.Min(ids)), "timerslack_ns")
	_ = os.WriteFile(path, strconv.AppendInt(nil, int64(monitorSlack), 10), 0)
}
