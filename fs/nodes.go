package fs

import (
	"sync"

	"vdefs/vde/meta"
)

// nodeTable knows which inodes the kernel may hold, and why the mount keeps a removed one alive.
//
// The kernel holds an inode from the first answer that names it (a lookup, or an entry of READDIRPLUS) until it has given
// back as many lookups with FORGET. RELEASE and FORGET travel in different queues, so either may be the last to come.
//
// It is split into shards, as every lookup and forget passes here.
type nodeTable struct {
	shards [nodeShards]nodeShard
}

const nodeShards = 64

type nodeShard struct {
	mu sync.Mutex
	m  map[uint64]node // by node id; guarded by mu. Values, not pointers: millions of them cost the collector nothing
	_  [40]byte        // a cache line of its own
}

// node is what is known of one node id. It is dropped when lookups and opens are 0.
type node struct {
	lookups uint64 // that the kernel will give back
	opens   uint32 // open files, each with a Reference
	writers uint32 // those of opens that may write
	cached  uint32 // those of opens that read through the kernel's cache
	// held: a Reference is kept, because the inode has no name (any more) and the kernel may still come back to it (a
	// working directory, an O_PATH descriptor). Given back when lookups is 0.
	held bool
	// unlinked: held, and no name can be given to it any more (unlike a file made by O_TMPFILE).
	unlinked bool
	// fresh: it was made through this mount and no descriptor of it has been closed yet.
	fresh bool
	// dropCaps: it had file capabilities when it was opened for writing; the first write removes them.
	dropCaps bool
	// unsynced counts writes since the last fsync, up to 2. syncs: before that there was one.
	unsynced uint8
	syncs    bool
	// staleTimes: it was written past the cache of a kernel that has the times to itself, which it has not been told.
	staleTimes bool
}

func newNodeTable() *nodeTable {
	t := new(nodeTable)
	for i := range t.shards {
		t.shards[i].m = make(map[uint64]node)
	}
	return t
}

func (t *nodeTable) shard(id uint64) *nodeShard {
	return &t.shards[(id*0x9E3779B97F4A7C15)>>(64-6)]
}

// lookup counts an answer that names the node.
func (t *nodeTable) lookup(id uint64) {
	if id == uint64(meta.RootIno) {
		return // never forgotten
	}
	s := t.shard(id)
	s.mu.Lock()
	n := s.m[id]
	n.lookups++
	s.m[id] = n
	s.mu.Unlock()
}

// known tells whether the kernel may hold the node.
func (t *nodeTable) known(id uint64) bool {
	if id == uint64(meta.RootIno) {
		return true
	}
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.m[id]
	return ok
}

// forget takes lookups back. It tells whether a Reference that was held is to be given back.
func (t *nodeTable) forget(id, lookups uint64) (unreference bool) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.m[id]
	if !ok {
		return false // the root, or go-fuse's own node
	}
	n.lookups -= min(lookups, n.lookups)
	if n.lookups == 0 {
		unreference, n.held = n.held, false
	}
	s.put(id, n)
	return unreference
}

// hold asks to keep a Reference until the kernel has forgotten the node. It is false if the kernel does not know it or
// one is kept already: then the caller gives its own back.
func (t *nodeTable) hold(id uint64, unlinked bool) bool {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.m[id]
	if !ok || n.lookups == 0 {
		return false
	}
	kept := n.held
	n.held = true
	n.unlinked = n.unlinked || unlinked
	s.m[id] = n
	return !kept
}

// named takes note that an inode without a name (O_TMPFILE) has got one. It tells whether a Reference that was held is to
// be given back.
func (t *nodeTable) named(id uint64) (unreference bool) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.m[id]
	if !ok || !n.held || n.unlinked {
		return false
	}
	n.held = false
	s.m[id] = n
	return true
}

// open counts a handle; the caller has referenced the inode.
func (t *nodeTable) open(id uint64, writer, cached, dropCaps bool) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.m[id]
	n.opens++
	if writer {
		n.writers++
	}
	if cached {
		n.cached++
	}
	n.dropCaps = n.dropCaps || dropCaps
	s.m[id] = n
}

// created notes that a file was made for the handle that has been opened; flushed that a descriptor of one is being closed.
func (t *nodeTable) created(id uint64) { t.setFresh(id, true) }
func (t *nodeTable) flushed(id uint64) { t.setFresh(id, false) }

func (t *nodeTable) setFresh(id uint64, fresh bool) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.m[id]; ok && n.fresh != fresh {
		n.fresh = fresh
		s.m[id] = n
	}
}

// release takes a handle back, and tells whether it was the last that could write.
func (t *nodeTable) release(id uint64, writer, cached bool) (lastWriter bool) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.m[id]
	if !ok || n.opens == 0 {
		return false
	}
	n.opens--
	if writer && n.writers > 0 {
		n.writers--
		lastWriter = n.writers == 0
	}
	if cached && n.cached > 0 {
		n.cached--
	}
	s.put(id, n)
	return lastWriter
}

// get returns what is known of a node.
func (t *nodeTable) get(id uint64) node {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[id]
}

// wrote tells of a write, once, whether it removes capabilities.
func (t *nodeTable) wrote(id uint64) (dropCaps bool) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.m[id]
	if !ok || !n.dropCaps {
		return false
	}
	n.dropCaps = false
	s.m[id] = n
	return true
}

// written tells of a write whether an fsync is likely to follow at once: it did so after the write before.
func (t *nodeTable) written(id uint64) (syncs bool) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.m[id]
	if !ok {
		return false
	}
	n.unsynced = min(n.unsynced+1, 2)
	s.m[id] = n
	return n.syncs && n.unsynced == 1
}

// fsynced tells of an fsync.
func (t *nodeTable) fsynced(id uint64) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.m[id]; ok {
		n.syncs, n.unsynced = n.unsynced == 1, 0
		s.m[id] = n
	}
}

// staleTimes notes that the kernel does not know the times of a file; takeStaleTimes asks for it once.
func (t *nodeTable) staleTimes(id uint64) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.m[id]; ok {
		n.staleTimes = true
		s.m[id] = n
	}
}

func (t *nodeTable) takeStaleTimes(id uint64) bool {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.m[id]
	if !ok || !n.staleTimes {
		return false
	}
	n.staleTimes = false
	s.m[id] = n
	return true
}

// drain empties the table after the connection is gone: the kernel gives nothing back any more. It returns how many
// References were kept, by node id.
func (t *nodeTable) drain() map[uint64]uint32 {
	kept := make(map[uint64]uint32)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for id, n := range s.m {
			references := n.opens
			if n.held {
				references++
			}
			if references > 0 {
				kept[id] = references
			}
		}
		s.m = make(map[uint64]node)
		s.mu.Unlock()
	}
	return kept
}

// count returns how many nodes are known and how many files are open.
func (t *nodeTable) count() (known, open int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		known += len(s.m)
		for _, n := range s.m {
			open += int(n.opens)
		}
		s.mu.Unlock()
	}
	return known, open
}

// put stores a node, or drops it when nothing is left of it.
func (s *nodeShard) put(id uint64, n node) {
	if n.lookups == 0 && n.opens == 0 {
		delete(s.m, id)
		return
	}
	s.m[id] = n
}
