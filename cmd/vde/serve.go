package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/cluster"
	"vdefs/fs/replica"
	"vdefs/vde"
)

// mountConfig is everything that a daemon is told when it starts.
type mountConfig struct {
	Store      string // both are as from resolvePath
	Mountpoint string // "": only the node is served, without a mount
	Options    mountOptions
	Pprof      string // address for profiles over TCP, "" for none
	Node       nodeFlags
}

// daemon serves one mounted store, from opening the store to closing it. Its goroutines: run itself, which waits for the end of the
// mount; the control server, which run shuts down; handleSignals and what is in background, which end with running.
type daemon struct {
	cfg     mountConfig
	log     *logrus.Logger
	logFile *logFile // nil when the log goes to standard error
	started time.Time

	identity *cluster.Identity // nil: no member of a cluster
	door     joinDoor
	hold     io.Closer // of the store: let go when the volume has been closed
	volume   *replica.Volume
	// clusterOf is the volume's Cluster: nil for no member of a cluster.
	clusterOf func() cluster.State
	server    atomic.Pointer[fs.Server]    // nil until mounted
	options   atomic.Pointer[mountOptions] // cfg.Options, as remounting has changed them

	joining     atomic.Bool   // the volume is being opened, which may have to wait for other nodes
	serving     atomic.Bool   // without a mount
	stopServing chan struct{} // closed to end that
	stopOnce    sync.Once
	running     context.Context // of run: done when the volume is about to be closed
	background  sync.WaitGroup  // ends with running

	volumeMu     sync.RWMutex // held for reading while the volume's status is asked
	volumeClosed bool         // guarded by volumeMu
	closing      sync.Once
	closed       chan struct{} // closed when the volume has been
	closeErr     error         // how that went; valid once closed is closed

	unmounting sync.Mutex  // one unmount or remount at a time
	stopAsked  atomic.Bool // a signal to stop has come
}

var errInterrupted = errors.New("interrupted before the filesystem was mounted")

// run serves until the filesystem is unmounted, tells ready how mounting went, and returns when everything is on disk.
func (d *daemon) run(ready *readyPipe) (err error) {
	// Until run has told that the mount is there, every error is the parent's too.
	defer func() { ready.tell(err) }()
	d.started = time.Now()
	d.closed = make(chan struct{})
	d.stopServing = make(chan struct{})
	limitMemory(d.cfg.Options.Memory)
	ownerOnly()
	fs.CalmMonitor()

	ctx, stop := context.WithCancel(context.Background())
	var signals sync.WaitGroup
	signals.Go(func() { d.handleSignals(ctx) })
	defer func() { stop(); signals.Wait() }()
	d.running = ctx

	// From before the identity is read: two first mounts must not both make one.
	if d.hold, err = d.holdStore(closingPatience); err != nil {
		return explainOpen(d.cfg.Store, err)
	}
	if d.identity, err = prepareNode(d.cfg.Store, d.cfg.Node); err != nil {
		return errors.Join(err, d.hold.Close())
	}
	var node *cluster.Config
	if d.identity != nil {
		node = d.identity.Config()
		node.OnJoin = d.door.serve
		d.log.WithFields(nodeFields(d.identity)).Info("node of a cluster")
	}
	d.joining.Store(node != nil)
	d.volume, err = openVolume(d.cfg, node, d.log)
	d.joining.Store(false)
	if err != nil {
		return errors.Join(explainOpen(d.cfg.Store, err), d.hold.Close())
	}
	d.clusterOf = d.volume.Cluster
	stopControl, err := d.startControl()
	if err != nil {
		return errors.Join(err, d.closeVolume())
	}
	defer stopControl()
	if err = d.announce(ctx); err == nil {
		d.openDoor(ctx)
		if d.cfg.Mountpoint == "" {
			err = d.serveUnmounted(ready)
		} else {
			err = d.serveMount(ready)
		}
	}
	stop()
	d.background.Wait()
	closeErr := d.closeVolume()
	d.log.WithField("store", d.cfg.Store).Info("store closed")
	return errors.Join(err, closeErr)
}

