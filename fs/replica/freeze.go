package replica

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/fs/recode"
	"vdefs/vde/meta"
)

// freezes is what this node has to do with files whose contents a mount replaces: see fs/posix/freeze.go.
type freezes struct {
	mu    sync.Mutex
	mount fs.Announcer               // nil: not mounted; guarded by mu
	held  map[meta.Ino]bool          // that this node keeps closed for another one; guarded by mu
	waits map[meta.Ino]chan struct{} // of this node's own freezes: closed when it may look; guarded by mu
}

const (
	freezeWait = 2 * time.Second  // for the others to answer
	thawWait   = 10 * time.Second // that a request by path waits for the replacement
)

func (v *Volume) attachFreezes(mount fs.Announcer) {
	if v.node == nil {
		return
	}
	z := &v.node.freezes
	z.mu.Lock()
	defer z.mu.Unlock()
	z.mount = mount
}

// freeze has all other mounts keep a file closed, or fails with recode.ErrBusy or recode.ErrChanged. It ends with Replace, or with
// unfreeze.
func (n *node) freeze(ctx context.Context, ino meta.Ino, version uint64) error {
	z := &n.freezes
	z.mu.Lock()
	again := make(chan struct{}, 1)
	z.waits[ino] = again
	z.mu.Unlock()
	defer func() {
		z.mu.Lock()
		delete(z.waits, ino)
		z.mu.Unlock()
	}()
	session := n.session.Load().id
	_, err := n.v.propose(ctx, &command.Freeze{Session: session, Ino: ino, Version: version})
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ESTALE):
		return recode.ErrChanged
	case errors.Is(err, syscall.EBUSY):
		return recode.ErrBusy
	case err != nil:
		return err
	}
	timer := time.NewTimer(freezeWait)
	defer timer.Stop()
	for {
		by, ready, err := posix.Frozen(facts{n.v, ino.Group()}, ino)
		switch {
		case err != nil:
			return err
		case by != session:
			return recode.ErrBusy
		case ready:
			return nil
		}
		select {
		case <-again:
		case <-timer.C:
			n.unfreeze(ino)
			return recode.ErrBusy
		case <-ctx.Done():
			n.unfreeze(ino)
			return ctx.Err()
		}
	}
}

func (n *node) unfreeze(ino meta.Ino) {
	ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
	defer cancel()
	if _, err := n.v.propose(ctx, &command.Unfreeze{Session: n.session.Load().id, Ino: ino}); err != nil {
		n.v.log.WithError(err).WithField("ino", uint64(ino)).Warn("a file that was to be replaced is kept closed until this mount's session ends")
	}
}

// asked is told that another mount wants to replace a file.
func (n *node) asked(ino meta.Ino) {
	n.begin(func() {
		ready := n.v.opens.hold(ino)
		if ready {
			n.freezes.mu.Lock()
			n.freezes.held[ino] = true
			mount := n.freezes.mount
			n.freezes.mu.Unlock()
			if mount != nil {
				mount.BeginChange(ino, thawWait)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
		defer cancel()
		if _, err := n.v.propose(ctx, &command.FreezeVote{Session: n.session.Load().id, Ino: ino, Ready: ready}); err != nil {
			n.v.log.WithError(err).WithField("ino", uint64(ino)).Info("answering a mount that wants to replace a file")
		}
		if ready {
			n.thawed(ino.Group()) // it may have been over before it was held
		}
	})
}

// replaced is told of contents that another mount has replaced, before anybody can open the file.
func (n *node) replaced(in *meta.Inode) {
	z := &n.freezes
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.held[in.Ino] && z.mount != nil {
		z.mount.Changed(in.Ino, in.Version)
	}
}

// thawed looks which freezes of a group are over, and has those of this node look whether they are complete.
func (n *node) thawed(slot uint16) {
	z := &n.freezes
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, again := range z.waits {
		poke(again)
	}
	for ino := range z.held {
		if ino.Group() != slot {
			continue
		}
		if by, _, err := posix.Frozen(facts{n.v, slot}, ino); err != nil || by != 0 {
			continue
		}
		delete(z.held, ino)
		mount := z.mount
		n.begin(func() {
			// The kernel is told while nobody can open the file, and is never waited for while applying.
			if mount != nil {
				mount.EndChange(ino, 0, "")
			}
			n.v.opens.release(ino)
		})
	}
}
