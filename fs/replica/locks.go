package replica

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"vdefs/fs"
	"vdefs/fs/advisory"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde/meta"
)

var _ fs.SharedLocker = (*Volume)(nil)

// lockWaits are the requests of this mount that wait for a lock of another one.
type lockWaits struct {
	mu      sync.Mutex
	waiting map[meta.Ino][]chan struct{} // closed to have them look again; guarded by mu
}

func (w *lockWaits) add(ino meta.Ino) chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := make(chan struct{})
	w.waiting[ino] = append(w.waiting[ino], c)
	return c
}

func (w *lockWaits) remove(ino meta.Ino, c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.waiting[ino]
	if i := slices.Index(list, c); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(w.waiting, ino)
	} else {
		w.waiting[ino] = list
	}
}

func (w *lockWaits) wake(ino meta.Ino) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.waiting[ino] {
		close(c)
	}
	delete(w.waiting, ino)
}

func (w *lockWaits) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, list := range w.waiting {
		for _, c := range list {
			close(c)
		}
	}
	clear(w.waiting)
}

// lockRetry is how often a waiting request looks again although nobody told it to.
const lockRetry = 2 * time.Second

// lockCommand is a command about a lock of this mount.
func (n *node) lockCommand(ino meta.Ino, act command.LockAct, class advisory.Class, l advisory.Lock) *command.Lock {
	return &command.Lock{
		Session: n.session.Load().id, Ino: ino, Act: act, Flock: class == advisory.Flock, Exclusive: l.Exclusive,
		Start: l.Start, End: l.End, Owner: l.Owner.ID, Handle: l.Handle, PID: l.PID,
	}
}

// TakeLock implements fs.SharedLocker.
func (v *Volume) TakeLock(ctx context.Context, cancel <-chan struct{}, ino meta.Ino, class advisory.Class, want advisory.Lock, wait bool) error {
	if v.node == nil {
		return nil
	}
	for {
		again := v.node.locks.add(ino)
		res, err := v.propose(ctx, v.node.lockCommand(ino, command.LockTake, class, want))
		if err != nil || !res.Refused {
			v.node.locks.remove(ino, again)
			return err
		}
		if !wait {
			v.node.locks.remove(ino, again)
			return syscall.EAGAIN
		}
		timer := time.NewTimer(lockRetry)
		select {
		case <-again:
		case <-timer.C:
		case <-cancel:
			err = syscall.EINTR
		case <-ctx.Done():
			err = ctx.Err()
		}
		timer.Stop()
		v.node.locks.remove(ino, again)
		if err != nil {
			return err
		}
	}
}

// TestLock implements fs.SharedLocker.
func (v *Volume) TestLock(ctx context.Context, ino meta.Ino, class advisory.Class, want advisory.Lock) (advisory.Lock, bool, error) {
	if v.node == nil {
		return advisory.Lock{}, false, nil
	}
	if err := v.barrier(ctx, ino); err != nil {
		return advisory.Lock{}, false, err
	}
	set, err := posix.Locks(v.factReader(ino.Group()), ino)
	if err != nil {
		return advisory.Lock{}, false, errors.Join(syscall.EIO, err)
	}
	want.Owner.Session = v.node.session.Load().id
	if l := set.Conflict(class, &want); l != nil {
		return *l, true, nil
	}
	return advisory.Lock{}, false, nil
}

// Unlock implements fs.SharedLocker.
func (v *Volume) Unlock(ctx context.Context, ino meta.Ino, class advisory.Class, what advisory.Lock) error {
	return v.unlock(ctx, ino, command.LockUnlock, class, what)
}

// UnlockOwner implements fs.SharedLocker.
func (v *Volume) UnlockOwner(ctx context.Context, ino meta.Ino, owner uint64) error {
	return v.unlock(ctx, ino, command.LockOwner, advisory.POSIX, advisory.Lock{Owner: advisory.Owner{ID: owner}})
}

// UnlockHandle implements fs.SharedLocker.
func (v *Volume) UnlockHandle(ctx context.Context, ino meta.Ino, handle uint64) error {
	return v.unlock(ctx, ino, command.LockHandle, advisory.POSIX, advisory.Lock{Handle: handle})
}

func (v *Volume) unlock(ctx context.Context, ino meta.Ino, act command.LockAct, class advisory.Class, l advisory.Lock) error {
	if v.node == nil {
		return nil
	}
	_, err := v.propose(ctx, v.node.lockCommand(ino, act, class, l))
	if errors.Is(err, syscall.ESTALE) {
		err = nil // the file is gone, and its locks with it
	}
	return err
}
