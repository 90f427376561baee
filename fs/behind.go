package fs

import (
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// failures remember, per node id, writes that failed after they were answered (WriteBehind). As on a disk filesystem, each file
// that was open then is told once, at its next fsync(2) or close(2).
type failures struct {
	size  atomic.Int64 // len(files)
	mu    sync.Mutex
	files map[uint64]*failure // guarded by mu; dropped when no file is open any more
}

type failure struct {
	err    error
	newest uint64          // the last handle that was given then
	told   map[uint64]bool // handles
}

// note remembers an error, in place of an older one.
func (t *failures) note(node uint64, err error, newest uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil {
		t.files = make(map[uint64]*failure)
	}
	t.files[node] = &failure{err: err, newest: newest, told: make(map[uint64]bool)}
	t.size.Store(int64(len(t.files)))
}

// tell returns what a handle has not been told.
func (t *failures) tell(node, handle uint64) error {
	if t.size.Load() == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[node]
	if f == nil || handle > f.newest || f.told[handle] {
		return nil
	}
	f.told[handle] = true
	return f.err
}

// drop forgets a node of which no file is open.
func (t *failures) drop(node uint64) {
	if t.size.Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.files, node)
	t.size.Store(int64(len(t.files)))
}

// mayWriteBehind tells whether a write may be done after it was answered: others share the volume, are promised to see it after
// a close, and the kernel holds the page.
func (f *filesystem) mayWriteBehind(in *fuse.WriteIn) bool {
	return f.others != nil && !f.options.NoCache &&
		in.WriteFlags&(fuse.WRITE_CACHE|fuse.WRITE_KILL_SUIDGID) == 0 &&
		in.Flags&(syscall.O_DIRECT|syscall.O_SYNC|syscall.O_DSYNC|syscall.O_APPEND) == 0
}

// settle waits for writes that are behind.
func (f *filesystem) settle(node uint64) {
	if f.others == nil {
		return
	}
	if err := f.others.Settle(f.ctx, f.ino(node)); err != nil {
		f.failures.note(node, err, f.handles.Load()<<handleBits|(1<<handleBits-1))
	}
}

// settleHandle is settle; it returns what failed and the handle has not been told yet.
func (f *filesystem) settleHandle(node, handle uint64) error {
	f.settle(node)
	return f.failures.tell(node, handle)
}
