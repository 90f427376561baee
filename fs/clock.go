package fs

import (
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// Now is the time for timestamps of files: the kernel's coarse clock, which is the one that the kernel itself stamps
// files with (those in its writeback cache). With a finer clock here, a file that the kernel stamps could look older
// than one that was made before it, and make(1) would rebuild for nothing.
func Now() meta.Time {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &t) != nil {
		// Every kernel since 2.6.32 has the clock.
		_ = unix.ClockGettime(unix.CLOCK_REALTIME, &t)
	}
	return meta.Time{Sec: t.Sec, Nsec: uint32(t.Nsec)}
}
