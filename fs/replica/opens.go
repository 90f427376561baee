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
	// retired are inodes that this mount has given up while another one may have them open: nobody here may open them.
	retired map[meta.Ino]bool // guarded by mu
}

func newOpens() *opens {
	o := &opens{count: map[meta.Ino]int{}, held: map[meta.Ino]bool{}, retired: map[meta.Ino]bool{}}
	o.free.L = &o.mu
	return o
}

// add counts one more user; it waits while the inode is held. It answers false if this mount has given the inode up.
func (o *opens) add(ino meta.Ino) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.held[ino] {
		o.free.Wait()
	}
	if o.retired[ino] {
		return false
	}
	o.count[ino]++
	return true
}

// retireSweep is how many retired inodes are kept before those that exist no more are forgotten.
const retireSweep = 4096

// retire gives up inodes that are held. exists tells whether an inode is still there.
func (o *opens) retire(inos []meta.Ino, exists func(meta.Ino) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, ino := range inos {
		if exists(ino) {
			o.retired[ino] = true
		}
	}
	if len(o.retired) > retireSweep {
		for ino := range o.retired {
			if !exists(ino) {
				delete(o.retired, ino)
			}
		}
	}
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
