package posix

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	Operations["Xattrs"] = xattrs
	Operations["Capabilities"] = capabilities
	Operations["SetIDBits"] = setIDBits
	Operations["Permissions"] = permissions
	Operations["Flock"] = flock
	Operations["OFDLocks"] = ofdLocks
	Operations["Deadlock"] = deadlock
	Operations["Ioctl"] = ioctl
	Operations["Statfs"] = statfs
	Operations["Inotify"] = inotify
	Operations["Signals"] = signals
}

func xattrs(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "")
	want(t, "replace nothing", unix.Setxattr(path, "user.a", []byte("x"), unix.XATTR_REPLACE), unix.ENODATA)
	want(t, "create", unix.Setxattr(path, "user.a", []byte("x"), unix.XATTR_CREATE), 0)
	want(t, "create again", unix.Setxattr(path, "user.a", []byte("x"), unix.XATTR_CREATE), unix.EEXIST)
	value := bytes.Repeat([]byte("v"), 2000)
	want(t, "replace", unix.Setxattr(path, "user.a", value, unix.XATTR_REPLACE), 0)
	want(t, "empty value", unix.Setxattr(path, "trusted.empty", nil, 0), 0)
	n, err := unix.Getxattr(path, "user.a", nil)
	must(t, err)
	equal(t, "size", n, 2000)
	buf := make([]byte, 3000)
	n, err = unix.Getxattr(path, "user.a", buf)
	must(t, err)
	equal(t, "value", bytes.Equal(buf[:n], value), true)
	_, err = unix.Getxattr(path, "user.a", buf[:10])
	want(t, "small buffer", err, unix.ERANGE)
	n, err = unix.Getxattr(path, "trusted.empty", buf)
	must(t, err)
	equal(t, "empty value", n, 0)
	_, err = unix.Getxattr(path, "user.none", buf)
	want(t, "missing", err, unix.ENODATA)
	n, err = unix.Listxattr(path, buf)
	must(t, err)
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	equal(t, "names", slices.Contains(names, "user.a") && slices.Contains(names, "trusted.empty"), true)
	_, err = unix.Listxattr(path, buf[:3])
	want(t, "small list", err, unix.ERANGE)
	want(t, "remove", unix.Removexattr(path, "user.a"), 0)
	want(t, "remove again", unix.Removexattr(path, "user.a"), unix.ENODATA)
	want(t, "long name", unix.Setxattr(path, "user."+strings.Repeat("n", 251), nil, 0), unix.ERANGE)
	link := filepath.Join(dir, "link")
	must(t, os.Symlink("f", link))
	want(t, "user xattr of a symlink", unix.Lsetxattr(link, "user.a", nil, 0), unix.EPERM)
	want(t, "trusted xattr of a symlink", unix.Lsetxattr(link, "trusted.a", []byte("1"), 0), 0)
}

// capability is a value of security.capability: version 2, effective, CAP_NET_RAW.
var capability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// capabilities are lost with a write, a truncation and a change of owner, but not if they are set after the write.
func capabilities(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	has := func() bool {
		_, err := unix.Getxattr(path, "security.capability", make([]byte, 64))
		return err == nil
	}
	set := func() { must(t, unix.Setxattr(path, "security.capability", capability, 0)) }
	write(t, path, "content")
	for name, do := range map[string]func() error{
		"write": func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteString("x")
				err = errorsJoin(err, f.Close())
			}
			return err
		},
		"truncate": func() error { return os.Truncate(path, 3) },
		"O_TRUNC":  func() error { return os.WriteFile(path, nil, 0) },
		"chown":    func() error { return os.Chown(path, 12, 34) },
	} {
		set()
		equal(t, "capability before "+name, has(), true)
		must(t, do())
		equal(t, "capability after "+name, has(), false)
	}
	// As cp -a does.
	must(t, os.Remove(path))
	f, err := os.Create(path)
	must(t, err)
	_, err = f.WriteString("content")
	must(t, err)
	must(t, unix.Fsetxattr(int(f.Fd()), "security.capability", capability, 0))
	must(t, f.Close())
	equal(t, "capability set after the write", has(), true)
}

