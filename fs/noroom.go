package fs

import (
	"sync"
	"syscall"
	"time"
)

// noRoom has write(2) fail on a full store. With the writeback cache a write(2) only fills the kernel's pages, and that they found no room is
// told at fsync(2) and close(2): a program that writes on and on would do so without end, and believe it. Before it fills a page the kernel asks
// for the attributes of the file, with the handle, if it does not know the mode any more; the failed write makes it forget that, and the answer is the
// error, unless there is room again. One write(2) gets it for each failed one.
type noRoom struct {
	mu    sync.Mutex
	nodes map[uint64]time.Time // by node: when its pages found no room, and nobody was told since
}

// noRoomFor is how long a write(2) after a failed one is told. There may be room again.
const noRoomFor = 5 * time.Second

// note remembers that pages of a node found no room.
func (r *noRoom) note(node uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes == nil {
		r.nodes = map[uint64]time.Time{}
	}
	now := time.Now()
	for n, at := range r.nodes {
		if now.Sub(at) > noRoomFor {
			delete(r.nodes, n) // nobody wrote to it again
		}
	}
	r.nodes[node] = now
}

// tell reports whether who is about to write to a node has to be told that there is no room.
func (r *noRoom) tell(node uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.nodes[node]
	delete(r.nodes, node)
	return ok && time.Since(at) <= noRoomFor
}

// fullBelow is how many free blocks are too few for the largest request of the kernel to be sure of its room.
const fullBelow = 512

// full tells whether there is no room now: files may have been removed since a write failed.
func (f *filesystem) full() bool {
	st, err := f.volume.StatFS(f.ctx)
	return err == nil && st.BlocksAvail < fullBelow
}

// isNoRoom tells whether an error is of a kind that goes away when files are removed.
func isNoRoom(err error) bool {
	errno := ToErrno(err)
	return errno == syscall.ENOSPC || errno == syscall.EDQUOT
}
