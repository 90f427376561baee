package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// unmountMode says what to do about processes that still use a mount.
type unmountMode string

const (
	unmountNormal unmountMode = "normal" // refuse
	unmountLazy   unmountMode = "lazy"   // take it out of the tree now; it ends when the last of them has closed
	unmountForce  unmountMode = "force"  // fail their requests
)

var errBusy = errors.New("busy")

// unmount takes a filesystem out of the tree. errBusy is wrapped if processes use it and the mode does not allow that.
func unmount(mountpoint string, mode unmountMode) error {
	if os.Geteuid() != 0 {
		return fusermountUnmount(mountpoint, mode)
	}
	flags := unix.UMOUNT_NOFOLLOW
	switch mode {
	case unmountLazy:
		flags |= unix.MNT_DETACH
	case unmountForce:
		flags |= unix.MNT_FORCE
	}
	err := unix.Unmount(mountpoint, flags)
	if errors.Is(err, unix.EBUSY) && mode == unmountForce {
		// Its requests have failed by now, but the files are still open.
		err = unix.Unmount(mountpoint, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EBUSY) {
		return errBusy
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", mountpoint, err)
	}
	return nil
}

// fusermountUnmount is unmount for users who may not call umount(2); the helper lets them unmount what they mounted.
func fusermountUnmount(mountpoint string, mode unmountMode) error {
	args := []string{"-u", "--", mountpoint}
	if mode != unmountNormal {
		args = []string{"-u", "-z", "--", mountpoint}
	}
	output, err := exec.Command("fusermount3", args...).CombinedOutput()
	text := strings.TrimSpace(string(output))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return failf(exitNoFUSE, "unmount %s: fusermount3 is missing: install the package fuse3", mountpoint)
	case strings.Contains(text, "busy"):
		return errBusy
	default:
		return fmt.Errorf("unmount %s: %s (%w)", mountpoint, text, err)
	}
}
