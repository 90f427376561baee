package replica

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/advisory"
	"vdefs/vde/meta"
)

// slowKernel takes its time to forget an inode, and notes which ones it has forgotten the contents of.
type slowKernel struct {
	fs.Kernel
	slow meta.Ino
	stop chan struct{} // closed: it is slow no more
	mu   sync.Mutex
	gone map[meta.Ino]int
}

func (k *slowKernel) InvalidateAttr(meta.Ino) error { return nil }

func (k *slowKernel) InvalidateInode(ino meta.Ino) error {
	if ino == k.slow {
		<-k.stop
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone[ino]++
	return nil
}

func (k *slowKernel) forgotten(ino meta.Ino) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.gone[ino]
}

// Who has got a lock reads what was written under it before: by then the kernel has forgotten the older contents, however much else it is being told.
func TestLockForgetsOldContents(t *testing.T) {
	c := newTestCluster(t, 2, time.Minute)
	ctx := context.Background()
	one, two := c.v(1), c.v(2)
	create := func(name string) meta.Ino {
		in, err := one.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: name, Mode: unix.S_IFREG | 0o644})
		if err != nil {
			t.Fatal(err)
		}
		return in.Ino
	}
	file, other := create("file"), create("other")
	kernel := &slowKernel{slow: other, stop: make(chan struct{}), gone: map[meta.Ino]int{}}
	two.AttachKernel(kernel)
	defer close(kernel.stop)
	write := func(ino meta.Ino) {
		if _, err := one.Write(ctx, ino, 0, []byte("new"), 0); err != nil {
			t.Fatal(err)
		}
		if err := one.Sync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	lock := advisory.Lock{End: 1<<63 - 1, Owner: advisory.Owner{ID: 1}, Handle: 1, Exclusive: true}
	if err := one.TakeLock(ctx, nil, file, advisory.Flock, lock, false); err != nil {
		t.Fatal(err)
	}
	write(other)
	c.eventually("the other file", func() error {
		if in, err := two.Inode(ctx, other); err != nil || in.Size == 0 {
			return errors.Join(err, errors.New("not written yet"))
		}
		return nil
	})
	got := make(chan error, 1)
	go func() { got <- two.TakeLock(ctx, nil, file, advisory.Flock, lock, true) }()
	time.Sleep(100 * time.Millisecond)
	write(file)
	if err := one.Unlock(ctx, file, advisory.Flock, lock); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if kernel.forgotten(file) == 0 {
		t.Error("the lock was given while the kernel still had the contents from before")
	}
	if err := two.TakeLock(ctx, nil, file, advisory.Flock, lock, false); err != nil && !errors.Is(err, syscall.EAGAIN) {
		t.Error(err)
	}
}
