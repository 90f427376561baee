package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// refused runs the program and checks that it fails with an exit code and one line that holds all the words.
func refused(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	stdout, stderr, got := vde(args...)
	line := strings.TrimRight(stderr, "\n")
	if hint := strings.Index(line, "\nTry 'vde"); code == 2 && hint > 0 {
		line = line[:hint]
	}
	switch {
	case got != code:
		t.Errorf("vde %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout, stderr)
	case strings.Contains(line, "\n") || !strings.HasPrefix(line, "vde"):
		t.Errorf("vde %s: the error is not one line: %q", strings.Join(args, " "), stderr)
	case stdout != "":
		t.Errorf("vde %s: prints %q besides the error", strings.Join(args, " "), stdout)
	}
	for _, word := range words {
		if !strings.Contains(line, word) {
			t.Errorf("vde %s: the error lacks %q:\n%s", strings.Join(args, " "), word, line)
		}
	}
}

func TestCommandLineErrors(t *testing.T) {
	for _, c := range []struct {
		words []string
		args  []string
	}{
		{[]string{"no verb", `"frobnicate"`}, []string{"frobnicate"}},
		{[]string{"no verb", `"frobnicate"`}, []string{"help", "frobnicate"}},
		{[]string{"no verb", `"frobnicate"`}, []string{"help", "cluster", "frobnicate"}},
		{[]string{"argument 1 is empty"}, []string{"format", ""}},
		{[]string{"argument 1 is empty"}, []string{"status", ""}},
		{[]string{"argument 2 is empty"}, []string{"mount", "/a", ""}},
		{[]string{"argument 1 is empty"}, []string{"png", ""}},
		{[]string{"STORE is missing"}, []string{"format"}},
		{[]string{"STORE is missing"}, []string{"mount"}},
		{[]string{"MOUNTPOINT is missing"}, []string{"mount", "/a"}},
		{[]string{"MOUNTPOINT is missing"}, []string{"umount"}},
		{[]string{`"c" is one too many`}, []string{"mount", "a", "b", "c"}},
		{[]string{"unknown flag", "--colour"}, []string{"status", "--colour"}},
		{[]string{`"10GB" is ambiguous`, "10G"}, []string{"format", "/a", "--size", "10GB"}},
		{[]string{`"big"`, "512M"}, []string{"format", "/a", "--size", "big"}},
		{[]string{"unknown mount option", `"turbo"`, "known are", "noatime"}, []string{"mount", "/a", "/b", "-o", "ro,turbo"}},
		{[]string{"--log-level", `"loud"`, "debug"}, []string{"status", "--log-level", "loud"}},
		{[]string{"--lazy", "--force"}, []string{"umount", "/mnt", "--lazy", "--force"}},
	} {
		refused(t, 2, c.words, c.args...)
	}
}

func TestFormatErrors(t *testing.T) {
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	if stdout, stderr, code := vde("format", store, "--size", "64M"); code != 0 || !strings.Contains(stdout, "vde mount "+store) {
		t.Fatalf("%d, %q, %q", code, stdout, stderr)
	}
	before := read(t, filepath.Join(store, "vde.json"))
	refused(t, 11, []string{store, "store already"}, "format", store, "--size", "64M")
	if string(before) != string(read(t, filepath.Join(store, "vde.json"))) {
		t.Error("the refused format changed the store")
	}
	full := filepath.Join(dir, "full")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(full, "precious"), []byte("data"))
	refused(t, 11, []string{full, "not empty", "precious"}, "format", full)
	refused(t, 15, []string{"too small"}, "format", filepath.Join(dir, "small"), "--size", "4K")
	refused(t, 15, []string{"8E"}, "format", filepath.Join(dir, "large"), "--size", "8E")
	refused(t, 1, []string{"precious", "directory"}, "format", filepath.Join(full, "precious", "store"))
	refused(t, 1, []string{"/dev/null", "not a block device"}, "format", filepath.Join(dir, "device"), "--block-device", "/dev/null")
	for _, name := range []string{"small", "large", "device"} {
		if _, err := os.Stat(filepath.Join(dir, name, "vde.json")); err == nil {
			t.Errorf("%s: a refused format left a store", name)
		}
	}
	stdout, _, _ := vde("format", filepath.Join(dir, "json"), "--size", "64M", "--json")
	var info struct {
		UUID string
		Size uint64
	}
	if err := json.Unmarshal([]byte(stdout), &info); err != nil || info.Size != 64<<20 || len(info.UUID) != 36 {
		t.Errorf("format --json: %q, %v", stdout, err)
	}
}

