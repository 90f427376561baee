package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
)

// unmountReport is the daemon's answer to a request to unmount.
type unmountReport struct {
	PID   int         `json:"pid"`
	Store string      `json:"store"`
	Mode  unmountMode `json:"mode"`
	// Closed tells that everything is on disk. False after a lazy unmount, which waits for nobody.
	Closed bool `json:"closed"`
}

// startControl serves the control socket, and profiles over TCP if asked to, until the returned function is called. That
// function waits for the answers that are on their way.
func (d *daemon) startControl() (stop func(), err error) {
	profiles, err := listenProfiles(d.cfg.Pprof)
	if err != nil {
		return nil, err
	}
	listener, err := listenControl(d.cfg.Store)
	if err != nil {
		if profiles != nil {
			profiles.Close()
		}
		return nil, err
	}
	metrics := promhttp.HandlerFor(d.metrics(), promhttp.HandlerOpts{})

	control := profileMux()
	control.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, d.status()) })
	control.Handle("GET /metrics", metrics)
	control.HandleFunc("POST /umount", d.handleUnmount)
	control.HandleFunc("POST /remount", d.handleRemount)
	d.addClusterHandlers(control)
	d.addScrubHandler(control)
	var servers []*http.Server
	var running sync.WaitGroup
	serve := func(l net.Listener, handler http.Handler) {
		server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, server)
		running.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				d.log.WithError(err).Error("control server")
			}
		})
	}
	serve(listener, control)
	if profiles != nil {
		public := profileMux()
		public.Handle("GET /metrics", metrics)
		serve(profiles, public)
		d.log.WithField("address", profiles.Addr().String()).Info("profiles and metrics are served")
	}
	return func() {
		// umount(2) may take its time after the mount is gone, to throw away what the kernel kept of it: who asked for it is told how it went.
		d.unmounting.Lock()
		defer d.unmounting.Unlock()
		os.Remove(filepath.Join(d.cfg.Store, controlSocket))
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, server := range servers {
			if server.Shutdown(ctx) != nil {
				server.Close()
			}
		}
		running.Wait()
	}, nil
}

// profileMux answers for the profiles of the Go runtime.
func profileMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// listenProfiles opens the TCP address for profiles, which must be of this machine alone: profiles tell what files are called.
func listenProfiles(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, usagef("--pprof %q is no address: write 127.0.0.1:6060", address)
	}
	if !tcp.IP.IsLoopback() {
		return nil, usagef("--pprof %q is reachable from other machines: use a loopback address like 127.0.0.1:%d", address, tcp.Port)
	}
	listener, err := net.ListenTCP("tcp", tcp)
	if err != nil {
		return nil, fmt.Errorf("--pprof %s: %w", address, err)
	}
	return listener, nil
}

// handleUnmount answers POST /umount.
func (d *daemon) handleUnmount(w http.ResponseWriter, r *http.Request) {
	report := unmountReport{PID: os.Getpid(), Store: d.cfg.Store, Mode: unmountMode(r.FormValue("mode"))}
	switch report.Mode {
	case unmountNormal, unmountLazy, unmountForce:
	default:
		writeFailure(w, http.StatusBadRequest, usagef("mode %q is one of %s, %s, %s", report.Mode, unmountNormal, unmountLazy, unmountForce))
		return
	}
	if d.cfg.Mountpoint == "" {
		d.handleStop(w, r)
		return
	}
	if err := d.unmount(report.Mode); err != nil {
		writeFailure(w, http.StatusConflict, err)
		return
	}
	if report.Mode == unmountNormal {
		select {
		case <-d.closed:
		case <-r.Context().Done(): // the client has gone; the unmount goes on
			return
		}
		if d.closeErr != nil {
			writeFailure(w, http.StatusInternalServerError, d.closeErr)
			return
		}
		report.Closed = true
	}
	writeJSON(w, http.StatusOK, report)
}

func writeFailure(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, controlError{err.Error(), codeOf(err)})
}

// residentBytes tells how much memory the process holds.
func residentBytes() uint64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident uint64
	fmt.Sscan(string(text), &size, &resident)
	return resident * uint64(unix.Getpagesize())
}
