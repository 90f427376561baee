package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The names of what is compared.
const (
	diskTarget     = "disk"
	loopbackTarget = "loopback"
	vdeTarget      = "vde"
)

// target is a directory to work in.
type target struct{ name, dir string }

// mountTargets builds both programs and mounts them in root. The returned function undoes it, also after an error.
func mountTargets(o options, root string) (targets []target, unmount func(), err error) {
	var undo []func()
	unmount = func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	dirs := map[string]string{}
	for _, name := range []string{"disk", "below-loopback", "loopback", "vde"} {
		dirs[name] = filepath.Join(root, name)
		if err := os.Mkdir(dirs[name], 0o755); err != nil {
			return nil, unmount, err
		}
	}
	vde, loopback := filepath.Join(root, "vde.program"), filepath.Join(root, "loopback.program")
	for program, source := range map[string]string{vde: "vdefs/cmd/vde", loopback: "github.com/hanwen/go-fuse/v2/example/loopback"} {
		build := exec.Command("go", "build", "-o", program, source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			return nil, unmount, fmt.Errorf("go build %s: %w\n%s", source, err, output)
		}
	}

	var log bytes.Buffer
	daemon := exec.Command(loopback, "-q", "-allow-other", dirs["loopback"], dirs["below-loopback"])
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		return nil, unmount, err
	}
	undo = append(undo, func() {
		unix.Unmount(dirs["loopback"], unix.MNT_DETACH)
		daemon.Process.Kill()
		daemon.Wait()
	})
	if err := waitMounted(dirs["loopback"], root); err != nil {
		return nil, unmount, fmt.Errorf("loopback: %w: %s", err, log.String())
	}

	store := filepath.Join(root, "store")
	for _, args := range [][]string{{"format", store, "--size", o.store}, {"mount", store, dirs["vde"]}} {
		if output, err := exec.Command(vde, args...).CombinedOutput(); err != nil {
			return nil, unmount, fmt.Errorf("vde %s: %w\n%s", args[0], err, output)
		}
	}
	undo = append(undo, func() {
		if exec.Command(vde, "umount", dirs["vde"]).Run() != nil {
			unix.Unmount(dirs["vde"], unix.MNT_DETACH)
		}
	})
	return []target{{diskTarget, dirs["disk"]}, {loopbackTarget, dirs["loopback"]}, {vdeTarget, dirs["vde"]}}, unmount, nil
}

// waitMounted waits until a directory is on another device than its parent.
func waitMounted(dir, parent string) error {
	for range 100 {
		var a, b unix.Stat_t
		if unix.Stat(dir, &a) == nil && unix.Stat(parent, &b) == nil && a.Dev != b.Dev {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("not mounted after 10 seconds")
}

// dropCaches empties the kernel's caches of files, attributes and names.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
