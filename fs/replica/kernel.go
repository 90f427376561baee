package replica

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde/meta"
)

// kernelQueue passes on to the kernel what other mounts have changed. It is filled while commands are applied, where nobody
// may wait for the kernel, and emptied by two goroutines: telling of a name waits while the kernel has its directory locked, for as long as
// a request of this mount in it takes, and telling of an inode does not.
type kernelQueue struct {
	mu     sync.Mutex
	kernel fs.Kernel         // guarded by mu; nil: not mounted
	inodes pushes[meta.Ino]  // with true: contents too
	names  pushes[entryName] // of directories: other names are looked up at every walk of a path
	lost   time.Time         // when the kernel was last not told of something; guarded by mu
}

// entryName is a name in a directory.
type entryName struct {
	parent meta.Ino
	name   string
}

// pushes are what the kernel is to be told of, guarded by kernelQueue.mu.
type pushes[K comparable] struct {
	waiting  map[K]bool
	telling  map[K]bool    // what was taken out of waiting and may not have been told of yet
	put      uint64        // how many were put in, since the start
	told     uint64        // so many of them are done with
	progress chan struct{} // closed when told grows
	wake     chan struct{} // a token: something waits
}

func newPushes[K comparable]() pushes[K] {
	return pushes[K]{waiting: map[K]bool{}, progress: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// add notes something; false: there is no room for it.
func (p *pushes[K]) add(k K, more bool) bool {
	if _, there := p.waiting[k]; !there && len(p.waiting) >= kernelQueueMax {
		return false
	}
	p.put++
	p.waiting[k] = p.waiting[k] || more
	poke(p.wake)
	return true
}

// kernelQueueMax bounds what waits. Beyond, pushes are dropped: what the kernel holds of it is good for a second.
const kernelQueueMax = 1 << 16

func newKernelQueue() kernelQueue {
	return kernelQueue{inodes: newPushes[meta.Ino](), names: newPushes[entryName]()}
}

// AttachKernel implements fs.SharedVolume.
func (v *Volume) AttachKernel(k fs.Kernel) {
	if v.node == nil {
		return
	}
	q := &v.node.kernel
	q.mu.Lock()
	defer q.mu.Unlock()
	q.kernel = k
}

// changed notes what a command of another mount has changed.
func (q *kernelQueue) changed(c command.Command, res *posix.Result) {
	contents := false
	inodes := []meta.Ino{res.Inode.Ino, res.Replaced.Ino}
	var names []entryName
	switch c := c.(type) {
	case *command.Write, *command.Fill, *command.Fallocate, *command.Share, *command.Replace:
		contents = true
	case *command.SetAttr:
		contents = c.Set&command.SetSize != 0
	case *command.Make:
		inodes = append(inodes, c.Parent)
	case *command.Link:
		inodes = append(inodes, c.Parent)
	case *command.Remove:
		inodes = append(inodes, c.Parent)
		if c.Dir {
			names = append(names, entryName{c.Parent, c.Name})
		}
	case *command.Rename:
		inodes = append(inodes, c.OldParent, c.NewParent)
		if isDir(&res.Inode) || isDir(&res.Replaced) {
			names = append(names, entryName{c.OldParent, c.OldName}, entryName{c.NewParent, c.NewName})
		}
	case *command.SetXattr:
		inodes = append(inodes, c.Ino)
	case *command.RemoveXattr:
		inodes = append(inodes, c.Ino)
	default:
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kernel == nil {
		return
	}
	for _, ino := range inodes {
		if ino != 0 && !q.inodes.add(ino, contents && ino == res.Inode.Ino) {
			q.lost = time.Now()
		}
	}
	for _, n := range names {
		if !q.names.add(n, false) {
			q.lost = time.Now()
		}
	}
}

func isDir(in *meta.Inode) bool { return in.Mode&unix.S_IFMT == unix.S_IFDIR }

// forget has the kernel forget the contents of a file that this mount could not write.
func (q *kernelQueue) forget(ino meta.Ino) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kernel != nil && !q.inodes.add(ino, true) {
		q.lost = time.Now()
	}
}

// lose notes that things have changed of which nobody can say what.
func (q *kernelQueue) lose() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lost = time.Now()
}

// run tells the kernel until stop is closed.
func (q *kernelQueue) run(stop <-chan struct{}, v *Volume) {
	var other sync.WaitGroup
	defer other.Wait()
	other.Go(func() {
		tell(q, &q.names, stop, nameDelay, v, func(k fs.Kernel, e entryName, _ bool) error { return k.InvalidateEntry(e.parent, e.name) })
	})
	tell(q, &q.inodes, stop, 0, v, tellInode)
}

func tellInode(k fs.Kernel, ino meta.Ino, contents bool) error {
	if contents {
		return k.InvalidateInode(ino)
	}
	return k.InvalidateAttr(ino)
}

// catchUp returns when the kernel has been told of what other mounts have changed of an inode, as far as this node has applied it: who has
// taken a lock is to see what was written under it before. It is called from within a request, which it may be, as one for a lock holds nothing in the kernel
// that others wait for. Unlike flush it does not wait for what the kernel is told of other inodes.
func (q *kernelQueue) catchUp(v *Volume, ino meta.Ino) {
	q.mu.Lock()
	contents, changed := q.inodes.waiting[ino]
	before, underWay := q.inodes.telling[ino]
	kernel := q.kernel
	q.mu.Unlock()
	if kernel == nil || !changed && !underWay {
		return
	}
	if err := tellInode(kernel, ino, contents || before); err != nil {
		v.log.WithError(err).Debug("the kernel could not be told of a change by another mount")
	}
}

// nameDelay is how long the kernel is not told of a name that has changed: answers that were made before, and that the kernel would keep, are
// on their way to it. (For attributes it takes care of that itself.)
const nameDelay = time.Millisecond

// tell empties p until stop is closed.
func tell[K comparable](q *kernelQueue, p *pushes[K], stop <-chan struct{}, delay time.Duration, v *Volume, one func(fs.Kernel, K, bool) error) {
	for {
		select {
		case <-stop:
			return
		case <-p.wake:
		}
		time.Sleep(delay)
		q.mu.Lock()
		waiting, upTo, kernel := p.waiting, p.put, q.kernel
		p.waiting, p.telling = map[K]bool{}, waiting
		q.mu.Unlock()
		for k, more := range waiting {
			if kernel == nil {
				break
			}
			if err := one(kernel, k, more); err != nil {
				v.log.WithError(err).Debug("the kernel could not be told of a change by another mount")
			}
		}
		q.mu.Lock()
		p.told, p.telling = upTo, nil
		close(p.progress)
		p.progress = make(chan struct{})
		q.mu.Unlock()
	}
}

// flush returns when the kernel has been told of everything that was noted before the call, or holds nothing of it any more.
func (q *kernelQueue) flush(ctx context.Context, names bool) error {
	if err := flush(ctx, q, &q.inodes); err != nil {
		return err
	}
	if names {
		if err := flush(ctx, q, &q.names); err != nil {
			return err
		}
	}
	q.mu.Lock()
	left := fs.SharedTimeout - time.Since(q.lost)
	q.mu.Unlock()
	if left <= 0 {
		return nil
	}
	select {
	case <-time.After(left):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func flush[K comparable](ctx context.Context, q *kernelQueue, p *pushes[K]) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for want := p.put; p.told < want; {
		progress := p.progress
		q.mu.Unlock()
		select {
		case <-progress:
		case <-ctx.Done():
		}
		q.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
