package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The control socket is a Unix socket in the store's directory, for its owner alone, on which the daemon answers HTTP:
//
//	GET  /status          facts as JSON (statusReport)
//	GET  /metrics         the same for Prometheus
//	POST /umount?mode=M   unmounts (M: normal, lazy, force); answers when everything is on disk (lazy: when detached). Ends
//	                      a daemon without a mount
//	POST /remount         {"options":"ro,noatime"}: changes the mount's options (remountReport)
//	GET  /cluster         the nodes and groups of the cluster (clusterReport)
//	POST /cluster/invite  {"expires_seconds":3600}: an invitation (inviteReport)
//	POST /cluster/remove  {"node":"NAME or ID","force":false}: takes a node out (removeReport)
//	GET  /groups          the groups (groupsReport)
//	POST /groups/add, /groups/remove, /groups/move-leader
//	                      {"name":"GROUP","node":"NAME or ID"} (groupsReport)
//	POST /scrub?rate=N    reads all data (N bytes a second, 0: any); lines of JSON as it goes (scrubLine)
//	GET  /debug/pprof/    profiles of the Go runtime
//
// Requests are JSON. An error is answered with a status of 400 or above and a controlError as JSON.
const controlSocket = "control.sock"

// controlError is how the daemon answers a request that failed.
type controlError struct {
	Message string   `json:"error"`
	Code    exitCode `json:"exit_code"`
}

func (e *controlError) Error() string { return e.Message }

// socketPath gives a path to the control socket that is short enough for a socket's address (108 bytes), however long the
// path of the store is. It is good for as long as the returned directory is open.
func socketPath(store string) (string, *os.File, error) {
	dir, err := os.OpenFile(store, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), controlSocket), dir, nil
}

// listenControl makes the control socket of a store, in place of one that an earlier daemon left behind. The caller holds the
// store's lock. The file mode creation mask of the process is changed for a moment: no other goroutine may create files.
func listenControl(store string) (net.Listener, error) {
	path, dir, err := socketPath(store)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer dir.Close()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("control socket of an earlier daemon: %w", err)
	}
	old := unix.Umask(0o177)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", filepath.Join(store, controlSocket), err)
	}
	listener.SetUnlinkOnClose(false) // its name leads through a descriptor that is closed by then
	return listener, nil
}

// errNoDaemon says that no daemon answers for a store.
var errNoDaemon = errors.New("no daemon")

// controlClient talks to the daemon of a store.
type controlClient struct {
	store string
	http  *http.Client
}

func newControlClient(store string) *controlClient {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, dir, err := socketPath(store)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &controlClient{store, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// call does one request, with a value as JSON in its body unless that is nil, and decodes the answer into result. errNoDaemon is wrapped when nobody listens, exitTimeout is the code when
// the daemon does not answer before the context ends.
func (c *controlClient) call(ctx context.Context, method, path string, send, result any) error {
	var content io.Reader
	if send != nil {
		b, err := json.Marshal(send)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://vde"+path, content)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w serves %s", errNoDaemon, c.store)
	case errors.Is(err, fs.ErrPermission):
		return failf(exitPermission, "the daemon of %s answers its owner and root only", c.store)
	case errors.Is(err, context.DeadlineExceeded):
		return failf(exitTimeout, "the daemon of %s does not answer: see its log", c.store)
	case err != nil:
		return fmt.Errorf("control socket of %s: %w", c.store, err)
	}
	defer response.Body.Close()
	const limit = 16 << 20
	body, err := io.ReadAll(io.LimitReader(response.Body, limit))
	if err != nil {
		return fmt.Errorf("control socket of %s: %w", c.store, err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		var failure controlError
		if json.Unmarshal(body, &failure) != nil || failure.Message == "" {
			failure = controlError{fmt.Sprintf("the daemon of %s answered %s", c.store, response.Status), exitFailure}
		}
		return &codedError{failure.Code, &failure}
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("the daemon of %s answered what is no JSON (%.40q): is it another version of vde? %w", c.store, body, err)
	}
	return nil
}

// statusTimeout is how long a daemon may take to tell its status before it counts as stuck.
const statusTimeout = 10 * time.Second

// status asks for the facts.
func (c *controlClient) status(ctx context.Context) (statusReport, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var report statusReport
	err := c.call(ctx, http.MethodGet, "/status", nil, &report)
	return report, err
}

// umount asks the daemon to unmount and waits for the answer.
func (c *controlClient) umount(ctx context.Context, mode unmountMode) (unmountReport, error) {
	var report unmountReport
	err := c.call(ctx, http.MethodPost, "/umount?mode="+string(mode), nil, &report)
	return report, err
}

// writeJSON answers a request.
func writeJSON(w http.ResponseWriter, status int, value any) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(value); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body.Bytes())
}
