package posix

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The environment of a test binary that is to serve a mount.
const (
	serveVariant = "VDE_TEST_SERVE"
	serveDir     = "VDE_TEST_SERVE_DIR"
)

// Apart mounts by starting the test binary again, whose TestMain calls ServeApart, and returns the mount point. The mount
// lasts as long as the test.
//
// A process must not use a mount that it serves for all that is tested here. A page fault in a mapping, and the child of a
// fork before it execs, wait for the server without the runtime knowing, which cannot stop the world then to let the
// server go on; and a process that dies while it waits for itself never ends.
func Apart(t *testing.T, variant string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("mounting takes /dev/fuse: ", err)
	}
	base := t.TempDir()
	// For the users that tests turn into.
	must(t, os.Chmod(base, 0o755))
	must(t, os.Chmod(filepath.Dir(base), 0o755))
	dir := sub(t, base, "mnt")
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), serveVariant+"="+variant, serveDir+"="+base)
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	server.Stderr = &log
	stdout, err := server.StdoutPipe()
	must(t, err)
	// The signal at the death of the parent comes at the death of the thread that started it: that one must stay.
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- server.Start()
		<-ended
	}()
	t.Cleanup(func() { close(ended) })
	must(t, <-started)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "mounted\n" {
		t.Fatalf("the server did not start: %v, %v, %s", err, server.Wait(), log.String())
	}
	t.Cleanup(func() {
		err := unix.Unmount(dir, 0)
		for tries := 0; err == unix.EBUSY && tries < 20; tries++ { // a process that was killed is slow to let go
			time.Sleep(50 * time.Millisecond)
			err = unix.Unmount(dir, 0)
		}
		if err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		if err := server.Wait(); err != nil {
			t.Errorf("the server: %v", err)
		}
		if log.Len() > 0 {
			t.Logf("the server says:\n%s", log.String())
		}
	})
	return dir
}

// ServeApart does nothing, unless Apart has started this process: then it has serve mount on the directory mnt in base and
// return a function that waits for the end, and exits.
func ServeApart(serve func(variant, base string) (wait func() error, err error)) {
	variant := os.Getenv(serveVariant)
	if variant == "" {
		return
	}
	unix.Umask(0)
	wait, err := serve(variant, os.Getenv(serveDir))
	if err == nil {
		os.Stdout.WriteString("mounted\n")
		err = wait()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
