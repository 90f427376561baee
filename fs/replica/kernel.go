package replica

import (
	"sync"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde/meta"
)

// kernelQueue passes on to the kernel what other mounts have changed. It is filled while commands are applied, where nobody
// may wait for the kernel, and emptied by one goroutine.
type kernelQueue struct {
	mu     sync.Mutex
	kernel fs.Kernel         // guarded by mu; nil: not mounted
	inodes map[meta.Ino]bool // true: contents too; guarded by mu
	wake   chan struct{}
}

// kernelQueueMax bounds what waits. Beyond, pushes are dropped: they are a courtesy to open files, paths are looked up anew
// whatever happens.
const kernelQueueMax = 1 << 16

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
	case *command.Rename:
		inodes = append(inodes, c.OldParent, c.NewParent)
	case *command.SetXattr:
		inodes = append(inodes, c.Ino)
	case *command.RemoveXattr:
		inodes = append(inodes, c.Ino)
	default:
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kernel == nil || len(q.inodes) >= kernelQueueMax {
		return
	}
	if q.inodes == nil {
		q.inodes = map[meta.Ino]bool{}
	}
	for _, ino := range inodes {
		if ino != 0 {
			q.inodes[ino] = q.inodes[ino] || contents && ino == res.Inode.Ino
		}
	}
	poke(q.wake)
}

// forget has the kernel forget the contents of a file that this mount could not write.
func (q *kernelQueue) forget(ino meta.Ino) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kernel == nil {
		return
	}
	if q.inodes == nil {
		q.inodes = map[meta.Ino]bool{}
	}
	q.inodes[ino] = true
	poke(q.wake)
}

// run tells the kernel until stop is closed.
func (q *kernelQueue) run(stop <-chan struct{}, v *Volume) {
	for {
		select {
		case <-stop:
			return
		case <-q.wake:
		}
		q.mu.Lock()
		inodes, kernel := q.inodes, q.kernel
		q.inodes = nil
		q.mu.Unlock()
		if kernel == nil {
			continue
		}
		for ino, contents := range inodes {
			tell := kernel.InvalidateAttr
			if contents {
				tell = kernel.InvalidateInode
			}
			if err := tell(ino); err != nil {
				v.log.WithError(err).Debug("the kernel could not be told of a change by another mount")
			}
		}
	}
}
