package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// exitCode is the status a process ends with. Scripts depend on the numbers: one is never given another meaning.
type exitCode int

// The registry of exit codes. `vde fsck` has its own, those of fsck(8), and the mount helper those of mount(8).
const (
	exitOK          exitCode = 0
	exitFailure     exitCode = 1
	exitUsage       exitCode = 2
	exitNotAStore   exitCode = 10
	exitStoreExists exitCode = 11
	exitStoreInUse  exitCode = 12
	exitVersion     exitCode = 13
	exitDamaged     exitCode = 14
	exitNoSpace     exitCode = 15
	exitMountpoint  exitCode = 16
	exitBusy        exitCode = 17
	exitNotMounted  exitCode = 18
	exitPermission  exitCode = 19
	exitIO          exitCode = 20
	exitNoFUSE      exitCode = 21
	exitDaemonDied  exitCode = 22
	exitTimeout     exitCode = 23

	// Of clusters. 32 stays free: to mount(8) it means something else.
	exitNoCluster    exitCode = 24
	exitToken        exitCode = 25
	exitExpired      exitCode = 26
	exitUsedInvite   exitCode = 27
	exitOtherCluster exitCode = 28
	exitTaken        exitCode = 29
	exitClock        exitCode = 30
	exitAddress      exitCode = 31
	exitQuorum       exitCode = 33
	exitUnknown      exitCode = 34
)

// Exit codes of fsck(8), used by `vde fsck` alone.
const (
	fsckClean       exitCode = 0
	fsckRepaired    exitCode = 1
	fsckUncorrected exitCode = 4
	fsckOperational exitCode = 8
	fsckUsage       exitCode = 16
	fsckCanceled    exitCode = 32
)

// Exit codes of mount(8), used by the mount helper alone.
const (
	mountUsage   exitCode = 1
	mountFailure exitCode = 32
)

// exitCodeTable documents the registry, in the order of `vde help exit-codes`.
var exitCodeTable = []struct {
	code exitCode
	when string
}{
	{exitOK, "done"},
	{exitFailure, "failed for a reason without a number of its own"},
	{exitUsage, "the command line is wrong: an unknown verb, flag or mount option, a missing argument, a bad size"},
	{exitNotAStore, "the directory is no store"},
	{exitStoreExists, "format: the directory holds a store already, or other files"},
	{exitStoreInUse, "another process has the store open"},
	{exitVersion, "the store was written by a newer version of vde"},
	{exitDamaged, "the store is damaged: run `vde fsck`"},
	{exitNoSpace, "no space on the disk, or the size asked for is too small or too large"},
	{exitMountpoint, "the mount point is missing, is no directory, or cannot be used"},
	{exitBusy, "mount: something is mounted there already; umount: a process still uses the mount"},
	{exitNotMounted, "nothing of vde is mounted there"},
	{exitPermission, "permission denied"},
	{exitIO, "the disk answered with an I/O error"},
	{exitNoFUSE, "this machine cannot mount FUSE filesystems: /dev/fuse or fusermount3 is missing"},
	{exitDaemonDied, "the daemon ended without unmounting: before the mount was ready, or it left a dead mount behind; see its log"},
	{exitTimeout, "the daemon did not answer in time"},
	{exitNoCluster, "the store is no member of a cluster, or no longer, or its join was interrupted"},
	{exitToken, "join: the token is torn or is none"},
	{exitExpired, "join: the invitation has expired"},
	{exitUsedInvite, "join: the invitation has been used, or the cluster does not know it"},
	{exitOtherCluster, "join: what answers is not of the cluster that made the invitation, or its secret is wrong"},
	{exitTaken, "the name or address of the node, or the name of the group, is taken"},
	{exitClock, "join: the clocks of this machine and of the cluster differ by more than a minute"},
	{exitAddress, "an address cannot be reached, or not be listened on"},
	{exitQuorum, "no majority of the nodes answers, or none would be left"},
	{exitUnknown, "there is no such node, or no such group"},
}

// fsckExitCodeTable documents the exit codes of `vde fsck`.
var fsckExitCodeTable = []struct {
	code exitCode
	when string
}{
	{fsckClean, "nothing wrong was found"},
	{fsckRepaired, "something was wrong and has been repaired"},
	{fsckUncorrected, "something is wrong and was left as it is"},
	{fsckOperational, "the check could not be done: no store, store in use, I/O error"},
	{fsckUsage, "the command line is wrong"},
	{fsckCanceled, "interrupted"},
}

// exitCodeHelp is the text of `vde help exit-codes`.
func exitCodeHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes of vde:\n\n")
	for _, e := range exitCodeTable {
		fmt.Fprintf(&b, "  %2d  %s\n", e.code, e.when)
	}
	b.WriteString("\nExit codes of vde fsck, as in fsck(8):\n\n")
	for _, e := range fsckExitCodeTable {
		fmt.Fprintf(&b, "  %2d  %s\n", e.code, e.when)
	}
	fmt.Fprintf(&b, "\nThe mount helper mount.fuse.vde ends with those of mount(8): 0, %d (bad options) or %d (anything else).\n",
		mountUsage, mountFailure)
	return b.String()
}

// codedError is an error that knows the status the process has to end with.
type codedError struct {
	code exitCode
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// failf makes a codedError. The text is one line that names the thing, the value and what to do.
func failf(code exitCode, format string, args ...any) error {
	return &codedError{code, fmt.Errorf(format, args...)}
}

// usagef is failf for a wrong command line.
func usagef(format string, args ...any) error { return failf(exitUsage, format, args...) }

// errnoCodes maps what the system says to exit codes, for errors that have no code yet.
var errnoCodes = []struct {
	errno syscall.Errno
	code  exitCode
}{
	{syscall.EACCES, exitPermission},
	{syscall.EPERM, exitPermission},
	{syscall.EROFS, exitPermission},
	{syscall.ENOSPC, exitNoSpace},
	{syscall.EDQUOT, exitNoSpace},
	{syscall.EFBIG, exitNoSpace},
	{syscall.EIO, exitIO},
}

// codeOf tells the exit code of an error: the outermost codedError's, else one found by the cause.
func codeOf(err error) exitCode {
	if err == nil {
		return exitOK
	}
	var coded *codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	for _, s := range slices.Concat(storeErrors, clusterErrors) {
		if errors.Is(err, s.err) {
			return s.code
		}
	}
	for _, e := range errnoCodes {
		if errors.Is(err, e.errno) {
			return e.code
		}
	}
	return exitFailure
}

// fsckCode turns the exit code of an error into one of fsck(8).
func fsckCode(code exitCode, interrupted bool) exitCode {
	switch {
	case interrupted:
		return fsckCanceled
	case code == exitUsage:
		return fsckUsage
	default:
		return fsckOperational
	}
}
