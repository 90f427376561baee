package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk is one store with a mount point, for one test.
type disk struct {
	t     *testing.T
	store string
	mnt   string
}

// facts are the fields of `vde status --json` that scripts depend on.
type facts struct {
	PID        int
	State      string
	Store      string
	Mountpoint string
	UUID       string
	Size, Used uint64
	Groups     []struct{ Name string }
}

// newDisk formats a store. At the end of the test it is unmounted, whatever is left, and checked with all its data.
func newDisk(t *testing.T, size string) *disk {
	t.Helper()
	return formatted(t, "--size", size)
}

// formatted is newDisk with the flags of vde format.
func formatted(t *testing.T, flags ...string) *disk {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Dir(dir)} { // other users get through to the mount
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := &disk{t: t, store: filepath.Join(dir, "store"), mnt: filepath.Join(dir, "mnt")}
	d.vde(append([]string{"format", d.store}, flags...)...)
	if err := os.Mkdir(d.mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.finish)
	return d
}

// mounted is newDisk and mount.
func mounted(t *testing.T, size string, options ...string) *disk {
	t.Helper()
	d := newDisk(t, size)
	d.mount(options...)
	return d
}

// finish unmounts, checks the store, and shows the log when something went wrong.
func (d *disk) finish() {
	if d.isMounted() {
		if _, stderr, code := vde("umount", d.mnt); code != 0 {
			d.t.Errorf("at the end: vde umount: %d, %s", code, stderr)
			d.kill()
		}
	}
	for d.isMounted() {
		if err := unix.Unmount(d.mnt, unix.MNT_DETACH); err != nil {
			d.t.Errorf("umount -l %s: %v", d.mnt, err)
			break
		}
	}
	if !d.t.Failed() {
		d.fsck("--data")
	}
	if d.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(d.store, "vde.log"))
		const tail = 8000
		if len(log) > tail {
			log = append([]byte("...\n"), log[len(log)-tail:]...)
		}
		d.t.Logf("log of the daemon:\n%s", log)
	}
}

// mount mounts the store, with mount options.
func (d *disk) mount(options ...string) {
	d.t.Helper()
	args := []string{"mount", d.store, d.mnt}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	d.vde(args...)
}

// umount unmounts and fails the test if the mount is in use.
func (d *disk) umount() {
	d.t.Helper()
	d.vde("umount", d.mnt)
}

// remount gets rid of everything that the kernel and the daemon have in memory.
func (d *disk) remount(options ...string) {
	d.t.Helper()
	d.umount()
	d.mount(options...)
}

// fsck checks the unmounted store, which must be clean.
func (d *disk) fsck(args ...string) {
	d.t.Helper()
	d.vde(append([]string{"fsck", d.store}, args...)...)
}

// status asks the daemon.
func (d *disk) status() facts {
	d.t.Helper()
	var f facts
	if err := json.Unmarshal([]byte(d.vde("status", d.mnt, "--json")), &f); err != nil {
		d.t.Fatalf("vde status --json: %v", err)
	}
	return f
}

// kill ends the daemon as a power cut of the process would, and returns when it is gone.
func (d *disk) kill() {
	d.t.Helper()
	f := d.status()
	if f.PID <= 1 {
		d.t.Fatalf("the status has no pid: %+v", f)
	}
	if err := syscall.Kill(f.PID, syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	waitGone(d.t, f.PID)
}

// waitGone returns when a process has ended.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
	}
	t.Fatalf("process %d has not ended after 30 seconds", pid)
}

func (d *disk) isMounted() bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(table), " "+mountinfoEscapes.Replace(d.mnt)+" ")
}

var mountinfoEscapes = strings.NewReplacer(" ", `\040`, `\`, `\134`, "#", `\043`)

// path gives the path of something in the mount.
func (d *disk) path(names ...string) string {
	return filepath.Join(append([]string{d.mnt}, names...)...)
}

// vde runs the program, which must succeed, and returns what it printed.
func (d *disk) vde(args ...string) string {
	d.t.Helper()
	stdout, stderr, code := vde(args...)
	if code != 0 {
		d.t.Fatalf("vde %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// vde runs the program.
func vde(args ...string) (stdout, stderr string, code int) {
	return runProgram(exec.Command(program, args...))
}

func runProgram(cmd *exec.Cmd) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), code
}

// sh runs a line of shell, which must succeed, and returns what it printed. In it $MNT is the mount.
func (d *disk) sh(line string, env ...string) string {
	d.t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", line)
	cmd.Env = append(append(os.Environ(), "MNT="+d.mnt, "LC_ALL=C"), env...)
	stdout, stderr, code := runProgram(cmd)
	if code != 0 {
		const most = 4000
		d.t.Fatalf("%s: exit code %d\n%.*s%.*s", line, code, most, stdout, most, stderr)
	}
	return stdout
}

// need skips a test, loudly, when a tool is missing; make test installs them all.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: %s is not installed: run .ci/needs test", tool)
		}
	}
}

// write makes a file with contents.
func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// read returns the contents of a file.
func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// decode reads JSON that the program has printed.
func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}