func errorsJoin(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func setIDBits(t *testing.T, dir string) {
	must(t, os.Chmod(dir, 0o777))
	path := filepath.Join(dir, "f")
	const direct = "dd if=/dev/zero of=f bs=4096 count=1 oflag=direct conv=notrunc status=none"
	for _, c := range []struct {
		name      string
		mode      uint32
		do        func() error
		mode2     uint32
		ownerRoot bool
	}{
		{"write by another", 0o6777, func() error { return as(t, 1234, 1234, dir, "echo x >> f") }, 0o777, true},
		{"write by root", 0o6777, func() error { return as(t, 0, 0, dir, "echo x >> f") }, 0o6777, true},
		{"direct write by another", 0o6777, func() error { return as(t, 1234, 1234, dir, direct) }, 0o777, true},
		{"direct write by another group", 0o6767, func() error { return as(t, 1234, 1234, dir, direct) }, 0o767, true},
		{"direct write by the group", 0o6767, func() error { return as(t, 1234, 0, dir, direct) }, 0o2767, true},
		{"direct write by root", 0o6777, func() error { return as(t, 0, 0, dir, direct) }, 0o6777, true},
		{"allocation by another", 0o6777, func() error { return as(t, 1234, 1234, dir, "fallocate -l 65536 f") }, 0o777, true},
		{"truncate by another", 0o6777, func() error { return as(t, 1234, 1234, dir, ": > f") }, 0o777, true},
		{"chown by root", 0o6777, func() error { return os.Chown(path, 1, 1) }, 0o777, true},
		{"chgrp by the owner", 0o6777, func() error { return as(t, 1234, 1234, dir, "chgrp 1234 f") }, 0o777, false},
	} {
		os.Remove(path)
		write(t, path, "x")
		if !c.ownerRoot {
			must(t, os.Chown(path, 1234, 1234))
		}
		must(t, unix.Chmod(path, c.mode))
		equal(t, c.name+": before", lstat(t, path).Mode&0o7777, c.mode)
		must(t, c.do())
		// Of the mode alone, as execve does: it may be known, when times and size have to be asked for.
		var st unix.Statx_t
		must(t, unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MODE, &st))
		equal(t, c.name+": after", uint32(st.Mode)&0o7777, c.mode2)
		equal(t, c.name+": after, by lstat", lstat(t, path).Mode&0o7777, c.mode2)
	}
	d := sub(t, dir, "d")
	must(t, unix.Chmod(d, 0o6777))
	must(t, os.Chown(d, 1, 1))
	equal(t, "chown of a directory", lstat(t, d).Mode&0o7777, 0o6777)
}

func permissions(t *testing.T, dir string) {
	must(t, os.Chmod(dir, 0o755))
	write(t, filepath.Join(dir, "secret"), "s")
	must(t, os.Chmod(filepath.Join(dir, "secret"), 0o640))
	write(t, filepath.Join(dir, "grouped"), "g")
	must(t, os.Chown(filepath.Join(dir, "grouped"), 0, 77))
	must(t, os.Chmod(filepath.Join(dir, "grouped"), 0o660))
	for script, allowed := range map[string]bool{
		"cat secret": false, ": > new": false, "rm -f secret": false, "chmod 777 secret": false, "ls": true, "cat grouped": true, "echo x >> grouped": true,
		"test -r secret": false, "test -w grouped": true, "touch grouped": true, "touch -d @1 grouped": false,
	} {
		if err := as(t, 1234, 77, dir, script); (err == nil) != allowed {
			t.Errorf("%s: allowed is %v, expected %v (%v)", script, err == nil, allowed, err)
		}
	}
}

// flock keeps two open files apart, waits, and ends with the descriptor or its process.
func flock(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "")
	a, b := open(t, path, unix.O_RDWR, 0), open(t, path, unix.O_RDWR, 0)
	must(t, unix.Flock(a, unix.LOCK_SH))
	must(t, unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB))
	want(t, "exclusive beside shared", unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	must(t, unix.Flock(b, unix.LOCK_UN))
	must(t, unix.Flock(a, unix.LOCK_EX|unix.LOCK_NB))
	var released atomic.Bool
	done := make(chan bool)
	go func() {
		err := unix.Flock(b, unix.LOCK_EX)
		done <- err == nil && released.Load()
	}()
	time.Sleep(50 * time.Millisecond)
	released.Store(true)
	shut(t, a)
	equal(t, "waited for the lock", <-done, true)
	// A process that waits can be killed, one that holds is waited for.
	if err := exec.Command("timeout", "0.2", "flock", path, "true").Run(); err == nil {
		t.Error("another process got the lock that is held here")
	}
	must(t, unix.Flock(b, unix.LOCK_UN))
	must(t, exec.Command("timeout", "5", "flock", "-n", path, "true").Run())
}

func ofdLocks(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "")
	a, b := open(t, path, unix.O_RDWR, 0), open(t, path, unix.O_RDWR, 0)
	lock := func(fd, command int, typ int16, start, length int64) (unix.Flock_t, error) {
		l := unix.Flock_t{Type: typ, Start: start, Len: length}
		err := unix.FcntlFlock(uintptr(fd), command, &l)
		return l, err
	}
	_, err := lock(a, unix.F_OFD_SETLK, unix.F_WRLCK, 10, 10)
	must(t, err)
	_, err = lock(b, unix.F_OFD_SETLK, unix.F_RDLCK, 0, 10)
	must(t, err)
	_, err = lock(b, unix.F_OFD_SETLK, unix.F_RDLCK, 19, 1)
	want(t, "overlap", err, unix.EAGAIN)
	l, err := lock(b, unix.F_OFD_GETLK, unix.F_WRLCK, 0, 0)
	must(t, err)
	equal(t, "found", l.Type == unix.F_WRLCK && l.Start == 10 && l.Len == 10, true)
	_, err = lock(a, unix.F_OFD_SETLK, unix.F_UNLCK, 15, 1)
	must(t, err)
	_, err = lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 15, 1)
	must(t, err)
	done := make(chan error)
	go func() {
		_, err := lock(b, unix.F_OFD_SETLKW, unix.F_WRLCK, 10, 10)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	shut(t, a)
	must(t, <-done)
}

