package fs

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

// A file whose contents the volume has replaced by itself is renewed: from then on it is answered under another node id
// (with the same st_ino), so that the kernel makes a new inode with the new size. That cannot be had for less: with its
// writeback cache the kernel believes no size that the server tells of an inode that it holds. A new generation of the
// same node id would do too, but the kernel makes the old inode bad at once, and whoever has just found it in a path gets
// EIO. Here the old node id stays good for answers and only asks to look again: it is stale, every request that comes by
// path gets ESTALE, and the kernel then walks the path anew with LOOKUP_REVAL and finds the new one.
//
// Nobody may have the file open when its contents are replaced, and what comes from open files therefore never meets a
// stale node id. What the kernel still holds of the old inode: its attributes, which EndChange invalidates (so that the
// next stat asks and gets ESTALE); replies under way, which the kernel discards as they are older than the invalidation;
// and times of the writeback cache, which are older than the change and ignored.
//
// What does see the change: an O_PATH descriptor and a file handle (open_by_handle_at) of before are stale, and an inotify
// watch on the file itself (not on its directory) hears nothing more.

// SelfChanger is a Volume that replaces the contents of files by itself. Mount calls Attach.
type SelfChanger interface {
	// Attach tells to whom such changes are announced, before the first request; nil after the last.
	Attach(Announcer)
	// WaitsAtClose tells whether Closing is of use: it costs a request at every close(2). Asked once, after Attach.
	WaitsAtClose() bool
	// Closing is called at a close(2) of the only open file of an inode, which returns when it does. The file is
	// still open (and may stay so, if the descriptor has a duplicate).
	Closing(ino meta.Ino)
}

// Announcer is told of contents that a SelfChanger replaces.
type Announcer interface {
	// BeginChange says that a file is about to be changed, or may be: until EndChange the kernel keeps no answer that
	// names it. With wait above 0 requests that come by path wait for EndChange from now on, but no longer than that. It is
	// called with such a wait at the latest when nobody can open the file any more and the change has not been made, so
	// that everybody sees all of it or nothing. It may be called again; one EndChange ends it.
	BeginChange(ino meta.Ino, wait time.Duration)
	// Changed says that contents from this version of the inode on are not those that the kernel knows. It is called
	// after the change has been applied and before anybody can open the file again.
	Changed(ino meta.Ino, version uint64)
	// EndChange says that it is done, or was not. It tells the kernel, so it must be called without anything held that a
	// request may wait for. parent and name are where the file is, as far as known.
	EndChange(ino, parent meta.Ino, name string)
}

// renewedSlot stands where an inode number has its group in node ids of renewed files. No group has that slot.
const renewedSlot = 0xFFFE

// renewals knows the files that are answered under another node id than their number, or are about to be.
type renewals struct {
	size   atomic.Int64 // len(byIno)
	mu     sync.RWMutex
	byIno  map[meta.Ino]*renewal // guarded by mu
	byNode map[uint64]meta.Ino   // all node ids of renewed files that the kernel may still hold; guarded by mu
	last   uint64                // sequence of the newest renewed node id; guarded by mu
}

// renewal is one file. It is dropped when no change is coming and the kernel holds none of its node ids; then it is
// answered under its number again.
type renewal struct {
	node    uint64   // what it is answered under
	version uint64   // inodes older than this are answered under former
	former  uint64   // the node id before node; 0: none
	old     []uint64 // stale node ids that the kernel may still hold, former included
	// pending: between BeginChange and EndChange. changed: and Changed was called.
	pending, changed bool
	// settled is closed by EndChange; waited for until then at most. nil: nobody waits.
	settled chan struct{}
	until   time.Time
}

func newRenewals() *renewals {
	return &renewals{byIno: make(map[meta.Ino]*renewal), byNode: make(map[uint64]meta.Ino)}
}

