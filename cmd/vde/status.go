package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vdefs/fs/cluster"
	"vdefs/fs/replica"
	"vdefs/vde"
)

// The states of a store, as statusReport.State.
const (
	stateStarting  = "starting"    // the daemon is opening the store or mounting
	stateMounted   = "mounted"     // it can be used
	stateServing   = "serving"     // as a node of a cluster, without a mount
	stateClosing   = "closing"     // unmounted; the daemon is writing the rest to disk
	stateUnmounted = "not mounted" // there is no daemon
	stateDead      = "dead"        // the mount is there, its daemon is not
)

// statusReport is what `vde status --json` prints and what the daemon answers to GET /status. Fields are added, never renamed.
type statusReport struct {
	State         string     `json:"state"`
	PID           int        `json:"pid"` // of the daemon, 0 without
	Mountpoint    string     `json:"mountpoint"`
	Options       string     `json:"options,omitempty"`
	Version       string     `json:"version,omitempty"` // of the daemon
	Started       *time.Time `json:"started,omitempty"`
	UptimeSeconds float64    `json:"uptime_seconds,omitempty"`
	MemoryBytes   uint64     `json:"memory_bytes,omitempty"` // resident, of the daemon
	// Store, UUID, Size, Used and Groups are always there. Without a daemon only what the store's files tell is known: Used is what the
	// image takes on the disk, or, on a block device, what was in use when the store was last closed.
	replica.Status
	PNG   *replica.PNGStats `json:"png,omitempty"`
	Mount *mountStats       `json:"mount,omitempty"`
	Node  *cluster.Node     `json:"node,omitempty"` // of a member of a cluster: its id, name and address

	blockDevice string // of a store without a daemon, "" for an image in a file
}

// mountStats is what went through the mount since it was made.
type mountStats struct {
	Requests     map[string]uint64 `json:"requests"` // by kind
	Errors       uint64            `json:"errors"`
	BytesRead    uint64            `json:"bytes_read"`
	BytesWritten uint64            `json:"bytes_written"`
	KnownInodes  int               `json:"known_inodes"`
	OpenFiles    int               `json:"open_files"`
}

// status tells what the daemon knows of itself.
func (d *daemon) status() statusReport {
	report := statusReport{
		State: stateStarting, PID: os.Getpid(), Mountpoint: d.cfg.Mountpoint, Options: d.options.Load().String(), Version: version(),
		Started: &d.started, UptimeSeconds: time.Since(d.started).Seconds(), MemoryBytes: residentBytes(),
	}
	report.Store = d.cfg.Store
	if server := d.server.Load(); server != nil {
		report.State = stateMounted
		m := mountStats(server.Stats())
		report.Mount = &m
	}
	if d.serving.Load() {
		report.State = stateServing
	}
	if d.identity != nil {
		node := d.identity.Config().Self()
		report.Node = &node
	}
	d.volumeMu.RLock()
	defer d.volumeMu.RUnlock()
	if d.volumeClosed {
		report.State = stateClosing
		return report
	}
	report.Status = d.volume.Status()
	stats := d.volume.PNGStats()
	report.PNG = &stats
	report.Store = d.cfg.Store
	return report
}

func newStatusCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [STORE|MOUNTPOINT]",
		Short: "Show what a store holds and what its daemon does; without an argument, all mounts",
		Long: `Shows the facts of one store, named by its directory or its mount point: asked from its daemon while it is mounted, read from
its files otherwise. Without an argument all mounted vde filesystems of this machine are listed.`,
		Args:              maxArgs(1),
		ValidArgsFunction: completeMountpoints,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := a.log.newLogger(0, false); err != nil {
				return err
			}
			if len(args) == 0 {
				return listStatus(cmd.Context(), cmd.OutOrStdout(), a.json)
			}
			report, err := storeStatus(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), report)
			}
			printStatus(cmd.OutOrStdout(), report)
			return nil
		},
	}
	a.addJSONFlag(cmd)
	return cmd
}

// storeStatus finds a store by its directory or mount point and asks its daemon, or its files.
func storeStatus(ctx context.Context, path string) (statusReport, error) {
	resolved, err := resolvePath(path)
	if err != nil {
		return statusReport{}, failf(exitNotMounted, "%s: %w", path, err)
	}
	store := resolved
	mount, err := findMount(path)
	if err == nil {
		store = mount.Source
	}
	report, callErr := newControlClient(store).status(ctx)
	switch {
	case callErr == nil:
		return report, nil
	case !errors.Is(callErr, errNoDaemon):
		if err != nil && codeOf(checkStore(store)) == exitNotAStore {
			break
		}
		return report, callErr
	case err == nil:
		return report, failf(exitDaemonDied, "%s: the mount of %s is dead, its daemon has ended: unmount it with `vde umount %s` and mount again; the log is %s/vde.log",
			mount.Mountpoint, store, mount.Mountpoint, store)
	}
	err = checkStore(store)
	if codeOf(err) == exitNotAStore {
		return report, failf(exitNotMounted, "%s is neither a store nor a mounted vde filesystem: `vde status` lists those", resolved)
	}
	if err != nil {
		return report, err
	}
	return offlineStatus(store)
}

