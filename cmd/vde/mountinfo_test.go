package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseMountinfo(t *testing.T) {
	const table = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
95 22 0:45 / /mnt/with\040space rw,nosuid,nodev - fuse.vde /srv/a\134b\040c rw,user_id=0,group_id=0,allow_other
96 22 0:46 / /mnt/x rw master:1 propagate_from:2 - fuse.vde /srv/y rw
`
	list, err := parseMountinfo(strings.NewReader(table))
	if err != nil || len(list) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	want := mountEntry{Device: "0:45", Mountpoint: "/mnt/with space", Options: "rw,nosuid,nodev", Type: "fuse.vde", Source: `/srv/a\b c`}
	if list[1] != want {
		t.Errorf("%+v, want %+v", list[1], want)
	}
	if list[2].Source != "/srv/y" {
		t.Errorf("optional fields: %+v", list[2])
	}
	if _, err := parseMountinfo(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was accepted")
	}
}

func TestMountedAtRoot(t *testing.T) {
	// In a chroot / need not be a mount.
	info, err := os.ReadFile("/proc/self/mountinfo")
	if m, merr := mountedAt("/"); merr != nil || (m != nil) != (err == nil && strings.Contains(string(info), " / / ")) {
		t.Errorf("/: %v, %v, %v", m, merr, err)
	}
	if m, err := mountedAt(t.TempDir()); err != nil || m != nil {
		t.Errorf("an ordinary directory: %v, %v", m, err)
	}
}

func TestResolvePath(t *testing.T) {
	dir := t.TempDir()
	dir, _ = filepath.EvalSymlinks(dir)
	if err := os.Mkdir(dir+"/real", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/link": "/real", "/real/": "/real", "/link/missing": "/real/missing", "/missing": "/missing"} {
		if got, err := resolvePath(dir + path); err != nil || got != dir+want {
			t.Errorf("%s: %s, %v; want %s", path, got, err, want)
		}
	}
	if _, err := resolvePath(dir + "/missing/deeper"); err == nil {
		t.Error("a missing parent was accepted")
	}
}

// A process is found by its working directory and by an open file.
func TestHolders(t *testing.T) {
	dir := t.TempDir()
	dir, _ = filepath.EvalSymlinks(dir)
	sleep := exec.Command("sleep", "60")
	sleep.Dir = dir
	if err := sleep.Start(); err != nil {
		t.Skip("no sleep(1): ", err)
	}
	defer func() { sleep.Process.Kill(); sleep.Wait() }()
	f, err := os.Create(dir + "/open")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	byPID := map[int]holder{}
	for _, h := range holdersOf(dir) {
		byPID[h.PID] = h
	}
	if h := byPID[os.Getpid()]; h.Path != dir+"/open" {
		t.Errorf("this process: %+v", h)
	}
	if h := byPID[sleep.Process.Pid]; h.Path != dir && !strings.Contains(h.Path, dir) {
		t.Errorf("sleep: %+v", h)
	}
	if text := describeHolders(dir); !strings.Contains(text, "used by") {
		t.Error(text)
	}
}
