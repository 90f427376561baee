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

// lockWaits are the requests of this mount that wait for a lock of another one, and the locks that it could not give back yet.
type lockWaits struct {
	mu      sync.Mutex
	waiting map[meta.Ino][]chan struct{} // closed to have them look again; guarded by mu

	owed   map[meta.Ino][]*command.Lock // what gives them back, in order; guarded by mu
	paying sync.Mutex                   // one goes through owed at a time; before mu
	owing  chan struct{}                // a token: there is something in owed

	held map[meta.Ino][]heldLock // by owners of this mount; guarded by mu
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

// heldLock says that an owner of this mount has locks of a file, and in which session it got the first of them. When that session is over, they are
// gone, and the owner does not know it.
type heldLock struct {
	class         advisory.Class
	owner, handle uint64
	session       uint64
}

// errLocksLost is what is wrong with a write to a file of which a program of this mount thinks that it has a lock, after the session in which it got it has ended:
// others may have had the lock since. The program has to give the lock back, or close the file, and begin again.
var errLocksLost = errors.New("a lock of this file was lost while this node was away: until its owner gives it back or closes the file, nothing is written")

// errOldSession is why a lock is asked for once more: the session in which it was asked for has ended.
var errOldSession = errors.New("the mount's session ended meanwhile")

func (w *lockWaits) hold(ino meta.Ino, l heldLock) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.ContainsFunc(w.held[ino], func(h heldLock) bool { return h.class == l.class && h.owner == l.owner && h.handle == l.handle }) {
		w.held[ino] = append(w.held[ino], l)
	}
}

func (w *lockWaits) letGo(ino meta.Ino, gone func(heldLock) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rest := slices.DeleteFunc(w.held[ino], gone); len(rest) > 0 {
		w.held[ino] = rest
	} else {
		delete(w.held, ino)
	}
}

// lost tells whether somebody has a lock of a file from another session than this one.
func (w *lockWaits) lost(ino meta.Ino, session uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.held[ino], func(h heldLock) bool { return h.session != session })
}

// mayPropose refuses what must not be done in a session.
func (n *node) mayPropose(c command.Command, session uint64) error {
	var ino meta.Ino
	switch c := c.(type) {
	case *command.Lock:
		if c.Session != session {
			return errors.Join(syscall.EIO, errOldSession)
		}
		return nil
	case *command.Write:
		ino = c.Ino
	case *command.Fill:
		ino = c.Ino
	case *command.Fallocate:
		ino = c.Ino
	case *command.Share:
		ino = c.Dst
	case *command.SetAttr:
		if c.Set&command.SetSize == 0 {
			return nil
		}
		ino = c.Ino
	default:
		return nil
	}
	if n.locks.lost(ino, session) {
		return errors.Join(syscall.EIO, errLocksLost)
	}
	return nil
}

// owe notes a lock that has to be given back when the cluster answers again. A program that has closed its file, or was told that it did
// not get the lock, does not come back for it.
func (w *lockWaits) owe(c *command.Lock) {
	w.mu.Lock()
	w.owed[c.Ino] = append(w.owed[c.Ino], c)
	w.mu.Unlock()
	poke(w.owing)
}

// owes returns the inodes of which locks have to be given back, firstOwed what comes first for one of them, and paid says that it is done.
func (w *lockWaits) owes() (inos []meta.Ino) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ino := range w.owed {
		inos = append(inos, ino)
	}
	return inos
}

func (w *lockWaits) firstOwed(ino meta.Ino) *command.Lock {
	w.mu.Lock()
	defer w.mu.Unlock()
	if list := w.owed[ino]; len(list) > 0 {
		return list[0]
	}
	return nil
}

func (w *lockWaits) paid(ino meta.Ino) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if list := w.owed[ino]; len(list) > 1 {
		w.owed[ino] = list[1:]
	} else {
		delete(w.owed, ino)
	}
}

