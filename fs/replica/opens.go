package replica

import (
	"sync"

	"vdefs/vde/meta"
)

// opens counts who has an inode open on this node, and keeps opening and freeing apart.
type opens struct {
	mu    sync.Mutex
	count map[meta.Ino]int // guarded by mu; no zeros
	// held are inodes that a command is about to free or to replace: nobody may open them until it has been applied.
	held map[meta.Ino]bool // guarded by mu
	free sync.Cond         // on mu: signalled when an inode is no longer held
}

func newOpens() *opens {
	o := &opens{count: map[meta.Ino]int{}, held: map[meta.Ino]bool{}}
	o.free.L = &o.mu
	return o
}

// add counts one more user; it waits while the inode is held.
func (o *opens) add(ino meta.Ino) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.held[ino] {
		o.free.Wait()
	}
	o.count[ino]++
}

// drop counts one user less and tells whether it was the last.
func (o *opens) drop(ino meta.Ino) (last bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count[ino] > 1 {
		o.count[ino]--
		return false
	}
	delete(o.count, ino)
	return true
}

// used tells whether anybody has the inode open.
func (o *opens) used(ino meta.Ino) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count[ino] > 0
}

// hold keeps an inode that nobody has open from being opened; release ends that. It answers false if it is in use.
func (o *opens) hold(ino meta.Ino) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count[ino] > 0 || o.held[ino] {
		return false
	}
	o.held[ino] = true
	return true
}

func (o *opens) release(ino meta.Ino) {
	o.mu.Lock()
	delete(o.held, ino)
	o.free.Broadcast()
	o.mu.Unlock()
}
