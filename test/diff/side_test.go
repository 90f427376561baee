package diff

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"path"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	slots   = 6
	arena   = 1 << 20 // the longest read or write
	dataMax = 200 << 10
)

// side is one run of a sequence on one of the two filesystems.
type side struct {
	fd    [slots]int
	flags [slots]int
	buf   []byte // arena bytes, aligned as O_DIRECT wants it
	env   environment
	// reference: this is the side to compare with. It refuses what the other is known not to support, so that the contents
	// stay the same.
	reference bool
	// lie changes what is done, to show that a wrong filesystem is found out.
	lie func(o *op) bool
}

// answer is what a call told: a line with its result, and more lines where there is more to tell.
type answer []string

// play runs a sequence in a directory, by a thread of its own that has it as its root, and returns the answer to every
// call.
func play(root string, ops []*op, env environment, reference bool, lie func(*op) bool) ([]answer, error) {
	type outcome struct {
		answers []answer
		err     error
	}
	done := make(chan outcome)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		debug.SetPanicOnFault(true)
		s := &side{env: env, reference: reference, lie: lie}
		answers, err := s.play(root, ops)
		done <- outcome{answers, err}
	}()
	o := <-done
	return o.answers, o.err
}

func (s *side) play(root string, ops []*op) ([]answer, error) {
	for i := range s.fd {
		s.fd[i] = -1
	}
	var err error
	if s.buf, err = unix.Mmap(-1, 0, arena, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return nil, err
	}
	defer unix.Munmap(s.buf)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	outside, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Chroot(root); err != nil {
		return nil, fmt.Errorf("chroot %s: %w", root, err)
	}
	// The thread may live on for a moment: it must not keep the mount busy.
	defer func() {
		unix.Fchdir(outside)
		unix.Chroot(".")
		unix.Close(outside)
	}()
	if err := unix.Chdir("/"); err != nil {
		return nil, err
	}
	unix.Umask(0o022)
	answers := make([]answer, 0, len(ops))
	for _, o := range ops {
		answers = append(answers, s.do(o))
	}
	for i := range s.fd {
		s.close(i)
	}
	return answers, nil
}

func (s *side) close(slot int) {
	if s.fd[slot] >= 0 {
		unix.Close(s.fd[slot])
		s.fd[slot] = -1
	}
}

// put has a slot hold a descriptor.
func (s *side) put(slot, fd, flags int) {
	s.close(slot)
	s.fd[slot], s.flags[slot] = fd, flags
}

// do makes one call.
func (s *side) do(o *op) (a answer) {
	if instead := s.known(o); instead != "" {
		return answer{instead}
	}
	if s.lie != nil && s.lie(o) {
		return answer{"0"}
	}
	var watched []watch
	if o.probe {
		watched = s.watch(o)
	}
	if u := users[o.as]; o.as != 0 {
		unix.SetfsgidRetGid(u.gid)
		unix.SetfsuidRetUid(u.uid)
	}
	defer func() {
		if e := recover(); e != nil {
			a = answer{fmt.Sprint("panic: ", e)}
		}
		if o.as != 0 {
			unix.SetfsuidRetUid(0)
			unix.SetfsgidRetGid(0)
		}
		a = append(a, times(watched)...)
	}()
	return strings.Split(o.call.run(s, o), "\n")
}

// old is what atime and mtime are set to before a call whose effect on times is watched; sleepy is longer than a tick of
// the clock that files are stamped with, so that a ctime that is set anew is seen to be.
const (
	old    = 1_000_000_000
	sleepy = 12 * time.Millisecond
)

type watch struct {
	what   string
	fd     int
	before unix.Stat_t
}

