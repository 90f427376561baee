package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/cobra"
)

func newServeCommand(a *app) *cobra.Command {
	var foreground, stop bool
	var lists []string
	var pprof string
	var memory byteSize
	var node nodeFlags
	cmd := &cobra.Command{
		Use:   "serve STORE",
		Short: "Run the node of a store without mounting it",
		Long: `Runs the node of a store that is a member of a cluster, without a mount: it keeps the data, votes and leads like any other. With
--listen a store that is no member yet becomes the first of a cluster. "vde serve --stop STORE" ends it, and returns when everything is on disk.`,
		Example: `  vde serve /srv/store
  vde serve --stop /srv/store`,
		Args:              exactArgs("STORE"),
		ValidArgsFunction: completeDirs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if stop {
				return stopServing(cmd.Context(), args[0])
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
			store, err := resolvePath(args[0])
			if err != nil {
				return failf(exitNotAStore, "store %s: %w", args[0], err)
			}
			if err := checkStore(store); err != nil {
				return err
			}
			if m, err := mountOf(store); err == nil && m != nil {
				return failf(exitStoreInUse, "store %s is mounted at %s: that serves it", store, m.Mountpoint)
			}
			cfg := mountConfig{Store: store, Options: options, Pprof: pprof, Node: node}
			if foreground {
				return serveForeground(cfg, a.log)
			}
			return mountInBackground(cmd.Context(), cfg, a.log)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&foreground, "foreground", false, "serve in this process instead of a daemon")
	flags.BoolVar(&stop, "stop", false, "stop the daemon that serves the store")
	flags.StringArrayVarP(&lists, "options", "o", nil, "mount options, of which memory= and png= have an effect")
	flags.StringVar(&pprof, "pprof", "", "serve profiles and metrics on this loopback address, like 127.0.0.1:6060")
	flags.Var(&memory, "memory", "keep the daemon within about this much memory (default 1G)")
	must(cmd.RegisterFlagCompletionFunc("options", completeMountOptions))
	must(cmd.RegisterFlagCompletionFunc("pprof", noCompletions))
	must(cmd.RegisterFlagCompletionFunc("memory", noCompletions))
	node.add(cmd)
	return cmd
}

// stopServing ends a daemon that has no mount and waits until it has.
func stopServing(ctx context.Context, path string) error {
	store, err := storeOf(path)
	if err != nil {
		return err
	}
	client := newControlClient(store)
	report, err := client.status(ctx)
	if errors.Is(err, errNoDaemon) {
		if err := checkStore(store); err != nil {
			return err
		}
		return failf(exitNotMounted, "no daemon serves store %s", store)
	}
	if err != nil {
		return err
	}
	if report.Mountpoint != "" {
		return failf(exitBusy, "store %s is mounted at %s: unmount it with `vde umount %s`", store, report.Mountpoint, report.Mountpoint)
	}
	daemon, err := watchProcess(report.PID)
	if err != nil {
		return err
	}
	defer daemon.close()
	if _, err := client.umount(ctx, unmountNormal); err != nil {
		return err
	}
	return daemon.wait(ctx, unmountNormal)
}

// serveUnmounted serves without a mount until it is told to stop.
func (d *daemon) serveUnmounted(ready *readyPipe) error {
	if d.identity == nil {
		return failf(exitNoCluster, "store %s is no member of a cluster: serve it with --listen HOST:PORT to make it the first one, or mount it", d.cfg.Store)
	}
	if d.stopAsked.Load() {
		return errInterrupted
	}
	d.serving.Store(true)
	d.log.WithFields(nodeFields(d.identity)).WithField("pid", os.Getpid()).WithField("version", version()).Info("serving without a mount")
	ready.tell(nil)
	notifySystemd("READY=1")
	<-d.stopServing
	notifySystemd("STOPPING=1")
	return nil
}

// stopUnmounted ends serveUnmounted; later calls do nothing.
func (d *daemon) stopUnmounted() { d.stopOnce.Do(func() { close(d.stopServing) }) }

// handleStop answers POST /umount of a daemon without a mount.
func (d *daemon) handleStop(w http.ResponseWriter, r *http.Request) {
	d.log.Info("asked to stop")
	d.stopUnmounted()
	select {
	case <-d.closed:
	case <-r.Context().Done(): // the client has gone; the end comes all the same
		return
	}
	if d.closeErr != nil {
		writeFailure(w, http.StatusInternalServerError, fmt.Errorf("stopped: %w", d.closeErr))
		return
	}
	writeJSON(w, http.StatusOK, unmountReport{PID: os.Getpid(), Store: d.cfg.Store, Mode: unmountNormal, Closed: true})
}
