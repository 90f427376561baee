package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newUmountCommand(a *app) *cobra.Command {
	var lazy, force bool
	cmd := &cobra.Command{
		Use:     "umount MOUNTPOINT",
		Aliases: []string{"unmount"},
		Short:   "Unmount; everything is on disk when this returns",
		Long: `Unmounts the filesystem at MOUNTPOINT (the store's directory is taken too), waits until everything is on disk and until
the daemon has ended. A mount that is in use is left alone, and the error says who uses it.`,
		Args:              exactArgs("MOUNTPOINT"),
		ValidArgsFunction: completeMountpoints,
		RunE: func(cmd *cobra.Command, args []string) error {
			mode := unmountNormal
			switch {
			case lazy && force:
				return usagef("--lazy and --force do not go together")
			case lazy:
				mode = unmountLazy
			case force:
				mode = unmountForce
			}
			return runUmount(cmd.Context(), cmd.ErrOrStderr(), args[0], mode)
		},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "take the mount out of the tree now, also if it is in use; its daemon ends when the last file is closed")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "unmount also if it is in use or its daemon does not answer: processes that use it get errors")
	return cmd
}

// runUmount unmounts and waits for the daemon's end.
func runUmount(ctx context.Context, stderr io.Writer, path string, mode unmountMode) error {
	mount, err := findMount(path)
	if err != nil {
		return err
	}
	client := newControlClient(mount.Source)
	report, err := client.status(ctx)
	if err != nil || report.Mountpoint != mount.Mountpoint {
		return umountWithoutDaemon(mount, mode, err)
	}
	daemon, err := watchProcess(report.PID)
	if err != nil {
		return err
	}
	defer daemon.close()

	notice := time.AfterFunc(3*time.Second, func() {
		fmt.Fprintf(stderr, "vde umount: waiting until everything is on disk (daemon: pid %d)\n", report.PID)
	})
	defer notice.Stop()
	done, err := client.umount(ctx, mode)
	if err != nil {
		return err
	}
	if !done.Closed && mode == unmountLazy {
		return nil
	}
	return daemon.wait(ctx, mode)
}

// umountWithoutDaemon removes a mount whose daemon is dead, stuck, or out of reach because of what reason says. Nothing is lost with a dead
// one: what it had not written to disk is recovered by the next mount.
func umountWithoutDaemon(mount mountEntry, mode unmountMode, reason error) error {
	if reason != nil && !errors.Is(reason, errNoDaemon) && mode == unmountNormal {
		return fmt.Errorf("%w; --force unmounts without it", reason)
	}
	if mode == unmountNormal && errors.Is(reason, errNoDaemon) {
		mode = unmountLazy // whoever has files open has lost them already
	}
	err := unmount(mount.Mountpoint, mode)
	if errors.Is(err, errBusy) {
		return failf(exitBusy, "%s is busy: %s; stop it and try again, or use --lazy", mount.Mountpoint, describeHolders(mount.Mountpoint))
	}
	return err
}

// process waits for the end of a process that is no child of this one.
type process struct{ pid, fd int }

func watchProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return &process{pid, -1}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("daemon with pid %d: %w", pid, err)
	}
	return &process{pid, fd}, nil
}

// wait returns when the process has ended. A forced unmount does not wait for a process that hangs.
func (p *process) wait(ctx context.Context, mode unmountMode) error {
	if p.fd < 0 {
		return nil
	}
	const tick = 100 * time.Millisecond
	start := time.Now()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(tick.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("waiting for the daemon with pid %d: %w", p.pid, err)
		case ctx.Err() != nil:
			return ctx.Err()
		case mode == unmountForce && time.Since(start) > stopGrace:
			return failf(exitTimeout, "unmounted, but the daemon with pid %d has not ended after %v: see its log", p.pid, stopGrace)
		}
	}
}

func (p *process) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// findMount finds a mount of ours by its mount point or its store.
func findMount(path string) (mountEntry, error) {
	resolved, err := resolvePath(path)
	if err != nil {
		return mountEntry{}, failf(exitMountpoint, "%s: %w", path, err)
	}
	at, err := mountedAt(resolved)
	if err != nil {
		return mountEntry{}, err
	}
	if at != nil && at.Type == fsType {
		return *at, nil
	}
	if of, err := mountOf(resolved); err != nil || of != nil {
		if err != nil {
			return mountEntry{}, err
		}
		return *of, nil
	}
	if at != nil {
		return mountEntry{}, failf(exitNotMounted, "%s is a mount of type %s, not of vde: use umount", resolved, at.Type)
	}
	return mountEntry{}, failf(exitNotMounted, "%s is not mounted: `vde status` lists what is", resolved)
}

// completeMountpoints completes with the mount points of vde.
func completeMountpoints(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := vdeMounts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	for _, m := range list {
		names = append(names, m.Mountpoint)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
