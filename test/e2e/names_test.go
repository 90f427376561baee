package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var manyNames = flag.Int("names", 3000, "how many entries the directory of TestManyNames has")

// TestManyNames fills one directory and does with it what people do: everything is found, also while others make and remove names
// beside, and a place in the listing stays one. With -names=1000000 it tells what that costs.
func TestManyNames(t *testing.T) {
	d := mounted(t, "8G")
	dir := d.path("many")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n := *manyNames
	timed := func(what string, do func()) {
		t.Helper()
		start := time.Now()
		do()
		took := time.Since(start)
		t.Logf("%-44s %8.2f s, %7.0f entries/s, %4d MiB of memory in the daemon", what, took.Seconds(), float64(n)/took.Seconds(), d.resident()>>20)
	}
	count := func(line string) {
		t.Helper()
		if got := strings.TrimSpace(d.sh(line)); got != strconv.Itoa(n) {
			t.Fatalf("%s: %s entries, want %d", line, got, n)
		}
	}
	listAll := "ls -f $MNT/many | grep -cv '^[.]'"
	attributes := "ls -lU $MNT/many | grep -c '^-rw-r--r--'"

	timed("create, two at a time", func() {
		var all sync.WaitGroup
		for half := range 2 {
			all.Go(func() {
				for i := half; i < n; i += 2 {
					if err := unix.Mknod(stayName(dir, i), unix.S_IFREG|0o644, 0); err != nil {
						t.Errorf("%s: %v", stayName(dir, i), err)
						return
					}
				}
			})
		}
		all.Wait()
	})
	if t.Failed() {
		t.FailNow()
	}
	timed("ls -f", func() { count(listAll) })
	timed("ls -f again", func() { count(listAll) })
	timed("ls -lU", func() { count(attributes) })
	d.remount()
	timed("ls -lU, cold", func() { count(attributes) })
	// The ACL of each was asked for, and the kernel keeps what it knows, unless it needs the memory or is told to drop it.
	asked := uint64(0)
	for range 3 {
		before := d.requests()
		timed("ls -lU again", func() { count(attributes) })
		if asked = d.requests() - before; asked <= uint64(n)/10+100 {
			break
		}
	}
	if asked > uint64(n)/10+100 && n < 100000 {
		t.Errorf("ls -l of %d files that the kernel knows took %d requests", n, asked)
	}
	d.remount()
	timed("find -newermt, cold", func() { count("find $MNT/many -type f -newermt 2000-01-01 | wc -l") })
	d.remount()
	timed("a listing while others change the directory", func() { listBesideChanges(t, dir, n) })
	timed("seekdir", func() { seekBack(t, dir, n) })
	timed("rm -rf", func() { d.sh("rm -rf $MNT/many") })
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("after rm -rf: %v", err)
	}
}

// resident is the memory of the daemon in bytes.
func (d *disk) resident() uint64 {
	d.t.Helper()
	for line := range strings.Lines(string(read(d.t, fmt.Sprintf("/proc/%d/status", d.status().PID)))) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(kib), " kB"), 10, 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return n << 10
		}
	}
	d.t.Fatal("the daemon has no VmRSS")
	return 0
}

// requests is how many the kernel has sent to the daemon.
func (d *disk) requests() (all uint64) {
	d.t.Helper()
	var f struct {
		Mount struct{ Requests map[string]uint64 }
	}
	if err := json.Unmarshal([]byte(d.vde("status", d.mnt, "--json")), &f); err != nil {
		d.t.Fatal(err)
	}
	for _, n := range f.Mount.Requests {
		all += n
	}
	return all
}

// stayName is the path of an entry that is there from the beginning to the end.
func stayName(dir string, i int) string { return fmt.Sprintf("%s/stays-%07d", dir, i) }

// listBesideChanges lists a directory of n names that stay, in pieces, while two others make and remove names all the time: each of those that
// stay is there once, and none of the others twice.
func listBesideChanges(t *testing.T, dir string, n int) {
	t.Helper()
	stop := make(chan struct{})
	var others sync.WaitGroup
	var changes [2]int
	var done atomic.Int64
	for who := range changes {
		others.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					changes[who] = i
					return
				default:
				}
				done.Add(1)
				if err := unix.Mknod(fmt.Sprintf("%s/comes-%d-%d", dir, who, i), unix.S_IFREG|0o600, 0); err != nil {
					t.Error(err)
					return
				}
				if i >= 50 {
					if err := unix.Unlink(fmt.Sprintf("%s/comes-%d-%d", dir, who, i-50)); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	seen := make(map[string]struct{}, n)
	stayed, pieces := 0, int64(0)
	buf := make([]byte, 32<<10)
	for {
		got, err := unix.ReadDirent(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if got == 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:got], -1, nil)
		for _, name := range names {
			if _, twice := seen[name]; twice {
				t.Errorf("%s was listed twice", name)
			}
			seen[name] = struct{}{}
			if strings.HasPrefix(name, "stays-") {
				stayed++
			}
		}
		for pieces += 10; done.Load() < pieces && !t.Failed(); { // the others get their turn
			time.Sleep(100 * time.Microsecond)
		}
	}
	close(stop)
	others.Wait()
	if stayed != n {
		t.Errorf("%d of %d names were listed", stayed, n)
	}
	if changes[0]+changes[1] < 100 {
		t.Errorf("only %v names were made beside: nothing was tested", changes)
	}
	t.Logf("%d and %d names were made and removed beside the listing", changes[0], changes[1])
	for who, made := range changes {
		for i := max(0, made-50); i < made; i++ {
			if err := unix.Unlink(fmt.Sprintf("%s/comes-%d-%d", dir, who, i)); err != nil {
				t.Error(err)
			}
		}
	}
}

// seekBack goes back to places of a listing, in any order: the same entries follow, until their names are gone.
func seekBack(t *testing.T, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	type place struct {
		at    int64
		names []string
	}
	var places []place
	buf := make([]byte, 4096)
	total := 0
	for {
		at, err := unix.Seek(fd, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := unix.ReadDirent(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if got == 0 {
			break
		}
		_, found, names := unix.ParseDirent(buf[:got], -1, nil)
		total += found
		if len(places) < 50 || rand.IntN(100) == 0 {
			places = append(places, place{at, names})
		}
	}
	if total != n {
		t.Errorf("%d names were listed, want %d", total, n)
	}
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	for _, p := range places[:min(len(places), 300)] {
		if _, err := unix.Seek(fd, p.at, 0); err != nil {
			t.Fatalf("back to %d: %v", p.at, err)
		}
		got, err := unix.ReadDirent(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		_, _, names := unix.ParseDirent(buf[:got], -1, nil)
		both := min(len(names), len(p.names)) // out of the kernel's cache a piece may be larger
		if both == 0 || !slices.Equal(names[:both], p.names[:both]) {
			t.Fatalf("back at %d there are other entries than before: %q, not %q", p.at, names, p.names)
		}
	}
}
