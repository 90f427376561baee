package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vdefs/vde"
	"vdefs/vde/layout"
)

// codeOfError gives an error its exit code.
type codeOfError struct {
	err  error
	code exitCode
}

// storeErrors maps what the engine says to exit codes.
var storeErrors = []codeOfError{
	{vde.ErrStoreExists, exitStoreExists},
	{vde.ErrNotAStore, exitNotAStore},
	{vde.ErrStoreInUse, exitStoreInUse},
	{vde.ErrTooSmall, exitNoSpace},
	{vde.ErrDamaged, exitDamaged},
	{vde.ErrNoSpace, exitNoSpace},
	{vde.ErrBadBlock, exitIO},
	{vde.ErrFailed, exitIO},
}

// ownerOnly keeps the files that this process makes in a store from everybody but its owner, whatever the mode of the store's
// directory: in them is what the users of the mount keep from each other. A mount is not concerned: the modes in it are made from the callers'
// own masks.
func ownerOnly() { unix.Umask(0o077) }

// storeFormats tells the oldest and newest format of a store that this program reads.
func storeFormats() (oldest, newest int) { return layout.Version1, layout.Newest }

// checkStore refuses a directory that is no store which this program can read.
func checkStore(store string) error {
	info, err := os.Stat(store)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return failf(exitNotAStore, "store %s does not exist: make it with `vde format %s`", store, store)
	case err != nil:
		return explainOpen(store, err)
	case !info.IsDir():
		return failf(exitNotAStore, "store %s is no directory: name the directory that vde format made", store)
	}
	_, err = vde.ReadInfo(nil, store)
	return explainOpen(store, err)
}

// explainOpen gives an error of opening a store its exit code, and says what to do.
func explainOpen(store string, err error) error {
	var version *layout.VersionError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, vde.ErrStoreInUse):
		return failf(exitStoreInUse, "store %s is in use%s", store, describeUser(store))
	case errors.As(err, &version):
		return failf(exitVersion, "%w", err)
	case errors.Is(err, vde.ErrDamaged):
		return failf(exitDamaged, "%w: run `vde fsck %s`", err, store)
	case errors.Is(err, os.ErrPermission):
		return failf(exitPermission, "store %s: %w: only its owner and root may open it", store, err)
	}
	return err
}

// describeUser says who has a store open, if its daemon tells.
func describeUser(store string) string {
	report, err := newControlClient(store).status(context.Background())
	switch {
	case err != nil:
		return ": another process has it open; wait for it to end"
	case report.State == stateServing:
		return fmt.Sprintf(": the daemon with pid %d serves it; stop it with `vde serve --stop %s`", report.PID, store)
	case report.State == stateMounted:
		return fmt.Sprintf(": it is mounted at %s by the daemon with pid %d; unmount it with `vde umount %s`", report.Mountpoint, report.PID, report.Mountpoint)
	default:
		return fmt.Sprintf(": its daemon with pid %d is %s", report.PID, report.State)
	}
}