func TestMountErrors(t *testing.T) {
	d := newDisk(t, "64M")
	dir := filepath.Dir(d.store)
	empty, file := filepath.Join(dir, "empty"), filepath.Join(dir, "file")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, file, nil)
	refused(t, 10, []string{filepath.Join(dir, "missing"), "does not exist", "vde format"}, "mount", filepath.Join(dir, "missing"), d.mnt)
	refused(t, 10, []string{empty, "vde format"}, "mount", empty, d.mnt)
	refused(t, 10, []string{file, "no directory"}, "mount", file, d.mnt)
	refused(t, 16, []string{filepath.Join(dir, "nowhere"), "does not exist", "mkdir"}, "mount", d.store, filepath.Join(dir, "nowhere"))
	refused(t, 16, []string{file, "no directory"}, "mount", d.store, file)
	refused(t, 16, []string{d.store, "one in the other"}, "mount", d.store, d.store)
	refused(t, 16, []string{d.store, "one in the other"}, "mount", d.store, dir)
	refused(t, 18, []string{d.mnt, "not mounted"}, "umount", d.mnt)
	refused(t, 18, []string{"/proc", "type proc"}, "umount", "/proc")

	d.mount()
	pid := fmt.Sprint(d.status().PID)
	refused(t, 17, []string{d.store, d.mnt, "already"}, "mount", d.store, d.mnt)
	refused(t, 12, []string{d.store, "mounted at " + d.mnt}, "mount", d.store, empty)
	other := filepath.Join(dir, "other")
	d.vde("format", other, "--size", "64M")
	refused(t, 17, []string{d.mnt, d.store}, "mount", other, d.mnt)
	refused(t, 8, []string{d.store, "in use", pid}, "fsck", d.store)
	refused(t, 11, []string{d.store}, "format", d.store)

	// Busy: a shell with its working directory in the mount.
	shell := exec.Command("sleep", "60")
	shell.Dir = d.mnt
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	refused(t, 17, []string{d.mnt, "busy", "sleep", fmt.Sprint(shell.Process.Pid)}, "umount", d.mnt)
	if !d.isMounted() {
		t.Error("the refused umount unmounted")
	}
	d.vde("umount", "--lazy", d.mnt)
	if d.isMounted() {
		t.Error("umount --lazy left the mount in the tree")
	}
	shell.Process.Kill()
	shell.Wait()
	eventually(t, "the daemon still has the store", func() bool {
		_, _, code := vde("mount", d.store, d.mnt)
		return code == 0
	})
	d.umount()

	// A store of the future, and a damaged one.
	info := read(t, filepath.Join(d.store, "vde.json"))
	newer := strings.Replace(string(info), `"format_version": 1`, `"format_version": 99`, 1)
	write(t, filepath.Join(d.store, "vde.json"), []byte(newer))
	refused(t, 13, []string{"99", "newer vde"}, "mount", d.store, d.mnt)
	write(t, filepath.Join(d.store, "vde.json"), []byte("{"))
	refused(t, 14, []string{d.store, "damaged", "vde fsck"}, "mount", d.store, d.mnt)
	write(t, filepath.Join(d.store, "vde.json"), info)
	if err := os.Rename(filepath.Join(d.store, "disk.vde"), filepath.Join(d.store, "hidden")); err != nil {
		t.Fatal(err)
	}
	refused(t, 14, []string{d.store, "disk.vde", "missing"}, "mount", d.store, d.mnt)
	if err := os.Rename(filepath.Join(d.store, "hidden"), filepath.Join(d.store, "disk.vde")); err != nil {
		t.Fatal(err)
	}
}