// deadlock has two processes wait for each other's POSIX locks: the second is told.
func deadlock(t *testing.T, dir string) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("it takes python3: ", err)
	}
	write(t, filepath.Join(dir, "f"), "")
	script := `
import errno, fcntl, os, signal, sys, time
f = open("f", "r+")
lock = lambda at, how=fcntl.LOCK_EX: fcntl.lockf(f, how, 1, at)
lock(0)
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    signal.alarm(120)
    lock(1)
    os.write(w, b"x")
    lock(0)                       # waits for the parent
    os._exit(0)
signal.alarm(120)
os.read(r, 1)
time.sleep(1)
try:
    lock(1)
    sys.exit("no deadlock found")
except OSError as e:
    if e.errno != errno.EDEADLK: sys.exit(str(e))
try:                              # one's own locks do not conflict, another's do
    lock(1, fcntl.LOCK_EX | fcntl.LOCK_NB)
    sys.exit("got a lock that is held")
except OSError as e:
    if e.errno not in (errno.EAGAIN, errno.EACCES): sys.exit(str(e))
open("f").close()                 # closing any descriptor gives all locks of the process back
os.waitpid(pid, 0)
lock(1)
class Alarm(Exception): pass
def handler(*a): raise Alarm()
pid = os.fork()
if pid == 0:
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try: lock(1)
    except Alarm: os._exit(3)
    os._exit(4)
sys.exit(0 if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3 else "a waiting lock was not interrupted")
`
	command := command(dir, python, "-c", script)
	if output, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
}

func ioctl(t *testing.T, dir string) {
	write(t, filepath.Join(dir, "f"), "")
	fd := open(t, filepath.Join(dir, "f"), unix.O_RDONLY, 0)
	_, err := unix.IoctlGetInt(fd, unix.TCGETS)
	want(t, "terminal ioctl", err, unix.ENOTTY)
}

func statfs(t *testing.T, dir string) {
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	equal(t, "block size", st.Bsize, 4096)
	equal(t, "name length", st.Namelen, 255)
	if st.Blocks == 0 || st.Bfree > st.Blocks || st.Bavail > st.Bfree || st.Files < st.Ffree {
		t.Errorf("statfs says %+v", st)
	}
}

func inotify(t *testing.T, dir string) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE)
	must(t, err)
	write(t, filepath.Join(dir, "a"), "")
	must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
	must(t, os.Remove(filepath.Join(dir, "b")))
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	must(t, err)
	var masks []uint32
	for b := buf[:n]; len(b) > 0; {
		event := (*unix.InotifyEvent)(ptr(b))
		masks = append(masks, event.Mask)
		b = b[unix.SizeofInotifyEvent+int(event.Len):]
	}
	equal(t, "events", slices.Equal(masks, []uint32{unix.IN_CREATE, unix.IN_CLOSE_WRITE, unix.IN_MOVED_TO, unix.IN_DELETE}), true)
}

// signals shoots at a process that does ordinary things: none of them may fail for it.
func signals(t *testing.T, dir string) {
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip("it takes perl: ", err)
	}
	script := `
use Time::HiRes qw(setitimer ITIMER_REAL time); use Fcntl; use POSIX ();
my $action = POSIX::SigAction->new(sub {}, POSIX::SigSet->new, 0); # without SA_RESTART
$action->safe(1); # else perl runs the sub in the middle of anything, and crashes at times
POSIX::sigaction(POSIX::SIGALRM, $action);
setitimer(ITIMER_REAL, 0.0005, 0.0005);
my $data = "x" x 200000; my $end = time + 0.7; my $i = 0;
while (time < $end) {
	sysopen(my $f, "f$i", O_RDWR|O_CREAT|O_EXCL) or die "create: $!";
	syswrite($f, $data) == length($data) or die "write: $!";
	sysseek($f, 0, 0); sysread($f, my $b, 300000) == length($data) or die "read: $!";
	close($f) or die "close: $!";
	rename("f$i", "g$i") or die "rename: $!";
	mkdir("d$i") or die "mkdir: $!"; rmdir("d$i") or die "rmdir: $!";
	unlink("g$i") or die "unlink: $!";
	$i++;
}
`
	command := command(dir, "perl", "-e", script)
	if output, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
}
