package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newMountCommand(a *app) *cobra.Command {
	var foreground bool
	var lists []string
	var pprof string
	var memory byteSize
	var node nodeFlags
	cmd := &cobra.Command{
		Use:   "mount STORE MOUNTPOINT",
		Short: "Mount a store; a daemon serves it",
		Long: `Mounts the store at the directory MOUNTPOINT and returns when it can be used. A daemon serves it until it is unmounted.

Mount options (-o, separated by commas, the last one wins):
  ro, rw                            read-only or not
  allow_other                       other users may use the mount (default as root)
  default_permissions               the kernel checks permissions (always on)
  relatime, noatime, strictatime    when to note that a file was read
  suid, nosuid, dev, nodev, exec, noexec
  sync                              every write is on disk when it returns
  png=async|sync|off                make .png files smaller, without loss: soon after the last writer closes them, while it closes, never
  cache=` + cacheUsage() + `
  timeout=DURATION                  on a node of a cluster: how long an operation waits for a majority before it fails (default 30s)
  memory=SIZE                       keep the daemon within about this much memory (default 1G)
  remount                           change the mount that is there: ro, rw, when to note reads, suid and the like, sync; what is not named stays
Options of fstab that speak to others (defaults, noauto, nofail, _netdev, x-...) are ignored.

With --listen the store becomes the first node of a cluster, which others can join: see "vde help cluster". The address is remembered.

Signals to the daemon: SIGTERM and SIGINT unmount, SIGHUP opens the log file anew.`,
		Example: `  vde mount /srv/store /mnt
  vde mount /srv/store /mnt -o ro,noatime
  mount -t fuse.vde /srv/store /mnt      # after make install, also from /etc/fstab`,
		Args:              exactArgs("STORE", "MOUNTPOINT"),
		ValidArgsFunction: completeDirs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if wantsRemount(lists) {
				return runRemount(cmd, args[0], args[1], lists)
			}
			options := defaultMountOptions(os.Geteuid() == 0)
			if err := parseMountOptions(&options, lists); err != nil {
				return err
			}
			if cmd.Flags().Changed("memory") {
				options.Memory = memory
			}
			if err := node.check(); err != nil {
				return err
			}
			cfg, err := checkMount(args[0], args[1])
			if err != nil {
				return err
			}
			cfg.Options, cfg.Pprof, cfg.Node = options, pprof, node
			if foreground {
				return serveForeground(cfg, a.log)
			}
			return mountInBackground(cmd.Context(), cfg, a.log)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&foreground, "foreground", false, "serve in this process instead of a daemon; it ends with the mount")
	flags.StringArrayVarP(&lists, "options", "o", nil, "mount options, separated by commas")
	flags.StringVar(&pprof, "pprof", "", "serve profiles and metrics on this loopback address, like 127.0.0.1:6060")
	flags.Var(&memory, "memory", "keep the daemon within about this much memory (default 1G)")
	must(cmd.RegisterFlagCompletionFunc("options", completeMountOptions))
	must(cmd.RegisterFlagCompletionFunc("pprof", noCompletions))
	must(cmd.RegisterFlagCompletionFunc("memory", noCompletions))
	node.add(cmd)
	return cmd
}

// checkMount resolves both paths and refuses what cannot work, before anything is started or opened.
func checkMount(store, mountpoint string) (mountConfig, error) {
	var cfg mountConfig
	var err error
	if cfg.Store, err = resolvePath(store); err != nil {
		return cfg, failf(exitNotAStore, "store %s: %w", store, err)
	}
	if cfg.Mountpoint, err = resolvePath(mountpoint); err != nil {
		return cfg, failf(exitMountpoint, "mount point %s: %w", mountpoint, err)
	}
	if err := checkStore(cfg.Store); err != nil {
		return cfg, err
	}
	if err := clearDeadMount(cfg.Mountpoint); err != nil {
		return cfg, err
	}
	info, err := os.Stat(cfg.Mountpoint)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return cfg, failf(exitMountpoint, "mount point %s does not exist: make it with mkdir", cfg.Mountpoint)
	case err != nil:
		return cfg, failf(exitMountpoint, "mount point %s: %w", cfg.Mountpoint, err)
	case !info.IsDir():
		return cfg, failf(exitMountpoint, "mount point %s is no directory", cfg.Mountpoint)
	}
	// A daemon that reaches its own store through its own mount waits for itself.
	if within(cfg.Store, cfg.Mountpoint) || within(cfg.Mountpoint, cfg.Store) {
		return cfg, failf(exitMountpoint, "mount point %s and store %s lie one in the other: choose another directory", cfg.Mountpoint, cfg.Store)
	}
	if m, err := mountOf(cfg.Store); err == nil && m != nil && m.Mountpoint != cfg.Mountpoint {
		return cfg, failf(exitStoreInUse, "store %s is mounted at %s already: unmount it there first", cfg.Store, m.Mountpoint)
	}
	if m, err := mountedAt(cfg.Mountpoint); err == nil && m != nil {
		switch {
		case m.Type == fsType && m.Source == cfg.Store:
			return cfg, failf(exitBusy, "store %s is mounted at %s already", cfg.Store, cfg.Mountpoint)
		case m.Type == fsType:
			return cfg, failf(exitBusy, "mount point %s is in use: the store %s is mounted there", cfg.Mountpoint, m.Source)
		case m.Mountpoint == "/" || strings.HasPrefix(m.Type, "fuse"):
			return cfg, failf(exitBusy, "mount point %s is in use: %s (%s) is mounted there", cfg.Mountpoint, m.Source, m.Type)
		}
	}
	return cfg, nil
}

