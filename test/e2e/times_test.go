package e2e

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stat returns what statx(2) says of a file.
func stat(t *testing.T, path string) unix.Statx_t {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		t.Fatalf("statx %s: %v", path, err)
	}
	return st
}

// setTimes sets the access and the modification time.
func setTimes(t *testing.T, path string, atime, mtime unix.Timespec) {
	t.Helper()
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{atime, mtime}, 0); err != nil {
		t.Fatalf("utimensat %s: %v", path, err)
	}
}

func moment(at unix.StatxTimestamp) time.Time { return time.Unix(at.Sec, int64(at.Nsec)) }

// TestAtimeOptions reads a file that is a day old thrice: with each option the reads leave what it says, and a new mount finds the same.
func TestAtimeOptions(t *testing.T) {
	for _, c := range []struct {
		option              string
		first, second, aged bool // whether that read changes the access time; aged: when it is more than a day old
	}{
		{"", true, false, true}, // relatime is the default
		{"relatime", true, false, true},
		{"noatime", false, false, false},
		{"strictatime", true, true, true},
	} {
		t.Run("option="+c.option, func(t *testing.T) {
			t.Parallel()
			var options []string
			if c.option != "" {
				options = []string{c.option}
			}
			d := mounted(t, "64M", options...)
			path := d.path("file")
			write(t, path, []byte("contents"))
			yesterday := time.Now().Add(-25 * time.Hour)
			old, err := unix.TimeToTimespec(yesterday)
			if err != nil {
				t.Fatal(err)
			}
			setTimes(t, path, old, old)
			d.remount(options...) // nothing is read out of the kernel's cache
			readNow := func(what string, want bool) {
				t.Helper()
				before := moment(stat(t, path).Atime)
				time.Sleep(15 * time.Millisecond) // the clock of times has ticked
				f, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(f)
				if n, err := unix.Pread(f, make([]byte, 100), 0); n != len("contents") || err != nil {
					t.Fatalf("%d bytes, %v", n, err)
				}
				after := moment(stat(t, path).Atime)
				if changed := !after.Equal(before); changed != want {
					t.Errorf("%s: the access time was %v and is %v, want changed: %v", what, before, after, want)
				}
				if want && time.Since(after) > time.Minute {
					t.Errorf("%s: the access time became %v", what, after)
				}
			}
			readNow("first read", c.first)
			readNow("second read", c.second)
			ctime := moment(stat(t, path).Ctime)
			last := moment(stat(t, path).Atime)
			d.remount(options...)
			if st := stat(t, path); !moment(st.Atime).Equal(last) || !moment(st.Ctime).Equal(ctime) || !moment(st.Mtime).Equal(yesterday) {
				t.Errorf("mounted again: accessed %v, was %v; changed %v, was %v; modified %v, was %v",
					moment(st.Atime), last, moment(st.Ctime), ctime, moment(st.Mtime), yesterday)
			}
			setTimes(t, path, old, unix.Timespec{Nsec: unix.UTIME_OMIT})
			readNow("more than a day later", c.aged)
		})
	}
}

// TestTimesKept: times of any year, to the nanosecond, are the same on the next mount, and the time of birth is nobody's to set.
func TestTimesKept(t *testing.T) {
	d := mounted(t, "64M")
	set := []unix.Timespec{
		{Sec: 0, Nsec: 1},
		{Sec: -1, Nsec: 999999999},       // 1969
		{Sec: -2208988800, Nsec: 5},      // 1900
		{Sec: 1<<31 - 1, Nsec: 123},      // the last second of 32 bits
		{Sec: 1 << 31, Nsec: 456},        // 2038
		{Sec: 1 << 32, Nsec: 789},        // 2106
		{Sec: 8589934591, Nsec: 1e9 - 1}, // 2242
	}
	name := func(i int) string { return d.path(fmt.Sprint("file", i)) }
	var born []unix.StatxTimestamp
	start := time.Now().Add(-time.Second)
	for i, at := range set {
		write(t, name(i), []byte("contents"))
		setTimes(t, name(i), at, set[len(set)-1-i])
		st := stat(t, name(i))
		if b := moment(st.Btime); st.Mask&unix.STATX_BTIME == 0 || b.Before(start) || b.After(time.Now()) {
			t.Errorf("file %d was born at %v, mask %#x", i, b, st.Mask)
		}
		born = append(born, st.Btime)
	}
	check := func(when string) {
		t.Helper()
		for i, at := range set {
			st, other := stat(t, name(i)), set[len(set)-1-i]
			if st.Atime.Sec != at.Sec || int64(st.Atime.Nsec) != at.Nsec || st.Mtime.Sec != other.Sec || int64(st.Mtime.Nsec) != other.Nsec || st.Btime != born[i] {
				t.Errorf("%s: file %d: accessed %+v, want %+v; modified %+v, want %+v; born %+v, want %+v", when, i, st.Atime, at, st.Mtime, other, st.Btime, born[i])
			}
		}
	}
	check("set")
	d.remount()
	check("mounted again")

	// One of both times left as it is, now, or both now.
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	before := stat(t, name(0))
	setTimes(t, name(0), omit, omit)
	if st := stat(t, name(0)); st.Atime != before.Atime || st.Mtime != before.Mtime || st.Ctime != before.Ctime {
		t.Errorf("UTIME_OMIT twice changed times: %+v", st)
	}
	setTimes(t, name(0), now, omit)
	if st := stat(t, name(0)); time.Since(moment(st.Atime)).Abs() > time.Minute || st.Mtime != before.Mtime || st.Ctime == before.Ctime {
		t.Errorf("UTIME_NOW, UTIME_OMIT: accessed %v, modified %v, changed %v", moment(st.Atime), moment(st.Mtime), moment(st.Ctime))
	}
	setTimes(t, name(0), omit, now)
	if st := stat(t, name(0)); time.Since(moment(st.Mtime)).Abs() > time.Minute {
		t.Errorf("UTIME_OMIT, UTIME_NOW: modified %v", moment(st.Mtime))
	}

	// Neither writing nor renaming is being born.
	write(t, name(1), []byte("more contents"))
	if err := unix.Rename(name(1), name(0)); err != nil {
		t.Fatal(err)
	}
	d.remount()
	if st := stat(t, name(0)); st.Btime != born[1] {
		t.Errorf("born %+v, want %+v", st.Btime, born[1])
	}
}
