package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/vde"
)

// A mount waits for a daemon that is closing the store, but not for ever.
func TestWaitForClosingDaemon(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: vde.MinSize}); err != nil {
		t.Fatal(err)
	}
	// A lock of an open file keeps out the process that has it, too, as another process does.
	hold, err := os.OpenFile(filepath.Join(store, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(hold.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	listener, err := listenControl(store)
	if err != nil {
		t.Fatal(err)
	}
	closing := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(statusReport{State: stateClosing, PID: 4711})
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = closing.Serve(listener) }()
	defer func() { closing.Close(); <-served }()

	log := logrus.New()
	var said strings.Builder
	log.SetOutput(&said)
	d := daemon{cfg: mountConfig{Store: store}, log: log, running: context.Background()}
	_, err = d.holdStore(300 * time.Millisecond)
	if codeOf(err) != exitTimeout || !strings.Contains(err.Error(), "4711") {
		t.Errorf("gave up with %v", err)
	}
	if !strings.Contains(said.String(), "waiting for the daemon") {
		t.Errorf("the log says %q", said.String())
	}

	time.AfterFunc(200*time.Millisecond, func() { hold.Close() })
	taken, err := d.holdStore(time.Minute)
	if err != nil {
		t.Fatalf("not taken when it was free: %v", err)
	}
	if err := taken.Close(); err != nil {
		t.Error(err)
	}
}