// closingPatience is how long a mount waits for a daemon that is closing the store. What is left to do then is bounded by the memory that the
// daemon may use: one that takes longer has a disk that hangs.
const closingPatience = 2 * time.Minute

// holdStore takes the store for this process. A daemon that is closing it is waited for, for as long as patience: umount(8) returns when the mount has left the
// tree, while what was written last is still on its way to the disk, and a mount that follows at once is no mistake.
func (d *daemon) holdStore(patience time.Duration) (io.Closer, error) {
	const poll = 50 * time.Millisecond
	// The daemon hears of its mount's end a moment later. One that goes on without a place in the tree has been unmounted lazily.
	const moment = 2 * time.Second
	start, said, gone := time.Now(), false, false
	for {
		hold, err := vde.Hold(nil, d.cfg.Store)
		if !errors.Is(err, vde.ErrStoreInUse) || gone || d.stopAsked.Load() {
			return hold, err
		}
		report, statusErr := newControlClient(d.cfg.Store).status(d.running)
		switch {
		case errors.Is(statusErr, errNoDaemon):
			gone = true // perhaps just now: tried once more
			continue
		case statusErr != nil:
			return nil, err
		case report.State == stateMounted:
			if m, mountErr := mountOf(d.cfg.Store); mountErr != nil || m != nil || time.Since(start) > moment {
				return nil, err
			}
		case report.State != stateClosing:
			return nil, err
		case time.Since(start) > patience:
			return nil, failf(exitTimeout, "store %s is still being closed by its daemon with pid %d after %v: see its log, and whether its disk answers", d.cfg.Store, report.PID, patience)
		case !said:
			d.log.WithField("pid", report.PID).Info("waiting for the daemon that is closing the store")
			said = true
		}
		time.Sleep(poll)
	}
}

// serveMount mounts and waits for the unmount.
func (d *daemon) serveMount(ready *readyPipe) error {
	if d.stopAsked.Load() {
		return errInterrupted
	}
	server, err := mountVolume(d.volume, d.cfg, d.log)
	if err != nil {
		return explainMount(d.cfg.Mountpoint, d.cfg.Options.AllowOther, err)
	}
	d.server.Store(server)
	d.log.WithFields(logrus.Fields{
		"store": d.cfg.Store, "mountpoint": d.cfg.Mountpoint, "options": d.cfg.Options.String(), "pid": os.Getpid(), "version": version(),
		"opening_ms": time.Since(d.started).Milliseconds(),
	}).Info("mounted")
	if d.stopAsked.Load() {
		go d.stop() // the signal came while mounting; the process ends with the mount
	}
	ready.tell(nil)
	notifySystemd("READY=1")
	server.Wait()
	notifySystemd("STOPPING=1")
	d.log.WithField("mountpoint", d.cfg.Mountpoint).Info("unmounted")
	d.detachLeftover()
	return nil
}

// detachLeftover removes the mount from the tree if its connection has ended without an unmount (aborted through sysfs).
func (d *daemon) detachLeftover() {
	if m, err := mountedAt(d.cfg.Mountpoint); err == nil && d.isOurs(m) {
		if err := unmount(d.cfg.Mountpoint, unmountLazy); err != nil {
			d.log.WithError(err).Warn("the dead mount stays in the tree: remove it with umount -l")
		}
	}
}

func (d *daemon) isOurs(m *mountEntry) bool {
	return m != nil && m.Type == fsType && m.Source == d.cfg.Store
}

// unmount takes the mount out of the tree. The mode is unmountNormal, unmountLazy or unmountForce.
func (d *daemon) unmount(mode unmountMode) error {
	d.unmounting.Lock()
	defer d.unmounting.Unlock()
	m, err := mountedAt(d.cfg.Mountpoint)
	if err != nil {
		return err
	}
	if !d.isOurs(m) {
		return failf(exitNotMounted, "%s: the mount of %s is not there, or covered by another one: unmount that first", d.cfg.Mountpoint, d.cfg.Store)
	}
	if mode != unmountNormal {
		// What processes have written so far must not depend on how they end.
		d.syncMount()
	}
	err = unmount(d.cfg.Mountpoint, mode)
	if errors.Is(err, errBusy) {
		return failf(exitBusy, "%s is busy: %s; stop it and try again, or use --lazy", d.cfg.Mountpoint, describeHolders(d.cfg.Mountpoint))
	}
	return err
}