func TestStatus(t *testing.T) {
	d := newDisk(t, "64M")
	offline := d.vde("status", d.store)
	if !strings.Contains(offline, "not mounted") {
		t.Errorf("offline status: %s", offline)
	}
	var f facts
	if err := json.Unmarshal([]byte(d.vde("status", d.store, "--json")), &f); err != nil || f.PID != 0 || f.Size == 0 || f.State == "mounted" {
		t.Errorf("offline status: %+v, %v", f, err)
	}
	refused(t, 18, []string{d.mnt, "neither"}, "status", d.mnt)

	d.mount()
	write(t, d.path("file"), make([]byte, 1<<20))
	for _, by := range []string{d.store, d.mnt} {
		var f facts
		if err := json.Unmarshal([]byte(d.vde("status", by, "--json")), &f); err != nil {
			t.Fatal(err)
		}
		if f.PID <= 1 || f.Store != d.store || f.Mountpoint != d.mnt || len(f.Groups) != 1 || f.Groups[0].Name != "default" ||
			f.Size == 0 || f.Size > 64<<20 || f.Used == 0 || f.State != "mounted" || len(f.UUID) != 36 {
			t.Errorf("status of %s: %+v", by, f)
		}
		if text := d.vde("status", by); !strings.Contains(text, d.mnt) || !strings.Contains(text, fmt.Sprint(f.PID)) {
			t.Errorf("status of %s:\n%s", by, text)
		}
	}
	if all := d.vde("status"); !strings.Contains(all, d.mnt) {
		t.Errorf("vde status does not list the mount:\n%s", all)
	}
	var all []facts
	if err := json.Unmarshal([]byte(d.vde("status", "--json")), &all); err != nil || len(all) == 0 {
		t.Errorf("vde status --json: %v, %v", all, err)
	}
	// The socket is the owner's alone.
	if info, err := os.Stat(filepath.Join(d.store, "control.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v", info.Mode(), err)
	}
	if metrics := d.sh("curl -s --unix-socket " + d.store + "/control.sock http://vde/metrics || true"); metrics != "" && !strings.Contains(metrics, "vde_size_bytes") {
		t.Errorf("metrics:\n%s", metrics)
	}
}

