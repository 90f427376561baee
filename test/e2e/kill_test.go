package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var kills = flag.Int("kills", 20, "how often TestKill kills the daemon")

// TestKill kills the daemon under load at random moments. After each mount everything that was synced is there, whole; a file that is
// replaced by rename is always one of its versions; and the checker finds nothing.
func TestKill(t *testing.T) {
	d := mounted(t, "1G")
	load := newCrashLoad(t, d.mnt)
	for round := range *kills {
		pid := d.status().PID
		stop := load.start()
		delay := time.Duration(20+rand.IntN(800)) * time.Millisecond
		time.Sleep(delay)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		stop()
		waitGone(t, pid)
		// stat(2) the kernel may answer by itself.
		if err := os.WriteFile(d.path("more"), nil, 0o644); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("round %d: writing to the dead mount: %v, want ENOTCONN", round, err)
		}
		if round%2 == 0 { // as the crash left it, before anything was replayed
			if err := unix.Unmount(d.mnt, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			d.fsck("--data")
		}
		d.mount() // removes the dead mount by itself
		load.verify(fmt.Sprintf("round %d, killed after %v", round, delay))
		d.umount()
		d.fsck("--data")
		d.mount()
		if t.Failed() {
			t.FailNow()
		}
	}
	load.summary()
}

// crashLoad is a set of workers, each with its own promise of what a crash must leave.
type crashLoad struct {
	t       *testing.T
	workers []crashWorker
}

// crashWorker works in a directory of its own. step does one piece of work; any error ends the round (the daemon is gone). verify checks,
// after a crash, what step had been promised.
type crashWorker interface {
	prepare(dir string) error
	step() error
	verify() error
	count() int
}