// syncMount has the kernel send what it keeps of written files, and the volume write it to disk.
func (d *daemon) syncMount() {
	dir, err := os.OpenFile(d.cfg.Mountpoint, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if err == nil {
		err = unix.Syncfs(int(dir.Fd()))
		dir.Close()
	}
	if err == nil {
		err = d.volume.Sync(context.Background())
	}
	if err != nil {
		d.log.WithError(err).Warn("sync before unmounting")
	}
}

// stopGrace is how long processes may keep files open after the daemon has been told to stop. It is shorter than the
// 90 seconds after which systemd kills.
const stopGrace = 20 * time.Second

// handleSignals unmounts on SIGTERM and SIGINT and opens the log anew on SIGHUP, until the context ends.
func (d *daemon) handleSignals(ctx context.Context) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	var stopping sync.WaitGroup
	defer stopping.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				d.reopenLog()
			case d.stopAsked.Swap(true):
				d.log.WithField("signal", s.String()).Warn("asked to stop again: ending the mount now")
				d.abort()
			default:
				d.log.WithField("signal", s.String()).Info("asked to stop: unmounting")
				if d.server.Load() != nil {
					stopping.Go(d.stop)
				}
				d.stopUnmounted()
				if d.joining.Load() {
					d.log.Warn("ended while waiting for the cluster")
					os.Exit(int(exitQuorum)) // what was answered for is kept, as in a crash
				}
			}
		}
	}
}

func (d *daemon) reopenLog() {
	if d.logFile == nil {
		return
	}
	if err := d.logFile.reopen(); err != nil {
		d.log.WithError(err).Error("the log could not be opened anew")
	}
}

// stop unmounts whatever it takes: politely, then out of the tree with files still open, then by ending the connection.
func (d *daemon) stop() {
	err := d.unmount(unmountNormal)
	if err == nil || codeOf(err) == exitNotMounted {
		return
	}
	d.log.WithError(err).Warn("still in use: taken out of the tree, waiting for the files to be closed")
	if err := d.unmount(unmountLazy); err != nil {
		d.log.WithError(err).Warn("lazy unmount")
	}
	select {
	case <-d.closed:
	case <-time.After(stopGrace):
		d.log.Warn("files are still open: ending the mount all the same")
		d.abort()
	}
}

// abort ends the daemon, and with it the connection to the kernel: whoever has files open gets ENOTCONN. What was written before
// is kept.
func (d *daemon) abort() {
	code := exitBusy
	if d.server.Load() != nil || d.serving.Load() {
		if err := d.closeVolume(); err != nil {
			code = codeOf(err)
		}
	}
	os.Exit(int(code))
}

// closeVolume writes everything to disk and gives the store free; the second call only waits for the first.
func (d *daemon) closeVolume() error {
	d.closing.Do(func() {
		d.volumeMu.Lock()
		d.volumeClosed = true
		d.volumeMu.Unlock()
		if err := d.volume.Close(); err != nil {
			d.closeErr = fmt.Errorf("closing the store %s: %w", d.cfg.Store, err)
			d.log.WithError(err).Error("not everything could be written to the store")
		}
		d.closeErr = errors.Join(d.closeErr, d.hold.Close())
		close(d.closed)
	})
	<-d.closed
	return d.closeErr
}

// limitMemory keeps the Go runtime within a budget, unless the environment sets one. 0 is no budget.
func limitMemory(budget byteSize) {
	if budget > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(min(budget, math.MaxInt64)))
	}
}

// notifySystemd tells a service manager that waits for it (sd_notify(3)) about a change of state; without one it does nothing.
func notifySystemd(state string) {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	conn.Write([]byte(state))
}
