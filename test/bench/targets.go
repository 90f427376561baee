package main

import (
	"bytes"
	"encoding/json"
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
	clusterTarget  = "cluster"
)

// target is a directory to work in.
type target struct{ name, dir string }

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

// clusterNodes is how many nodes are measured, all on this machine.
const clusterNodes = 3

// mountCluster mounts a store that stands alone, and the first of three nodes. The returned function undoes it, also after an error.
func mountCluster(o options, root string) (targets []target, unmount func(), err error) {
	var mounts []string
	vde, err := buildVDE(root)
	unmount = func() {
		for _, m := range mounts {
			if exec.Command(vde, "umount", m).Run() != nil {
				unix.Unmount(m, unix.MNT_DETACH)
			}
		}
	}
	if err != nil {
		return nil, unmount, err
	}
	vdeRun := func(args ...string) ([]byte, error) {
		output, err := exec.Command(vde, args...).Output()
		if err != nil {
			err = fmt.Errorf("vde %s: %w", args[0], err)
		}
		return output, err
	}
	for i := range clusterNodes + 1 {
		name := clusterTarget
		store, mnt := filepath.Join(root, fmt.Sprint("store", i)), filepath.Join(root, fmt.Sprint("mnt", i))
		if err := os.Mkdir(mnt, 0o755); err != nil {
			return nil, unmount, err
		}
		mount := []string{"mount", store, mnt}
		listen := fmt.Sprintf("127.0.0.1:%d", 7530+i)
		switch i {
		case 0:
			name = vdeTarget
			_, err = vdeRun("format", store, "--size", o.store)
		case 1:
			_, err = vdeRun("format", store, "--size", o.store)
			mount = append(mount, "--listen", listen)
		default:
			var output []byte
			if output, err = vdeRun("cluster", "invite", filepath.Join(root, "store1"), "--json"); err != nil {
				break
			}
			var invite struct{ Token string }
			if err = json.Unmarshal(output, &invite); err == nil {
				_, err = vdeRun("join", invite.Token, store, "--size", o.store, "--listen", listen, "--name", fmt.Sprint("n", i))
			}
		}
		if err == nil {
			_, err = vdeRun(mount...)
		}
		if err != nil {
			return nil, unmount, err
		}
		mounts = append([]string{mnt}, mounts...)
		if i <= 1 {
			targets = append(targets, target{name, mnt})
		}
	}
	time.Sleep(2 * time.Second) // the last node gets its vote
	return targets, unmount, nil
}

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
	vde, err := buildVDE(root)
	if err != nil {
		return nil, unmount, err
	}
	loopback := filepath.Join(root, "loopback.program")
	build := exec.Command("go", "build", "-o", loopback, "github.com/hanwen/go-fuse/v2/example/loopback")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return nil, unmount, fmt.Errorf("go build of the loopback: %w\n%s", err, output)
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