// watch prepares the objects that a call names, and the directories that they lie in.
func (s *side) watch(o *op) []watch {
	var list []watch
	add := func(what string, fd int, err error) {
		if err != nil {
			return
		}
		ts := []unix.Timespec{{Sec: old}, {Sec: old}}
		if unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH) != nil {
			unix.Close(fd)
			return
		}
		w := watch{what: what, fd: fd}
		if unix.Fstat(fd, &w.before) != nil {
			unix.Close(fd)
			return
		}
		w.what += " (" + kindOf(w.before.Mode) + ")"
		list = append(list, w)
	}
	open := func(p string, flags int) (int, error) {
		return unix.Open(p, unix.O_PATH|unix.O_CLOEXEC|flags, 0)
	}
	for _, p := range []struct{ what, path string }{{"path", o.path}, {"path2", o.path2}} {
		if p.path == "" {
			continue
		}
		fd, err := open(p.path, unix.O_NOFOLLOW)
		add(p.what, fd, err)
		if clean := path.Clean(p.path); clean != "/" && clean != "." {
			fd, err = open(path.Dir(clean), 0)
			add("parent of "+p.what, fd, err)
		}
	}
	for _, d := range []struct {
		what string
		slot int
	}{{"fd", o.slot}, {"fd2", o.slot2}} {
		if d.slot >= 0 && s.fd[d.slot] >= 0 {
			fd, err := unix.FcntlInt(uintptr(s.fd[d.slot]), unix.F_DUPFD_CLOEXEC, 0)
			add(d.what, fd, err)
		}
	}
	for range 20 {
		// Setting one may have moved the ctime of another that is the same: look again, a tick later.
		for i := range list {
			unix.Fstat(list[i].fd, &list[i].before)
		}
		time.Sleep(sleepy)
		late := false
		for _, w := range list {
			var now unix.Stat_t
			if unix.Fstat(w.fd, &now) == nil && now.Atim != w.before.Atim {
				late = true
				unix.UtimesNanoAt(w.fd, "", []unix.Timespec{{Sec: old}, {Sec: old}}, unix.AT_EMPTY_PATH)
			}
		}
		if !late {
			break
		}
		// The kernel reads ahead, and does not wait for it: on a busy machine what an earlier call began comes after the times were set.
	}
	return list
}

// times tells which times of the watched objects have moved, and ends the watch.
func times(list []watch) (lines []string) {
	for _, w := range list {
		var after unix.Stat_t
		if err := unix.Fstat(w.fd, &after); err != nil {
			lines = append(lines, fmt.Sprintf("times of %s: %s", w.what, errno(err)))
		} else {
			for _, t := range []struct {
				name          string
				before, after unix.Timespec
			}{{"atime", w.before.Atim, after.Atim}, {"mtime", w.before.Mtim, after.Mtim}, {"ctime", w.before.Ctim, after.Ctim}} {
				moved := "stayed"
				if t.before != t.after {
					moved = "moved"
				}
				lines = append(lines, fmt.Sprintf("%s of %s %s", t.name, w.what, moved))
			}
		}
		unix.Close(w.fd)
	}
	return lines
}

// digest stands for data that was read.
func digest(data []byte) string {
	switch {
	case len(data) == 0:
		return `""`
	case bytes.Count(data, data[:1]) == len(data):
		return fmt.Sprintf("%d × %#02x", len(data), data[0])
	case len(data) <= 16:
		return fmt.Sprintf("%q", data)
	}
	return fmt.Sprintf("%d bytes, crc %08x", len(data), crc32.ChecksumIEEE(data))
}

// pattern fills the buffer with what a call writes: a byte, and where it was written now and then, so that data at a wrong
// place is seen.
func (s *side) pattern(o *op, n int64) []byte {
	b := s.buf[:n]
	for i := range b {
		b[i] = o.fill
		if i%64 == 0 {
			b[i] = byte(i / 64)
		}
	}
	return b
}

// direct tells whether a slot was opened with O_DIRECT.
func (s *side) direct(slot int) bool { return s.fd[slot] >= 0 && s.flags[slot]&unix.O_DIRECT != 0 }

// aligned rounds what a call on a slot asks for to blocks if it is open with O_DIRECT, as ext4 refuses everything else.
func (s *side) aligned(slot int, off, n int64) (int64, int64) {
	if s.direct(slot) {
		return off &^ 4095, (n + 4095) &^ 4095
	}
	return off, n
}
