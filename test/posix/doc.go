// Package posix tells whether a directory behaves as POSIX and Linux say: Operations, which run anywhere, and the way to
// run pjdfstest. The tests beside it run them on mounts; control_test.go runs them on the machine's own disk filesystem, as a
// test that ext4 fails is wrong.
package posix

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Operations are tests of one subject each, by name. Each is given an empty directory of its own and needs root.
var Operations = map[string]func(t *testing.T, dir string){}

// must fails the test if something that has to work did not.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want checks for an errno (0: success).
func want(t *testing.T, what string, err error, errno syscall.Errno) {
	t.Helper()
	if errno == 0 && err == nil {
		return
	}
	if !errors.Is(err, errno) || errno == 0 {
		t.Errorf("%s: got %v, want %v", what, err, errno)
	}
}

// equal compares two values.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func lstat(t *testing.T, path string) *unix.Stat_t {
	t.Helper()
	st := new(unix.Stat_t)
	must(t, unix.Lstat(path, st))
	return st
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

// opened has the descriptors that open has given out, and to which test.
var opened sync.Map

// open opens a file until the end of the test or shut.
func open(t *testing.T, path string, flags int, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
	must(t, err)
	opened.Store(fd, t)
	t.Cleanup(func() {
		if opened.CompareAndDelete(fd, t) {
			unix.Close(fd)
		}
	})
	return fd
}

// shut closes what open has opened.
func shut(t *testing.T, fd int) {
	t.Helper()
	opened.Delete(fd)
	must(t, unix.Close(fd))
}

// command runs a program in a directory. The directory may be on a mount that this very process serves, so the step into it
// is left to a shell: the runtime cannot serve while it waits for a child that has yet to exec.
func command(dir, program string, arguments ...string) *exec.Cmd {
	return exec.Command("/bin/sh", append([]string{"-c", `cd "$0" && exec "$@"`, dir, program}, arguments...)...)
}

// as runs a shell command as an ordinary user.
func as(t *testing.T, uid, gid uint32, dir, script string) error {
	t.Helper()
	command := command(dir, "/bin/sh", "-c", script)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, output)
	}
	return nil
}

// sub makes a directory.
func sub(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.Mkdir(path, 0o755))
	return path
}

// RunOperations runs all Operations, each in a directory of its own below dir, with the umask 022.
func RunOperations(t *testing.T, dir string) {
	if os.Geteuid() != 0 {
		t.Skip("the operations take root")
	}
	unix.Umask(0o022)
	for name, test := range Operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, sub(t, dir, name))
		})
	}
}
