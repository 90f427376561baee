package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// clusterNodes is how many nodes are measured, all on this machine; clusterPort and those after it are what they listen on.
const (
	clusterNodes = 3
	clusterPort  = 7531
)

// vdeProgram is the path of the program that is measured.
type vdeProgram string

// run returns what a verb prints on its standard output.
func (p vdeProgram) run(args ...string) ([]byte, error) {
	output, err := exec.Command(string(p), args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %.300s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("vde %s: %w", args[0], err)
	}
	return output, nil
}

// runJSON is run for a verb that prints JSON.
func (p vdeProgram) runJSON(into any, args ...string) error {
	output, err := p.run(args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(output, into); err != nil {
		return fmt.Errorf("what vde %s prints: %w", args[0], err)
	}
	return nil
}

// unmount ends a mount, at the latest when nobody uses it any more.
func (p vdeProgram) unmount(mnt string) {
	if _, err := p.run("umount", mnt); err != nil {
		unix.Unmount(mnt, unix.MNT_DETACH)
	}
}

// mountCluster mounts a store that stands alone, three nodes, and GlusterFS where it is installed.
func mountCluster(o options, root string, bed *testbed) error {
	path, err := buildVDE(root)
	if err != nil {
		return err
	}
	vde := vdeProgram(path)

	alone := filepath.Join(root, "alone")
	if err := os.Mkdir(alone, 0o755); err != nil {
		return err
	}
	store := filepath.Join(root, "store-alone")
	if _, err := vde.run("format", store, "--size", o.store); err != nil {
		return err
	}
	if _, err := vde.run("mount", store, alone); err != nil {
		return err
	}
	bed.later(func() { vde.unmount(alone) })
	bed.targets = append(bed.targets, target{vdeTarget, alone})

	first, err := startNodes(o, root, vde, bed)
	if err != nil {
		return err
	}
	bed.targets = append(bed.targets, target{clusterTarget, first})

	if missing := glusterMissing(); missing != "" {
		bed.notes = append(bed.notes, fmt.Sprintf("without GlusterFS: there is no %s (Debian's package is glusterfs-server)", missing))
		return nil
	}
	gluster, err := mountGluster(root, bed)
	if err != nil {
		bed.notes = append(bed.notes, fmt.Sprint("without GlusterFS: ", err))
		return nil
	}
	bed.targets = append(bed.targets, target{glusterTarget, gluster})
	return nil
}

// startNodes makes and mounts the nodes of a cluster, and returns the mount of the first when all of them vote.
func startNodes(o options, root string, vde vdeProgram, bed *testbed) (first string, err error) {
	var mounts []string
	bed.later(func() {
		// All at once: the last ones have no majority any more.
		var all sync.WaitGroup
		for _, mnt := range mounts {
			all.Go(func() { vde.unmount(mnt) })
		}
		all.Wait()
	})
	for i := range clusterNodes {
		name := fmt.Sprint("n", i+1)
		store, mnt := filepath.Join(root, "store-"+name), filepath.Join(root, name)
		if err := os.Mkdir(mnt, 0o755); err != nil {
			return "", err
		}
		mount := []string{"mount", store, mnt}
		listen := fmt.Sprintf("127.0.0.1:%d", clusterPort+i)
		if i == 0 {
			_, err = vde.run("format", store, "--size", o.store)
			mount = append(mount, "--listen", listen, "--name", name)
		} else {
			var invite struct{ Token string }
			if err := vde.runJSON(&invite, "cluster", "invite", mounts[0], "--json"); err != nil {
				return "", err
			}
			_, err = vde.run("join", invite.Token, store, "--size", o.store, "--listen", listen, "--name", name)
		}
		if err != nil {
			return "", err
		}
		if _, err := vde.run(mount...); err != nil {
			return "", err
		}
		mounts = append(mounts, mnt)
	}
	for i := 1; i < o.groups; i++ {
		if _, err := vde.run("group", "add", mounts[0], fmt.Sprint("g", i)); err != nil {
			return "", err
		}
	}
	return mounts[0], waitVoters(vde, mounts[0])
}

// waitVoters waits until all nodes vote in all groups, which a new one does when it has caught up.
func waitVoters(vde vdeProgram, mnt string) error {
	var status struct {
		Groups []struct {
			Name   string
			Leader uint64
			Voters []uint64
		}
	}
	for range 120 {
		if err := vde.runJSON(&status, "cluster", "status", mnt, "--json"); err != nil {
			return err
		}
		ready := len(status.Groups) > 0
		for _, g := range status.Groups {
			ready = ready && g.Leader != 0 && len(g.Voters) == clusterNodes
		}
		if ready {
			return nil
		}
		time.Sleep(500 * time.Millisecond)
	}
	return fmt.Errorf("after a minute the groups are still without a leader or a voter: %+v", status.Groups)
}
