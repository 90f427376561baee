package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

const remountOption = "remount"

// shownOptions are words of /proc/self/mountinfo that mount(8) hands back when it remounts; a name ending in "=" stands for any value.
var shownOptions = []string{"user_id=", "group_id=", "rootmode=", "fd=", "max_read=", "blksize=", "fsname=", "subtype="}

// wantsRemount tells whether lists of mount options ask to change a mount that is there.
func wantsRemount(lists []string) bool {
	return slices.Contains(strings.Split(strings.Join(lists, ","), ","), remountOption)
}

// parseRemount applies lists of options to those of a mount. What only a new mount can have must stay as it is.
func parseRemount(opts *mountOptions, lists []string) error {
	var words []string
	for _, word := range strings.Split(strings.Join(lists, ","), ",") {
		name, _, hasValue := strings.Cut(word, "=")
		if word != remountOption && !(hasValue && slices.Contains(shownOptions, name+"=")) {
			words = append(words, word)
		}
	}
	changed := *opts
	if err := parseMountOptions(&changed, words); err != nil {
		return err
	}
	fixed := changed
	fixed.ReadOnly, fixed.Suid, fixed.Dev, fixed.Exec, fixed.Sync, fixed.Atime = opts.ReadOnly, opts.Suid, opts.Dev, opts.Exec, opts.Sync, opts.Atime
	if fixed != *opts {
		return usagef("a mount that has %s can be given other ones of ro, rw, suid, dev, exec, sync and the access times only: unmount it and mount it again", *opts)
	}
	*opts = changed
	return nil
}

// remountRequest is what POST /remount is asked.
type remountRequest struct {
	Options string `json:"options"` // as after -o
}

// remountReport is the daemon's answer.
type remountReport struct {
	Options string `json:"options"` // all that the mount has now
}

// remount has the daemon change the options of its mount.
func (c *controlClient) remount(ctx context.Context, options string) (remountReport, error) {
	var report remountReport
	err := c.call(ctx, http.MethodPost, "/remount", remountRequest{options}, &report)
	return report, err
}

// runRemount is vde mount -o remount.
func runRemount(cmd *cobra.Command, store, mountpoint string, lists []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name != "options" {
			err = usagef("--%s does not go together with -o %s, which changes options only", f.Name, remountOption)
		}
	})
	if err != nil {
		return err
	}
	source, err := resolvePath(store)
	if err != nil {
		return failf(exitNotAStore, "store %s: %w", store, err)
	}
	at, err := resolvePath(mountpoint)
	if err != nil {
		return failf(exitMountpoint, "mount point %s: %w", mountpoint, err)
	}
	m, err := mountedAt(at)
	if err != nil {
		return err
	}
	if m == nil || m.Type != fsType || m.Source != source {
		return failf(exitNotMounted, "%s: the store %s is not mounted there", at, source)
	}
	_, err = newControlClient(source).remount(cmd.Context(), strings.Join(lists, ","))
	return err
}

// handleRemount answers POST /remount.
func (d *daemon) handleRemount(w http.ResponseWriter, r *http.Request) {
	const limit = 64 << 10
	var request remountRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, limit)).Decode(&request); err != nil {
		writeFailure(w, http.StatusBadRequest, usagef("the request is no JSON: %w", err))
		return
	}
	if err := d.remount(request.Options); err != nil {
		writeFailure(w, http.StatusConflict, err)
		return
	}
	writeJSON(w, http.StatusOK, remountReport{d.options.Load().String()})
}

// remount changes the options of the mount. Where it becomes read-only, everything is on disk afterwards. It is done whether or not who
// asked for it is still there.
func (d *daemon) remount(list string) error {
	d.unmounting.Lock()
	defer d.unmounting.Unlock()
	server := d.server.Load()
	m, err := mountedAt(d.cfg.Mountpoint)
	if err != nil {
		return err
	}
	if server == nil || !d.isOurs(m) {
		return failf(exitNotMounted, "%s: the mount of %s is not there, or covered by another one", d.cfg.Mountpoint, d.cfg.Store)
	}
	old := *d.options.Load()
	options := old
	if err := parseRemount(&options, []string{list}); err != nil {
		return err
	}
	d.volumeMu.RLock() // while the volume is open
	defer d.volumeMu.RUnlock()
	if d.volumeClosed {
		return failf(exitNotMounted, "%s: the store is being closed", d.cfg.Mountpoint)
	}
	// The volume takes changes for as long as the kernel lets any through.
	ctx := context.Background()
	if !options.ReadOnly {
		if err := d.volume.SetReadOnly(ctx, false); err != nil {
			return err
		}
	}
	if err := server.Remount(serverOptions(options)); err != nil {
		if old.ReadOnly {
			err = errors.Join(err, d.volume.SetReadOnly(ctx, true))
		}
		return d.explainRemount(err)
	}
	d.volume.SetAtime(atimeModes[options.Atime])
	d.options.Store(&options)
	d.log.WithField("options", options.String()).Info("remounted")
	if options.ReadOnly {
		if err := d.volume.SetReadOnly(ctx, true); err != nil {
			return fmt.Errorf("%s takes no changes any more, but not everything could be put on disk: %w", d.cfg.Mountpoint, err)
		}
	}
	return nil
}

// explainRemount gives an error of remounting its exit code.
func (d *daemon) explainRemount(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return failf(exitBusy, "%s is busy: a file is open for writing, or was removed and is open: %s", d.cfg.Mountpoint, describeHolders(d.cfg.Mountpoint))
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return failf(exitPermission, "%w: it takes a daemon that root has started", err)
	}
	return err
}