func newCrashLoad(t *testing.T, mnt string) *crashLoad {
	l := &crashLoad{t: t, workers: []crashWorker{&appender{}, &creator{}, &renamer{}, &overwriter{direct: true}, &overwriter{}, &churner{}}}
	for i, w := range l.workers {
		dir := filepath.Join(mnt, fmt.Sprintf("worker-%d", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := w.prepare(dir); err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync()
	return l
}

// start runs all workers; the returned function waits for them to fail.
func (l *crashLoad) start() (wait func()) {
	var running sync.WaitGroup
	for _, w := range l.workers {
		running.Go(func() {
			for w.step() == nil {
			}
		})
	}
	return running.Wait
}

func (l *crashLoad) verify(when string) {
	l.t.Helper()
	for _, w := range l.workers {
		if err := w.verify(); err != nil {
			l.t.Errorf("%s: %T: %v", when, w, err)
		}
	}
}

func (l *crashLoad) summary() {
	for _, w := range l.workers {
		l.t.Logf("%T: %d synced operations survived", w, w.count())
		if w.count() == 0 {
			l.t.Errorf("%T did nothing: the test has tested nothing", w)
		}
	}
}

// record is 64 bytes that say what they are: a number, filler, and a checksum.
func record(n uint64) []byte {
	b := make([]byte, 64)
	binary.LittleEndian.PutUint64(b, n)
	for i := 8; i < 60; i++ {
		b[i] = byte(n) + byte(i)
	}
	binary.LittleEndian.PutUint32(b[60:], crc32.ChecksumIEEE(b[:60]))
	return b
}

// appender appends records to one file and syncs every few of them: what was synced is there.
type appender struct {
	path    string
	written uint64 // records handed to write(2)
	synced  uint64 // records that an fsync has covered
}

func (a *appender) prepare(dir string) error {
	a.path = filepath.Join(dir, "log")
	return os.WriteFile(a.path, nil, 0o644)
}

func (a *appender) step() error {
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		for range 1 + rand.IntN(50) {
			if _, err := f.Write(record(a.written)); err != nil {
				return err
			}
			a.written++
		}
		if err := f.Sync(); err != nil {
			return err
		}
		a.synced = a.written
	}
}

func (a *appender) verify() error {
	data, err := os.ReadFile(a.path)
	if err != nil {
		return err
	}
	whole := uint64(len(data) / 64)
	if whole < a.synced {
		return fmt.Errorf("%d records, but %d were synced", whole, a.synced)
	}
	for i := range a.synced {
		if !bytes.Equal(data[i*64:i*64+64], record(i)) {
			return fmt.Errorf("record %d of %d synced ones is wrong", i, a.synced)
		}
	}
	// What was written after the last sync may be there or not; go on behind what was synced.
	a.written = a.synced
	return os.Truncate(a.path, int64(a.synced*64))
}

func (a *appender) count() int { return int(a.synced) }

// creator makes files, syncs them and their directory, and removes old ones: what was synced is there, what was removed is not.
type creator struct {
	dir     string
	next    int
	present map[int]bool
	unsure  map[int]bool // made or removed, but the directory was not synced since
}

func (c *creator) prepare(dir string) error {
	c.dir, c.present, c.unsure = dir, map[int]bool{}, map[int]bool{}
	return nil
}

func (c *creator) path(n int) string { return filepath.Join(c.dir, fmt.Sprintf("file %06d", n)) }

func (c *creator) contents(n int) []byte { return bytes.Repeat(record(uint64(n)), 1+n%200) }

func (c *creator) step() error {
	n := c.next
	c.next++
	c.unsure[n] = true
	f, err := os.Create(c.path(n))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(c.contents(n)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	removed := -1
	if len(c.present) > 100 {
		for removed = range c.present {
			break
		}
		c.unsure[removed] = true
		delete(c.present, removed)
		if err := os.Remove(c.path(removed)); err != nil {
			return err
		}
	}
	if err := syncDir(c.dir); err != nil {
		return err
	}
	c.present[n] = true
	c.unsure = map[int]bool{}
	return nil
}

func (c *creator) verify() error {
	for n := range c.present {
		data, err := os.ReadFile(c.path(n))
		if err != nil {
			return fmt.Errorf("was synced, with its directory: %w", err)
		}
		if !bytes.Equal(data, c.contents(n)) {
			return fmt.Errorf("%s has wrong contents (%d bytes)", c.path(n), len(data))
		}
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var n int
		if _, err := fmt.Sscanf(e.Name(), "file %06d", &n); err != nil || !c.present[n] && !c.unsure[n] {
			return fmt.Errorf("%q is there, but was removed (and the directory synced) or never made", e.Name())
		}
		if c.unsure[n] {
			if err := os.Remove(c.path(n)); err != nil {
				return err
			}
		}
	}
	c.unsure = map[int]bool{}
	return nil
}

func (c *creator) count() int { return c.next }

// renamer replaces a file by rename: whoever looks sees one whole version, and none older than the last one synced.
type renamer struct {
	dir      string
	tried    uint64
	replaced uint64 // version of the last rename after which the directory was synced
}

func (r *renamer) prepare(dir string) error { r.dir = dir; return r.replace(0) }

func (r *renamer) replace(version uint64) error {
	r.tried = version
	scratch := filepath.Join(r.dir, "current.new")
	f, err := os.Create(scratch)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat(record(version), 300)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(scratch, filepath.Join(r.dir, "current")); err != nil {
		return err
	}
	if version%3 != 0 {
		return nil // the rename alone: atomic, but not yet promised
	}
	if err := syncDir(r.dir); err != nil {
		return err
	}
	r.replaced = version
	return nil
}

func (r *renamer) step() error { return r.replace(r.tried + 1) }

func (r *renamer) verify() error {
	data, err := os.ReadFile(filepath.Join(r.dir, "current"))
	if err != nil {
		return err
	}
	if len(data) != 300*64 {
		return fmt.Errorf("the file has %d bytes, every version has %d", len(data), 300*64)
	}
	version := binary.LittleEndian.Uint64(data)
	if !bytes.Equal(data, bytes.Repeat(record(version), 300)) {
		return fmt.Errorf("version %d is not whole", version)
	}
	if version < r.replaced || version > r.tried {
		return fmt.Errorf("version %d, but %d was synced and %d the last", version, r.replaced, r.tried)
	}
	return nil
}

func (r *renamer) count() int { return int(r.replaced) }

// overwriter writes blocks of a file in place, each with its own version: none is older than the last synced, none is torn.
type overwriter struct {
	direct bool // O_DIRECT and O_DSYNC for every block, instead of fsync after some
	path   string
	tried  [overwriterBlocks]uint64
	synced [overwriterBlocks]uint64
	total  int
}

const overwriterBlocks = 256

func (o *overwriter) prepare(dir string) error {
	o.path = filepath.Join(dir, "blocks")
	return os.WriteFile(o.path, make([]byte, overwriterBlocks*4096), 0o644)
}

func (o *overwriter) step() error {
	flags := os.O_WRONLY
	if o.direct {
		flags |= unix.O_DIRECT | unix.O_DSYNC
	}
	f, err := os.OpenFile(o.path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// Page-aligned memory, as direct I/O wants it.
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(block)
	for {
		var dirty []int
		for range 1 + rand.IntN(8) {
			n := rand.IntN(overwriterBlocks)
			o.tried[n]++
			copy(block, bytes.Repeat(record(o.tried[n]<<16|uint64(n)), 64))
			if _, err := f.WriteAt(block, int64(n)*4096); err != nil {
				return err
			}
			if o.direct {
				o.synced[n] = o.tried[n]
				o.total++
			}
			dirty = append(dirty, n)
		}
		if o.direct {
			continue
		}
		if err := f.Sync(); err != nil {
			return err
		}
		for _, n := range dirty {
			o.synced[n] = o.tried[n]
			o.total++
		}
	}
}

func (o *overwriter) verify() error {
	data, err := os.ReadFile(o.path)
	if err != nil {
		return err
	}
	if len(data) != overwriterBlocks*4096 {
		return fmt.Errorf("the file has %d bytes", len(data))
	}
	for n := range overwriterBlocks {
		block := data[n*4096 : n*4096+4096]
		head := binary.LittleEndian.Uint64(block)
		version := head >> 16
		whole := bytes.Equal(block, bytes.Repeat(record(head), 64)) && head&0xffff == uint64(n) || head == 0 && bytes.Equal(block, make([]byte, 4096))
		if !whole {
			return fmt.Errorf("block %d is torn", n)
		}
		if version < o.synced[n] || version > o.tried[n] {
			return fmt.Errorf("block %d has version %d, but %d was synced and %d the last", n, version, o.synced[n], o.tried[n])
		}
	}
	return nil
}

func (o *overwriter) count() int { return o.total }

// churner makes and removes directories, links and symlinks without a sync. What the calls had done when the daemon died is still
// so: its death is no power cut.
type churner struct {
	dir   string
	n     int
	tried int
}

func (c *churner) prepare(dir string) error { c.dir = dir; return nil }

func (c *churner) step() error {
	c.tried = c.n + 1
	sub := filepath.Join(c.dir, fmt.Sprint(c.tried))
	for _, do := range []func() error{
		func() error { return os.Mkdir(sub, 0o755) },
		func() error { return os.Symlink("target", filepath.Join(sub, "symlink")) },
		func() error { return unix.Mknod(filepath.Join(sub, "file"), unix.S_IFREG|0o644, 0) },
		func() error { return os.Link(filepath.Join(sub, "file"), filepath.Join(sub, "link")) },
		func() error { return os.Rename(filepath.Join(sub, "link"), filepath.Join(c.dir, "latest")) },
		func() error {
			if c.tried <= 50 {
				return nil
			}
			return os.RemoveAll(filepath.Join(c.dir, fmt.Sprint(c.tried-50)))
		},
	} {
		if err := do(); err != nil {
			return err
		}
	}
	c.n = c.tried
	return nil
}

func (c *churner) verify() error {
	for n := max(1, c.n-48); n <= c.n; n++ {
		sub := filepath.Join(c.dir, fmt.Sprint(n))
		if target, err := os.Readlink(filepath.Join(sub, "symlink")); err != nil || target != "target" {
			return fmt.Errorf("%d of %d: %q, %w", n, c.n, target, err)
		}
		if _, err := os.Stat(filepath.Join(sub, "file")); err != nil {
			return fmt.Errorf("%d of %d: %w", n, c.n, err)
		}
	}
	return os.RemoveAll(filepath.Join(c.dir, fmt.Sprint(c.n+1)))
}

func (c *churner) count() int { return c.n }

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