func TestInfo(t *testing.T) {
	d := mounted(t, "64M")
	write(t, d.path("file"), make([]byte, 100_000))
	text := d.vde("info", d.path("file"))
	for _, word := range []string{"inode", "group", "default", "extents"} {
		if !strings.Contains(strings.ToLower(text), word) {
			t.Errorf("vde info lacks %q:\n%s", word, text)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(d.path("file"), &st); err != nil {
		t.Fatal(err)
	}
	var info map[string]any
	if err := json.Unmarshal([]byte(d.vde("info", d.path("file"), "--json")), &info); err != nil {
		t.Fatal(err)
	}
	if inode, _ := info["inode"].(float64); uint64(inode) != st.Ino {
		t.Errorf("inode %v, stat says %d", info["inode"], st.Ino)
	}
	refused(t, 18, []string{"/proc/version", "no file of a mounted vde"}, "info", "/proc/version")
	refused(t, 1, []string{d.path("missing")}, "info", d.path("missing"))
}

func TestVersionAndHelp(t *testing.T) {
	if stdout, _, code := vde("version"); code != 0 || !strings.HasPrefix(stdout, "vde ") {
		t.Errorf("version: %d, %q", code, stdout)
	} else if flag, _, code := vde("--version"); code != 0 || flag != stdout {
		t.Errorf("--version: %d, %q; version: %q", code, flag, stdout)
	}
	var v struct{ Version string }
	stdout, _, _ := vde("version", "--json")
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || v.Version == "" {
		t.Errorf("version --json: %q, %v", stdout, err)
	}
	for _, verb := range []string{"format", "mount", "umount", "status", "info", "fsck", "version"} {
		if stdout, _, code := vde(verb, "--help"); code != 0 || !strings.Contains(stdout, "Usage:") {
			t.Errorf("%s --help: %d, %q", verb, code, stdout)
		}
	}
	if stdout, _, code := vde("help", "exit-codes"); code != 0 || !strings.Contains(stdout, "fsck(8)") {
		t.Errorf("help exit-codes: %d, %q", code, stdout)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if stdout, _, code := vde("completion", shell); code != 0 || len(stdout) < 1000 {
			t.Errorf("completion %s: %d", shell, code)
		}
	}
	if stdout, _, _ := vde("__complete", "mount", "a", "b", "-o", "ro,no"); !strings.Contains(stdout, "ro,noatime") {
		t.Errorf("completion of mount options: %q", stdout)
	}
}

// Mount options have their effect.
func TestMountOptions(t *testing.T) {
	d := mounted(t, "64M", "nosuid,nodev,noexec,noatime")
	write(t, d.path("script"), []byte("#!/bin/sh\necho ran\n"))
	if err := os.Chmod(d.path("script"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(d.path("script")).Run(); err == nil {
		t.Error("noexec: a program ran")
	}
	if options := d.sh("grep \" $MNT \" /proc/self/mountinfo"); !strings.Contains(options, "nosuid") || !strings.Contains(options, "nodev") || !strings.Contains(options, "noexec") {
		t.Errorf("options: %s", options)
	}
	d.remount("ro")
	if err := os.WriteFile(d.path("new"), nil, 0o644); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("ro: writing gives %v", err)
	}
	if output, err := exec.Command(d.path("script")).Output(); err != nil || string(output) != "ran\n" {
		t.Errorf("by default programs run: %q, %v", output, err)
	}
	d.remount()
	if err := unix.Mknod(d.path("zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	if n := d.sh("head -c 10 $MNT/zero | wc -c"); strings.TrimSpace(n) != "10" {
		t.Errorf("a device in a mount of root: %s", n)
	}
	// Other users may use it, within the modes of the files.
	write(t, d.path("secret"), []byte("secret"))
	if err := os.Chmod(d.path("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	nobody := func(line string) error {
		cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", line)
		cmd.Dir = "/"
		return cmd.Run()
	}
	if nobody("cat "+d.path("script")) != nil || nobody("cat "+d.path("secret")) == nil || nobody("touch "+d.path("by-nobody")) == nil {
		t.Error("another user may do what the modes forbid, or not what they allow")
	}
}

// The daemon in the foreground, its signals and its log.
func TestForegroundAndSignals(t *testing.T) {
	d := newDisk(t, "64M")
	log := filepath.Join(filepath.Dir(d.store), "daemon.log")
	cmd := exec.Command(program, "mount", d.store, d.mnt, "--foreground", "--log-file", log, "--log-format", "json")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	eventually(t, "not mounted", d.isMounted)
	write(t, d.path("file"), []byte("data"))

	rotated := log + ".1"
	if err := os.Rename(log, rotated); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(unix.SIGHUP)
	eventually(t, "the log was not opened anew", func() bool { _, err := os.Stat(log); return err == nil })
	for line := range strings.Lines(string(read(t, rotated))) {
		var event map[string]any
		if err := json.Unmarshal([]byte(line), &event); err != nil || event["msg"] == nil || event["level"] == nil {
			t.Errorf("log line %q: %v", line, err)
		}
	}

	cmd.Process.Signal(unix.SIGTERM)
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		t.Fatal("SIGTERM did not end the daemon")
	}
	if d.isMounted() {
		t.Error("SIGTERM left the mount in the tree")
	}
	if !strings.Contains(string(read(t, log)), "store closed") {
		t.Error("the log does not tell of the end")
	}
	d.mount()
	if string(read(t, d.path("file"))) != "data" {
		t.Error("the file is gone")
	}
}

// umount returns when everything is on disk and the daemon has ended, also plain umount(2) leaves a clean store behind.
func TestUmountWaits(t *testing.T) {
	d := mounted(t, "256M")
	pid := d.status().PID
	write(t, d.path("large"), make([]byte, 100<<20))
	d.umount()
	if err := unix.Kill(pid, 0); err == nil {
		waitGone(t, pid) // it may be a zombie of ours for a moment
	}
	d.fsck("--data")
	d.mount()
	pid = d.status().PID
	if err := unix.Unmount(d.mnt, 0); err != nil {
		t.Fatal(err)
	}
	waitGone(t, pid)
	d.fsck()
	if _, err := os.Stat(filepath.Join(d.store, "control.sock")); err == nil {
		t.Error("the control socket was left behind")
	}
	// A mount that follows at once waits for the daemon of the one before, which is held up here.
	d.mount()
	d.sh("sync -f $MNT")
	pid = d.status().PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGCONT)
	if err := unix.Unmount(d.mnt, 0); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { unix.Kill(pid, unix.SIGCONT) })
	d.mount()
}

// A dead daemon: status and umount say so, and a new mount takes its place.
func TestDeadDaemon(t *testing.T) {
	d := mounted(t, "64M")
	write(t, d.path("file"), []byte("data"))
	d.sh("sync -f $MNT/file")
	d.kill()
	refused(t, 22, []string{d.mnt, "dead"}, "status", d.mnt)
	d.vde("umount", d.mnt)
	if d.isMounted() {
		t.Fatal("umount left the dead mount")
	}
	d.mount()
	d.kill()
	d.mount() // over the dead one
	if string(read(t, d.path("file"))) != "data" {
		t.Error("the file is gone")
	}
}

// A store may lie deeper than the address of a socket can be long, and its name may hold anything.
func TestLongAndStrangePaths(t *testing.T) {
	d := newDisk(t, "64M")
	deep := filepath.Join(filepath.Dir(d.store), strings.Repeat("long/", 40), "sto re,with=odd\\signs#")
	mnt := filepath.Join(filepath.Dir(d.store), "mo unt,on=this")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	d.vde("format", deep, "--size", "64M")
	d.store, d.mnt = deep, mnt
	d.mount()
	if f := d.status(); f.Store != deep || f.Mountpoint != mnt {
		t.Errorf("%+v", f)
	}
	d.umount()
}

// The helper of mount(8): its arguments, its exit codes, and the type that df and findmnt show.
func TestMountHelper(t *testing.T) {
	d := newDisk(t, "64M")
	helper := filepath.Join(filepath.Dir(d.store), "mount.fuse.vde")
	unhelper := filepath.Join(filepath.Dir(d.store), "umount.fuse.vde")
	for _, link := range []string{helper, unhelper} {
		if err := os.Symlink(program, link); err != nil {
			t.Fatal(err)
		}
	}
	if _, stderr, code := runProgram(exec.Command(helper, d.store, d.mnt, "-o", "turbo")); code != 1 || !strings.Contains(stderr, "turbo") {
		t.Errorf("unknown option: %d, %q", code, stderr)
	}
	if _, stderr, code := runProgram(exec.Command(helper, d.store+"-not", d.mnt)); code != 32 || !strings.Contains(stderr, "does not exist") {
		t.Errorf("no store: %d, %q", code, stderr)
	}
	if _, stderr, code := runProgram(exec.Command(helper, d.store, d.mnt, "-n", "-o", "rw,noauto,_netdev,x-systemd.automount,noatime", "-t", "fuse.vde")); code != 0 {
		t.Fatalf("%d, %q", code, stderr)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.mnt, &st); err != nil {
		t.Fatal(err)
	}
	if kind := strings.Fields(d.sh("df --output=fstype,source $MNT | tail -n 1")); kind[0] != "fuse.vde" || kind[1] != d.store {
		t.Errorf("df shows %q", kind)
	}
	if _, stderr, code := runProgram(exec.Command(unhelper, d.mnt, "-t", "fuse.vde")); code != 0 || d.isMounted() {
		t.Errorf("umount helper: %d, %q", code, stderr)
	}
}

// fsck ends with the codes of fsck(8), names what is damaged, and prints JSON.
func TestFsck(t *testing.T) {
	d := mounted(t, "64M")
	write(t, d.path("file"), make([]byte, 1<<20))
	d.umount()
	var report map[string]any
	if err := json.Unmarshal([]byte(d.vde("fsck", d.store, "--json", "--data")), &report); err != nil {
		t.Errorf("fsck --json: %v", err)
	}
	if text := d.vde("fsck", d.store); !strings.Contains(text, "clean") {
		t.Errorf("fsck: %s", text)
	}
	refused(t, 8, []string{"does not exist"}, "fsck", d.store+"-not")
	if _, _, code := vde("fsck"); code != 16 {
		t.Errorf("fsck without arguments: %d", code)
	}

	// Damage the first superblock: it is found, repaired when asked, and found no more.
	image, err := os.OpenFile(filepath.Join(d.store, "disk.vde"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt([]byte("XXXXXXXX"), 0); err != nil {
		t.Fatal(err)
	}
	image.Close()
	if stdout, _, code := vde("fsck", d.store); code != 4 || !strings.Contains(stdout, "superblock") {
		t.Errorf("fsck of a damaged store: %d, %s", code, stdout)
	}
	if stdout, _, code := vde("fsck", d.store, "--repair"); code != 1 {
		t.Errorf("fsck --repair: %d, %s", code, stdout)
	}
	d.vde("fsck", d.store)
}
