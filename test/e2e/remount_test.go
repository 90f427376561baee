package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mountOptions are the options of the mount as the kernel shows them.
func (d *disk) mountOptions() string {
	d.t.Helper()
	return strings.Fields(d.sh("grep \" $MNT \" /proc/self/mountinfo"))[5]
}

// A mount becomes read-only and writable again in place. What was written before is on disk then, and who may still write keeps it from
// happening.
func TestRemount(t *testing.T) {
	d := mounted(t, "64M")
	write(t, d.path("file"), []byte("contents"))
	busy, err := os.Create(d.path("busy"))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, 17, []string{"is busy", "busy"}, "mount", d.store, d.mnt, "-o", "remount,ro")
	if err := os.Remove(d.path("busy")); err != nil {
		t.Fatal(err)
	}
	refused(t, 17, []string{"is busy"}, "mount", d.store, d.mnt, "-o", "remount,ro")
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, d.path("file"), []byte("contents"))

	d.vde("mount", d.store, d.mnt, "-o", "remount,ro")
	if err := os.WriteFile(d.path("new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to what is read-only: %v", err)
	}
	if err := os.Rename(d.path("file"), d.path("other")); !errors.Is(err, unix.EROFS) {
		t.Errorf("renaming in what is read-only: %v", err)
	}
	if options := d.vde("status", d.mnt); !strings.Contains(options, "ro,") {
		t.Errorf("status: %s", options)
	}
	read := func() {
		t.Helper()
		if b, err := os.ReadFile(d.path("file")); err != nil || string(b) != "contents" {
			t.Errorf("%q, %v", b, err)
		}
	}
	read()
	d.vde("mount", d.store, d.mnt, "-o", "remount,rw,noatime,noexec")
	if options := d.mountOptions(); options != "rw,noexec,noatime" {
		t.Errorf("mounted with %s", options)
	}
	write(t, d.path("new"), []byte("new"))
	read()
	refused(t, 2, []string{"unmount it and mount it again"}, "mount", d.store, d.mnt, "-o", "remount,cache=strict")
	refused(t, 2, []string{"--memory"}, "mount", d.store, d.mnt, "-o", "remount", "--memory", "1G")
	refused(t, 18, []string{"is not mounted there"}, "mount", d.store, d.store, "-o", "remount")

	// From read-only at first, with everything that a writer needs.
	d.remount("ro")
	d.vde("mount", d.store, d.mnt, "-o", "remount,rw,strictatime")
	if options := d.mountOptions(); options != "rw" {
		t.Errorf("mounted with %s", options)
	}
	write(t, d.path("file"), []byte("later"))
	d.vde("mount", d.store, d.mnt, "-o", "remount,ro")
	d.kill()
	d.mount()
	if b, err := os.ReadFile(d.path("file")); err != nil || string(b) != "later" {
		t.Errorf("after the death of the daemon: %q, %v", b, err)
	}
}

// mount(8) remounts through the helper, with the options that it finds in the list of mounts.
func TestRemountByMount(t *testing.T) {
	d := mounted(t, "64M", "nosuid,strictatime")
	sbin := filepath.Join(filepath.Dir(d.store), "sbin")
	if err := os.Mkdir(sbin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(sbin, "mount.fuse.vde")); err != nil {
		t.Fatal(err)
	}
	mount := func(arguments ...string) (string, error) {
		script := `mount -t overlay -o lowerdir="$0":$(readlink -f /sbin) none $(readlink -f /sbin) || exit 99; exec mount "$@"`
		output, err := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, sbin}, arguments...)...).CombinedOutput()
		if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() == 99 {
			t.Skipf("the helper cannot be put in its place here: %s", output)
		}
		return string(output), err
	}
	for _, c := range []struct {
		arguments []string
		want      string
	}{
		{[]string{"-o", "remount,ro", d.mnt}, "ro,nosuid"},
		{[]string{"-o", "remount,rw,noatime", d.store}, "rw,nosuid,noatime"},
		{[]string{"-t", "fuse.vde", "-o", "suid,dev", "-o", "remount,ro", d.store, d.mnt}, "ro,noatime"},
		{[]string{"-o", "remount,relatime,rw", d.mnt}, "rw,relatime"},
	} {
		if output, err := mount(c.arguments...); err != nil {
			t.Fatalf("mount %q: %v: %s", c.arguments, err, output)
		}
		if got := d.mountOptions(); got != c.want {
			t.Errorf("mount %q: %s, want %s", c.arguments, got, c.want)
		}
		err := os.WriteFile(d.path("file"), nil, 0o644)
		if readOnly := strings.HasPrefix(c.want, "ro"); readOnly != errors.Is(err, unix.EROFS) || !readOnly && err != nil {
			t.Errorf("mount %q: writing: %v", c.arguments, err)
		}
	}
	if output, err := mount("-o", "remount,png=off", d.mnt); err == nil || !strings.Contains(output, "unmount it") {
		t.Errorf("png=off: %v: %s", err, output)
	}
}
