package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// GlusterFS runs as its administrators set it up, on one machine: one glusterd, three bricks on the disk that the stores lie on, a volume
// of three replicas with the defaults, and its FUSE client. All of it is in namespaces of its own:
//
//   - network: bricks on 127.x are refused, so the loopback device of the namespace gets another address, which nobody else sees. The ports
//     are free, whatever else runs.
//   - mounts: GlusterFS keeps sockets in /run, whatever its options say.
//   - processes: glusterd is the first one, so that killing it ends the bricks and whatever else it has started.
//
// The client is in that network, but mounts where everybody sees it.

// glusterAddress is for documentation (RFC 5737) and on no other network.
const glusterAddress = "192.0.2.1"

// glusterPatience bounds every step of the start: glusterd runs a dozen Python programs first.
const glusterPatience = 2 * time.Minute

const glusterBricks = 3

// glusterNamespace prepares the namespaces and turns into glusterd. Its arguments are the address and glusterd's.
const glusterNamespace = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs none /run
mkdir /run/gluster
ip link set lo up
ip addr add "$1/32" dev lo
shift
exec glusterd "$@"`

const glusterdVolfile = `volume management
    type mgmt/glusterd
    option working-directory %[1]s/work
    option run-directory %[1]s/run
    option logging-directory %[1]s/log
    option glusterd-sockfile %[1]s/run/glusterd.socket
    option transport-type socket
    option transport.socket.listen-port 24007
    option ping-timeout 0
    option event-threads 1
    option max-port 60999
end-volume
`

// glusterMissing names a program that is needed and not installed, if there is one.
func glusterMissing() string {
	for _, program := range []string{"glusterd", "gluster", "glusterfs", "ip", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			return program
		}
	}
	return ""
}

// mountGluster starts GlusterFS and returns where it is mounted. Everything it writes is below root.
func mountGluster(root string, bed *testbed) (mnt string, err error) {
	fmt.Fprintf(os.Stderr, "\r%-78s", "GlusterFS starts")
	g := glusterServer{dir: filepath.Join(root, "gluster")}
	mnt = filepath.Join(g.dir, "mnt")
	for _, dir := range []string{"", "work", "run", "log", "mnt"} {
		if err := os.Mkdir(filepath.Join(g.dir, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := g.start(bed); err != nil {
		return "", err
	}
	create := []string{"volume", "create", "bench", "replica", strconv.Itoa(glusterBricks)}
	for i := range glusterBricks {
		create = append(create, fmt.Sprintf("%s:%s/brick%d", glusterAddress, g.dir, i+1))
	}
	create = append(create, "force") // bricks on the root filesystem
	for _, args := range [][]string{create, {"volume", "start", "bench"}} {
		if err := g.command(args...); err != nil {
			return "", err
		}
	}
	return mnt, g.mount(mnt, bed)
}

// glusterServer is a glusterd in namespaces of its own.
type glusterServer struct {
	dir string
	pid int // of glusterd, as it is seen outside
}

// start starts glusterd and waits until it answers.
func (g *glusterServer) start(bed *testbed) error {
	volfile := filepath.Join(g.dir, "glusterd.vol")
	if err := os.WriteFile(volfile, fmt.Appendf(nil, glusterdVolfile, g.dir), 0o644); err != nil {
		return err
	}
	daemon := exec.Command("sh", "-c", glusterNamespace, "sh", glusterAddress,
		"--no-daemon", "--volfile", volfile, "--log-file", filepath.Join(g.dir, "log", "glusterd.log"), "--pid-file", filepath.Join(g.dir, "run", "glusterd.pid"))
	daemon.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Setpgid:    true, // Ctrl-C is for the bench, which ends it in its turn
		Pdeathsig:  syscall.SIGKILL,
	}
	ended, err := startDaemon(daemon, bed)
	if err != nil {
		return fmt.Errorf("glusterd: %w", err)
	}
	g.pid = daemon.Process.Pid
	return waitFor("glusterd", ended, func() error { return g.command("volume", "list") })
}

// command runs gluster, which needs nothing but glusterd's socket.
func (g *glusterServer) command(args ...string) error {
	options := []string{"--mode=script", "--glusterd-sock=" + filepath.Join(g.dir, "run", "glusterd.socket"), "--log-file=" + filepath.Join(g.dir, "log", "cli.log")}
	if output, err := exec.Command("gluster", append(options, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("gluster %s %s: %w: %.300s", args[0], args[1], err, bytes.TrimSpace(output))
	}
	return nil
}

// mount starts the client, with the options that mount -t glusterfs gives it, and waits until the volume can be used.
func (g *glusterServer) mount(mnt string, bed *testbed) error {
	client := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", g.pid), "glusterfs", "--no-daemon", "--process-name", "fuse",
		"--volfile-server="+glusterAddress, "--volfile-id=bench", "--log-file="+filepath.Join(g.dir, "log", "client.log"), mnt)
	client.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	ended, err := startDaemon(client, bed)
	if err != nil {
		return fmt.Errorf("glusterfs: %w", err)
	}
	bed.later(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	return waitFor("the mount of GlusterFS", ended, func() error {
		var above, below unix.Stat_t
		if err := errors.Join(unix.Stat(g.dir, &above), unix.Stat(mnt, &below)); err != nil {
			return err
		}
		if above.Dev == below.Dev {
			return errors.New("not mounted")
		}
		probe := filepath.Join(mnt, "probe")
		return errors.Join(os.Mkdir(probe, 0o755), os.Remove(probe))
	})
}

// startDaemon starts a program that runs until the testbed is closed. When it ends before, the channel tells what it said.
func startDaemon(daemon *exec.Cmd, bed *testbed) (ended <-chan error, err error) {
	var output bytes.Buffer
	daemon.Stdout, daemon.Stderr = &output, &output
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	result, done := make(chan error, 1), make(chan struct{})
	go func() {
		err := daemon.Wait()
		result <- fmt.Errorf("it has ended (%v): %.300s", err, bytes.TrimSpace(output.Bytes()))
		close(done)
	}()
	bed.later(func() {
		daemon.Process.Kill()
		<-done
	})
	return result, nil
}

// waitFor waits until a daemon does what is asked of it.
func waitFor(what string, ended <-chan error, ask func() error) error {
	var err error
	for deadline := time.Now().Add(glusterPatience); time.Now().Before(deadline); {
		if err = ask(); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s is not ready after %v: %w", what, glusterPatience, err)
}
