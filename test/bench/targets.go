package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The names of what is compared.
const (
	diskTarget     = "disk"
	loopbackTarget = "loopback"
	vdeTarget      = "vde"
	clusterTarget  = "cluster"
	glusterTarget  = "gluster"
)

// target is a directory to work in.
type target struct{ name, dir string }

// testbed is what is compared, mounted.
type testbed struct {
	targets []target
	notes   []string // who takes no part, and why
	undo    []func() // in the order in which it was done
}

// later has something undone at the end.
func (b *testbed) later(undo func()) { b.undo = append(b.undo, undo) }

// close undoes all of it, last things first. It may be called at any time, also after an error.
func (b *testbed) close() {
	for _, undo := range slices.Backward(b.undo) {
		undo()
	}
	b.undo = nil
}

// buildVDE builds the program.
func buildVDE(root string) (string, error) {
	program := filepath.Join(root, "vde.program")
	build := exec.Command("go", "build", "-o", program, "vdefs/cmd/vde")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, output)
	}
	return program, nil
}

// mountTargets builds both programs and mounts them in root.
func mountTargets(o options, root string, bed *testbed) error {
	dirs := map[string]string{}
	for _, name := range []string{"disk", "below-loopback", "loopback", "vde"} {
		dirs[name] = filepath.Join(root, name)
		if err := os.Mkdir(dirs[name], 0o755); err != nil {
			return err
		}
	}
	vde, err := buildVDE(root)
	if err != nil {
		return err
	}
	loopback := filepath.Join(root, "loopback.program")
	build := exec.Command("go", "build", "-o", loopback, "github.com/hanwen/go-fuse/v2/example/loopback")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build of the loopback: %w\n%s", err, output)
	}

	var log bytes.Buffer
	daemon := exec.Command(loopback, "-q", "-allow-other", dirs["loopback"], dirs["below-loopback"])
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		return err
	}
	bed.later(func() {
		unix.Unmount(dirs["loopback"], unix.MNT_DETACH)
		daemon.Process.Kill()
		daemon.Wait()
	})
	if err := waitMounted(dirs["loopback"], root); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, log.String())
	}

	store := filepath.Join(root, "store")
	for _, args := range [][]string{{"format", store, "--size", o.store}, {"mount", store, dirs["vde"]}} {
		if output, err := exec.Command(vde, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("vde %s: %w\n%s", args[0], err, output)
		}
	}
	bed.later(func() {
		if exec.Command(vde, "umount", dirs["vde"]).Run() != nil {
			unix.Unmount(dirs["vde"], unix.MNT_DETACH)
		}
	})
	bed.targets = []target{{diskTarget, dirs["disk"]}, {loopbackTarget, dirs["loopback"]}, {vdeTarget, dirs["vde"]}}
	return nil
}

// waitMounted waits until a directory is on another device than its parent.
func waitMounted(dir, parent string) error {
	for range 300 {
		var a, b unix.Stat_t
		if unix.Stat(dir, &a) == nil && unix.Stat(parent, &b) == nil && a.Dev != b.Dev {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("not mounted after 30 seconds")
}

// dropCaches empties the kernel's caches of files, attributes and names.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