// ino is the inode behind a node id; 0, which no volume knows, if there is none.
func (r *renewals) ino(node uint64) meta.Ino {
	if node>>48 != renewedSlot {
		return meta.Ino(node)
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byNode[node]
}

// node is the node id that an inode is answered under.
func (r *renewals) node(ino meta.Ino) uint64 {
	if r.size.Load() == 0 {
		return uint64(ino)
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e := r.byIno[ino]; e != nil {
		return e.node
	}
	return uint64(ino)
}

// answer picks the node id for an answer that names an inode, and counts it. keep: the kernel may keep the answer.
func (r *renewals) answer(inode *meta.Inode, nodes *nodeTable) (node uint64, keep bool) {
	// Counted under the lock, so that a renewal is not dropped between the two.
	r.mu.RLock()
	defer r.mu.RUnlock()
	node, keep = uint64(inode.Ino), true
	if e := r.byIno[inode.Ino]; e != nil {
		node, keep = e.node, !e.pending
		if e.former != 0 && inode.Version < e.version {
			node, keep = e.former, false // read before the change
		}
	}
	nodes.lookup(node)
	return node, keep
}

// stale tells whether a node id is no longer that of its inode; a change that is waited for comes first.
func (r *renewals) stale(node uint64, cancel <-chan struct{}) bool {
	if r.size.Load() == 0 && node>>48 != renewedSlot {
		return false
	}
	for {
		stale, settled, wait := r.look(node)
		if settled == nil || wait <= 0 {
			return stale
		}
		timer := time.NewTimer(wait)
		select {
		case <-settled:
		case <-timer.C: // or there is more time by now
		case <-cancel:
			timer.Stop()
			return stale
		}
		timer.Stop()
	}
}

func (r *renewals) look(node uint64) (stale bool, settled chan struct{}, wait time.Duration) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ino := meta.Ino(node)
	if node>>48 == renewedSlot {
		ino = r.byNode[node]
	}
	e := r.byIno[ino]
	if e == nil {
		return node>>48 == renewedSlot, nil, 0
	}
	if e.settled != nil {
		wait = time.Until(e.until)
	}
	return e.node != node, e.settled, wait
}

func (r *renewals) begin(ino meta.Ino, wait time.Duration) (node uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byIno[ino]
	if e == nil {
		e = &renewal{node: uint64(ino)}
		r.byIno[ino] = e
		r.size.Store(int64(len(r.byIno)))
	}
	e.pending = true
	if wait > 0 {
		e.until = time.Now().Add(wait)
		if e.settled == nil {
			e.settled = make(chan struct{})
		}
	}
	return e.node
}

func (r *renewals) changed(ino meta.Ino, version uint64, nodes *nodeTable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byIno[ino]
	if e == nil {
		return
	}
	r.last++
	e.old = append(slices.DeleteFunc(e.old, func(id uint64) bool {
		gone := nodes.get(id) == node{}
		if gone {
			delete(r.byNode, id)
		}
		return gone
	}), e.node)
	e.former, e.node, e.version, e.changed = e.node, renewedSlot<<48|r.last, version, true
	r.byNode[e.node] = ino
}

// end returns the node id that has become stale, 0 if none has.
func (r *renewals) end(ino meta.Ino, nodes *nodeTable) (stale uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byIno[ino]
	if e == nil {
		return 0
	}
	if e.changed {
		stale = e.former
	}
	if e.settled != nil {
		close(e.settled)
	}
	e.pending, e.changed, e.settled = false, false, nil
	r.drop(ino, e, nodes)
	return stale
}

// forgotten drops what is no longer needed after the kernel has forgotten a node.
func (r *renewals) forgotten(ino meta.Ino, nodes *nodeTable) {
	if r.size.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byIno[ino]; e != nil {
		r.drop(ino, e, nodes)
	}
}

// drop drops a renewal that is not needed; mu is held for writing.
func (r *renewals) drop(ino meta.Ino, e *renewal, nodes *nodeTable) {
	if e.pending || nodes.get(e.node) != (node{}) {
		return
	}
	for _, id := range e.old {
		if nodes.get(id) != (node{}) {
			return
		}
	}
	for _, id := range e.old {
		delete(r.byNode, id)
	}
	delete(r.byNode, e.node)
	delete(r.byIno, ino)
	r.size.Store(int64(len(r.byIno)))
}

// stale tells whether a request that came by path has to walk it again (see above).
func (f *filesystem) stale(node uint64) bool { return f.renewals.stale(node, f.ctx.Done()) }

// changedMeanwhile is called after a change of attributes: if the file was renewed meanwhile, what the kernel may have
// learnt under its new node id is not what they are now.
func (f *filesystem) changedMeanwhile(node uint64, ino meta.Ino) {
	if current := f.renewals.node(ino); current != node {
		f.server.InodeNotify(current, -1, 0)
	}
}

// BeginChange implements Announcer.
func (s *Server) BeginChange(ino meta.Ino, wait time.Duration) {
	node := s.fs.renewals.begin(ino, wait)
	if wait > 0 {
		// So that the next stat asks and waits. Attributes only: that waits for nothing and may come from a request.
		s.logInvalidation(ignoreUnknown("attributes", ino, s.fuse.InodeNotify(node, -1, 0)))
	}
}

// Changed implements Announcer.
func (s *Server) Changed(ino meta.Ino, version uint64) {
	s.fs.renewals.changed(ino, version, s.fs.nodes)
}

// EndChange implements Announcer.
func (s *Server) EndChange(ino, parent meta.Ino, name string) {
	stale := s.fs.renewals.end(ino, s.fs.nodes)
	if stale == 0 {
		return
	}
	s.logInvalidation(ignoreUnknown("inode", ino, s.fuse.InodeNotify(stale, 0, 0)))
	if name != "" {
		s.logInvalidation(s.InvalidateEntry(parent, name))
	}
}

func (s *Server) logInvalidation(err error) {
	select {
	case <-s.fs.ctx.Done():
		return // nobody is left to tell
	default:
	}
	if err != nil {
		s.fs.log.WithError(err).Warn("the kernel could not be told of a file that was made smaller")
	}
}

// attach makes a volume that changes files by itself known to the mount and the mount to it.
func (s *Server) attach() {
	if v, ok := s.fs.volume.(SelfChanger); ok {
		v.Attach(s)
		if v.WaitsAtClose() {
			s.fs.closing = v.Closing
		}
	}
	if s.fs.others != nil {
		s.fs.others.AttachKernel(s)
	}
}

// detach ends what attach began.
func (s *Server) detach() {
	if v, ok := s.fs.volume.(SelfChanger); ok {
		v.Attach(nil)
	}
	if s.fs.others != nil {
		s.fs.others.AttachKernel(nil)
	}
}

var _ Announcer = (*Server)(nil)

// flushed is called at a close(2).
func (f *filesystem) flushed(in *fuse.FlushIn) {
	if f.closing != nil && f.nodes.get(in.NodeId).opens == 1 {
		f.closing(f.ino(in.NodeId))
	}
}