// offlineStatus reads the facts of a store that is not mounted from its files, without opening it.
func offlineStatus(store string) (statusReport, error) {
	report := statusReport{State: stateUnmounted}
	info, err := vde.ReadInfo(nil, store)
	if err != nil {
		return report, explainOpen(store, err)
	}
	report.Store, report.UUID, report.Size, report.blockDevice = store, info.UUID, info.Size, info.BlockDevice
	report.NodeID, report.FormatVersion = info.NodeID, info.FormatVersion
	var st unix.Stat_t
	if info.BlockDevice != "" {
		if report.Used, err = vde.UsedAtClose(nil, store); err != nil {
			return report, explainOpen(store, err)
		}
	} else if err := unix.Stat(store+"/disk.vde", &st); err == nil {
		report.Used = uint64(st.Blocks) * 512
	}
	groups, err := os.ReadDir(store + "/raft")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return report, fmt.Errorf("store %s: %w", store, err)
	}
	report.Groups = []replica.GroupStatus{}
	for _, g := range groups {
		if g.IsDir() {
			report.Groups = append(report.Groups, replica.GroupStatus{Name: g.Name()})
		}
	}
	return report, nil
}

// listStatus shows all mounts of this machine, one line each.
func listStatus(ctx context.Context, w io.Writer, asJSON bool) error {
	list, err := vdeMounts()
	if err != nil {
		return err
	}
	reports := []statusReport{}
	for _, m := range list {
		report, err := newControlClient(m.Source).status(ctx)
		if err != nil {
			report = statusReport{State: stateDead}
			if !errors.Is(err, errNoDaemon) {
				report.State = oneLine(err.Error())
			}
			report.Store = m.Source
		}
		report.Mountpoint = m.Mountpoint
		reports = append(reports, report)
	}
	if asJSON {
		return printJSON(w, reports)
	}
	if len(reports) == 0 {
		fmt.Fprintln(w, "no vde filesystem is mounted")
		return nil
	}
	table := newFacts(w)
	fmt.Fprintln(table.w, "MOUNTPOINT\tSTORE\tSIZE\tUSED\tPID\tSTATE")
	for _, r := range reports {
		fmt.Fprintf(table.w, "%s\t%s\t%s\t%s (%s)\t%d\t%s\n", r.Mountpoint, r.Store, bytesText(r.Size), bytesText(r.Used), shareText(r.Used, r.Size), r.PID, r.State)
	}
	table.flush()
	return nil
}

// printStatus shows one store for people.
func printStatus(w io.Writer, r statusReport) {
	f := newFacts(w)
	f.add("store", "%s (uuid %s)", r.Store, r.UUID)
	if r.State == stateUnmounted {
		f.add("state", "not mounted")
		if r.blockDevice != "" {
			f.add("device", "%s", r.blockDevice)
			f.add("size", "%s, %s used (%s) when it was last closed", bytesText(r.Size), bytesText(r.Used), shareText(r.Used, r.Size))
		} else {
			f.add("size", "%s, the image takes %s on the disk", bytesText(r.Size), bytesText(r.Used))
		}
		f.flush()
		return
	}
	if r.State == stateServing {
		f.add("state", "serving, without a mount")
	} else {
		f.add("state", "%s at %s (%s)", r.State, r.Mountpoint, r.Options)
	}
	if r.Node != nil {
		f.add("node", "%d, %s, at %s; the others: vde cluster status %s", r.Node.ID, r.Node.Name, r.Node.Addr, r.Store)
	}
	f.add("daemon", "pid %d, up %s, %s of memory, version %s", r.PID, (time.Duration(r.UptimeSeconds) * time.Second).String(), bytesText(r.MemoryBytes), r.Version)
	f.add("size", "%s, %s used (%s), %d inodes", bytesText(r.Size), bytesText(r.Used), shareText(r.Used, r.Size), r.Inodes)
	for _, g := range r.Groups {
		text := fmt.Sprintf("%s, term %d, log %d to %d (durable %d), applied %d", g.State, g.Term, g.First, g.Last, g.Durable, g.Applied)
		if g.Error != "" {
			text += ", stopped: " + g.Error
		}
		f.add("group "+g.Name, "%s", text)
	}
	f.add("checksums", "%d errors since it was mounted", r.ChecksumErrors)
	if p := r.PNG; p != nil && p.Mode != "" {
		f.add("png", "%s: %d files made smaller, %s became %s, %d queued", p.Mode, p.Done, bytesText(p.BytesBefore), bytesText(p.BytesAfter), p.Queued)
	}
	if m := r.Mount; m != nil {
		var requests uint64
		for _, n := range m.Requests {
			requests += n
		}
		f.add("requests", "%d (%d with an error), %s read, %s written, %d files open", requests, m.Errors, bytesText(m.BytesRead), bytesText(m.BytesWritten), m.OpenFiles)
	}
	if r.Error != "" {
		f.add("STOPPED", "%s", r.Error)
	}
	f.flush()
}