// payLocks gives back what this mount owes of a file's locks. Nothing may be taken before: its owner may have the number of an earlier one.
func (n *node) payLocks(ctx context.Context, ino meta.Ino) error {
	if n.locks.firstOwed(ino) == nil {
		return nil
	}
	n.locks.paying.Lock()
	defer n.locks.paying.Unlock()
	for {
		c := n.locks.firstOwed(ino)
		if c == nil {
			return nil
		}
		// Those of a session that has ended went with it, those of a file that is gone too.
		if c.Session == n.session.Load().id {
			if _, err := n.v.propose(ctx, c); err != nil && !errors.Is(err, syscall.ESTALE) && !errors.Is(err, errOldSession) {
				return err
			}
		}
		n.locks.paid(ino)
	}
}

// payLocksLater gives back what is owed as soon as the cluster answers.
func (n *node) payLocksLater(stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	var ending sync.WaitGroup
	ending.Go(func() { <-stop; cancel() }) // the end does not wait for a cluster that does not answer
	defer ending.Wait()
	for {
		select {
		case <-stop:
			return
		case <-n.locks.owing:
		}
		for _, ino := range n.locks.owes() {
			if err := n.payLocks(ctx, ino); err != nil && n.removed() == nil {
				n.v.log.WithError(err).WithField("ino", uint64(ino)).Warn("locks cannot be given back yet: tried again soon")
				poke(n.locks.owing)
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(lockRetry):
		}
	}
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
	if err := v.node.payLocks(ctx, ino); err != nil {
		return err
	}
	for {
		again := v.node.locks.add(ino)
		c := v.node.lockCommand(ino, command.LockTake, class, want)
		res, err := v.propose(ctx, c)
		if errors.Is(err, errOldSession) {
			v.node.locks.remove(ino, again)
			continue
		}
		if err != nil || !res.Refused {
			v.node.locks.remove(ino, again)
			if err == nil {
				v.node.locks.hold(ino, heldLock{class, want.Owner.ID, want.Handle, c.Session})
				v.node.kernel.catchUp(v, ino)
			}
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
	if v.node != nil {
		v.node.locks.letGo(ino, func(h heldLock) bool { return h.class == advisory.POSIX && h.owner == owner })
	}
	return v.unlock(ctx, ino, command.LockOwner, advisory.POSIX, advisory.Lock{Owner: advisory.Owner{ID: owner}})
}

// UnlockHandle implements fs.SharedLocker.
func (v *Volume) UnlockHandle(ctx context.Context, ino meta.Ino, handle uint64) error {
	if v.node != nil {
		v.node.locks.letGo(ino, func(h heldLock) bool { return h.handle == handle })
	}
	return v.unlock(ctx, ino, command.LockHandle, advisory.POSIX, advisory.Lock{Handle: handle})
}

func (v *Volume) unlock(ctx context.Context, ino meta.Ino, act command.LockAct, class advisory.Class, l advisory.Lock) error {
	if v.node == nil {
		return nil
	}
	c := v.node.lockCommand(ino, act, class, l)
	_, err := v.propose(ctx, c)
	if errors.Is(err, syscall.ESTALE) || errors.Is(err, errOldSession) {
		err = nil // the file or the session is gone, and its locks with it
	}
	if err != nil {
		v.node.locks.owe(c)
	}
	return err
}

// LocksGone implements fs.SharedLocker.
func (v *Volume) LocksGone(ino meta.Ino, class advisory.Class, owner advisory.Owner) {
	if v.node != nil {
		v.node.locks.letGo(ino, func(h heldLock) bool { return h.class == class && h.owner == owner.ID })
	}
}

// ForgetLock implements fs.SharedLocker.
func (v *Volume) ForgetLock(ino meta.Ino, class advisory.Class, what advisory.Lock) {
	if v.node != nil {
		v.node.locks.owe(v.node.lockCommand(ino, command.LockUnlock, class, what))
	}
}
