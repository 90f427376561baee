package replica

import (
	"context"
	"sync"
	"time"

	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde/meta"
)

// reaper frees inodes that have no name and that nobody has open: many with one command, a moment after the last
// user went, so that nobody waits for it.
type reaper struct {
	v    *Volume
	mu   sync.Mutex
	list []meta.Ino // guarded by mu
	wake chan struct{}
}

const (
	reapBatch = 512                   // inodes a command
	reapDelay = 50 * time.Millisecond // how long the first of a batch waits for others
)

// add notes an inode that may have become free.
func (r *reaper) add(ino meta.Ino) {
	r.mu.Lock()
	r.list = append(r.list, ino)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run works until stop is closed.
func (r *reaper) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-r.wake:
		}
		select {
		case <-stop:
			return
		case <-time.After(reapDelay):
		}
		if err := r.drain(context.Background()); err != nil {
			r.v.log.WithError(err).Warn("freeing unlinked files failed; they are freed at the next mount")
		}
	}
}

// drain frees all that is noted.
func (r *reaper) drain(ctx context.Context) error {
	for {
		r.mu.Lock()
		n := min(len(r.list), reapBatch)
		batch := append([]meta.Ino(nil), r.list[:n]...)
		r.list = r.list[n:]
		if len(r.list) == 0 {
			r.list = nil
		}
		r.mu.Unlock()
		if n == 0 {
			return nil
		}
		held := batch[:0]
		for _, ino := range batch {
			if r.v.opens.hold(ino) {
				held = append(held, ino)
			}
		}
		if len(held) == 0 {
			continue
		}
		err := r.free(ctx, held)
		for _, ino := range held {
			r.v.opens.release(ino)
		}
		if err != nil {
			return err
		}
	}
}

// free frees inodes that this mount has not open, or lets go of those that other mounts may have.
func (r *reaper) free(ctx context.Context, inos []meta.Ino) error {
	var kept, free []meta.Ino
	for _, ino := range inos {
		shared := false
		if r.v.node != nil {
			var err error
			if shared, err = posix.Held(r.v.factReader(ino.Group()), ino); err != nil {
				return err
			}
		}
		if shared {
			kept = append(kept, ino)
		} else {
			free = append(free, ino)
		}
	}
	for _, list := range byGroup(kept) {
		if _, err := r.v.propose(ctx, &command.Release{Session: r.v.node.session.Load().id, Inos: list}); err != nil {
			return err
		}
	}
	if len(kept) > 0 {
		r.v.opens.retire(kept, func(ino meta.Ino) bool {
			_, err := r.v.inode(ino)
			return err == nil
		})
	}
	for _, list := range byGroup(free) {
		if _, err := r.v.propose(ctx, &command.Reap{Inos: list}); err != nil {
			return err
		}
	}
	return nil
}

// byGroup splits a list of inodes by group.
func byGroup(inos []meta.Ino) map[uint16][]meta.Ino {
	lists := map[uint16][]meta.Ino{}
	for _, ino := range inos {
		lists[ino.Group()] = append(lists[ino.Group()], ino)
	}
	return lists
}
