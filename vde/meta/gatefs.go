package meta

import (
	"io"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// gateFS stands between Pebble and the disk. It has two duties.
//
// It keeps rule R1: nothing in meta/ becomes durable before what it depends on. Pebble runs without a log of its own,
// so what is new becomes reachable after a crash only through its MANIFEST (the edit that adds a flushed table);
// before anything is written there the barrier makes the Raft logs and the image durable. Before the write, not only
// before the sync: what was written may reach the disk at any time after.
//
// And it keeps Pebble from learning of a failed write, because Pebble's answer to one of its MANIFEST, or of the marker
// that names it, is to end the process, and to one of a table to try again at once. The goroutine whose write failed is
// parked for good instead, and so is each that comes after it: nothing more is written, as in a crash. Pebble writes
// without holding a lock (its own, of opening apart), so commits into memory and reads go on; what waits for a flush
// waits for dead, too.
type gateFS struct {
	vfs.FS
	*gate
}

// gate is the state that a gateFS shares with its files.
type gate struct {
	barrier func() error
	onError func(error) // nil: nobody is told
	once    sync.Once
	dead    chan struct{} // closed by fail
	err     error         // why; valid once dead is closed

	mu   sync.Mutex
	lock io.Closer // Pebble's lock of the directory; guarded by mu
}

func newGate(barrier func() error, onError func(error)) *gate {
	return &gate{barrier: barrier, onError: onError, dead: make(chan struct{})}
}

// fail stops the store. What is under way is parked at its next write.
func (g *gate) fail(err error) {
	g.once.Do(func() {
		g.err = Words(err)
		close(g.dead)
		if g.onError != nil {
			g.onError(g.err)
		}
	})
}

// failed tells why the store stopped, nil while it works.
func (g *gate) failed() error {
	select {
	case <-g.dead:
		return g.err
	default:
		return nil
	}
}

// pass lets a change through, or parks the goroutine for good if the store has stopped or the change fails.
func (g *gate) pass(change func() error) {
	if g.failed() == nil {
		err := change()
		if err == nil {
			return
		}
		g.fail(err)
	}
	select {}
}

// await runs a call of Pebble that may wait for what is parked, and returns when that has ended or the store has stopped.
// In the second case the goroutine stays, as the parked ones do.
func (g *gate) await(call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		return err
	case <-g.dead:
		return g.err
	}
}

// abandon lets go of the lock of the directory, for who opens it next in this process.
func (g *gate) abandon() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lock == nil {
		return nil
	}
	err := g.lock.Close()
	g.lock = nil
	return err
}

// Lock remembers the lock, for abandon.
func (f gateFS) Lock(name string) (io.Closer, error) {
	l, err := f.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.lock = l
	f.mu.Unlock()
	return lockCloser{f.gate}, nil
}

type lockCloser struct{ g *gate }

func (l lockCloser) Close() error { return l.g.abandon() }

func (f gateFS) open(name string, open func() (vfs.File, error)) (file vfs.File, _ error) {
	f.pass(func() (err error) { file, err = open(); return err })
	return gateFile{file, f.gate, strings.HasPrefix(f.PathBase(name), "MANIFEST")}, nil
}

// Create, OpenReadWrite and ReuseForWrite are the ways a file becomes writable.
func (f gateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open(name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f gateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return f.open(name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, opts...) })
}

func (f gateFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open(newname, func() (vfs.File, error) { return f.FS.ReuseForWrite(oldname, newname, c) })
}

// OpenDir gives a directory whose Sync is that of a file; a missing directory is an answer, not a failure.
func (f gateFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return gateFile{d, f.gate, false}, nil
}

func (f gateFS) Rename(oldname, newname string) error {
	f.pass(func() error { return f.FS.Rename(oldname, newname) })
	return nil
}

func (f gateFS) Link(oldname, newname string) error {
	f.pass(func() error { return f.FS.Link(oldname, newname) })
	return nil
}

// Remove may fail: what is removed is of no use any more, and Pebble tries again when it is opened next. After the store
// has stopped nothing is removed.
func (f gateFS) Remove(name string) error {
	if err := f.failed(); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// Unwrap gives Pebble the file system below, for its own checks.
func (f gateFS) Unwrap() vfs.FS { return f.FS }

type gateFile struct {
	vfs.File
	g        *gate
	manifest bool // needs the barrier
}

// write passes a write; short ones have an error.
func (f gateFile) write(write func() (int, error)) (n int, _ error) {
	f.g.pass(func() (err error) {
		if f.manifest {
			if err := f.g.barrier(); err != nil {
				return err
			}
		}
		n, err = write()
		return err
	})
	return n, nil
}

func (f gateFile) Write(p []byte) (int, error) {
	return f.write(func() (int, error) { return f.File.Write(p) })
}

func (f gateFile) WriteAt(p []byte, off int64) (int, error) {
	return f.write(func() (int, error) { return f.File.WriteAt(p, off) })
}

func (f gateFile) Sync() error {
	f.g.pass(f.File.Sync)
	return nil
}

func (f gateFile) SyncData() error {
	f.g.pass(f.File.SyncData)
	return nil
}

func (f gateFile) SyncTo(length int64) (full bool, _ error) {
	f.g.pass(func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, nil
}