// clearDeadMount unmounts what is left of a mount of ours whose daemon has died.
func clearDeadMount(mountpoint string) error {
	m, err := mountedAt(mountpoint)
	if err != nil || m == nil || m.Type != fsType {
		return err
	}
	// Not stat(2), which the kernel may answer by itself for an hour.
	var st unix.Statfs_t
	if !errors.Is(unix.Statfs(mountpoint, &st), unix.ENOTCONN) {
		return nil
	}
	if err := unmount(mountpoint, unmountLazy); err != nil {
		return failf(exitBusy, "mount point %s holds a dead mount of the store %s, which cannot be removed: %w", mountpoint, m.Source, err)
	}
	return nil
}

// within tells whether a path is a directory or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mountInBackground starts a daemon and returns when its mount can be used, or its node, if there is no mount point.
func mountInBackground(ctx context.Context, cfg mountConfig, log logFlags) error {
	if log.file == "" {
		log.file = filepath.Join(cfg.Store, "vde.log")
	}
	path, err := filepath.Abs(log.file)
	if err != nil {
		return fmt.Errorf("--log-file %s: %w", log.file, err)
	}
	if _, _, err := (logFlags{level: log.level, format: log.format}).newLogger(logrus.InfoLevel, false); err != nil {
		return err
	}
	verb, operands := "mount", []string{"--", cfg.Store, cfg.Mountpoint}
	if cfg.Mountpoint == "" {
		verb, operands = "serve", operands[:2]
	}
	args := slices.Concat([]string{verb, "--foreground", "--log-file=" + path, "--log-format=" + log.format, "--log-level=" + log.level,
		"--pprof=" + cfg.Pprof, "--options=" + cfg.Options.String()}, cfg.Node.args(), operands)
	// The new daemon waits for one that is closing the store (holdStore): who waits here is told for what.
	notice := time.AfterFunc(3*time.Second, func() {
		if report, err := newControlClient(cfg.Store).status(ctx); err == nil && report.State == stateClosing {
			fmt.Fprintf(os.Stderr, "vde %s: waiting for the daemon with pid %d, which is closing the store\n", verb, report.PID)
		}
	})
	defer notice.Stop()
	_, err = startDaemon(ctx, args, path)
	return err
}

// serveForeground serves in this process until the filesystem is unmounted, or the daemon is stopped.
func serveForeground(cfg mountConfig, log logFlags) (err error) {
	ready, err := inheritReadyPipe()
	if err != nil {
		return err
	}
	defer func() { ready.tell(err) }()
	logger, file, err := log.newLogger(logrus.InfoLevel, ready != nil)
	if err != nil {
		return err
	}
	d := daemon{cfg: cfg, log: logger, logFile: file}
	d.options.Store(&cfg.Options)
	return d.run(ready)
}

// explainMount gives an error of mounting, with or without allow_other, its exit code.
func explainMount(mountpoint string, allowOther bool, err error) error {
	if _, statErr := os.Stat("/dev/fuse"); statErr != nil {
		return failf(exitNoFUSE, "mount point %s: /dev/fuse is missing: load the kernel module with `modprobe fuse`, or give the container the device (%w)", mountpoint, err)
	}
	if _, lookErr := exec.LookPath("fusermount3"); lookErr != nil && os.Geteuid() != 0 {
		return failf(exitNoFUSE, "mount point %s: fusermount3 is missing: install the package fuse3 (%w)", mountpoint, err)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return failf(exitPermission, "mount point %s: %w: mounting needs root, or the right to use FUSE on this machine", mountpoint, err)
	}
	if os.Geteuid() != 0 && allowOther && strings.Contains(err.Error(), "fusermount") {
		// The helper says why to its standard error alone.
		return failf(exitPermission, "mount point %s: %s: with allow_other, users other than root may mount where /etc/fuse.conf has the line user_allow_other",
			mountpoint, strings.TrimSpace(err.Error()))
	}
	return failf(exitMountpoint, "mount point %s: %w", mountpoint, err)
}

func completeMountOptions(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	done := typed[:strings.LastIndexByte(typed, ',')+1]
	var options []cobra.Completion
	for _, name := range knownOptions() {
		name, _, isChoice := strings.Cut(name, "=")
		if isChoice {
			name += "="
		}
		options = append(options, done+name)
	}
	return options, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}
