package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/vde/meta"
)

// toldKernel notes what a kernel is told. A name waits until its directory is unlocked.
type toldKernel struct {
	mu     sync.Mutex
	told   []string
	locked chan struct{} // nil: no directory is locked
}

func (k *toldKernel) note(format string, args ...any) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = append(k.told, fmt.Sprintf(format, args...))
	return nil
}

func (k *toldKernel) has(what string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.told {
		if t == what {
			return true
		}
	}
	return false
}

func (k *toldKernel) InvalidateInode(ino meta.Ino) error { return k.note("inode %d", ino) }
func (k *toldKernel) InvalidateAttr(ino meta.Ino) error  { return k.note("attr %d", ino) }
func (k *toldKernel) InvalidateEntry(parent meta.Ino, name string) error {
	k.mu.Lock()
	locked := k.locked
	k.mu.Unlock()
	if locked != nil {
		<-locked
	}
	return k.note("entry %d/%s", parent, name)
}

// TestKernelQueue: what is flushed has been told; a locked directory holds up names only; what was lost is waited for.
func TestKernelQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &Volume{log: quiet()}
		q := newKernelQueue()
		k := &toldKernel{locked: make(chan struct{})}
		stop := make(chan struct{})
		var running sync.WaitGroup
		running.Go(func() { q.run(stop, v) })
		defer func() { close(stop); running.Wait() }()

		short := func() context.Context {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		}
		q.forget(5) // not mounted: nobody to be told
		if err := q.flush(short(), true); err != nil {
			t.Fatal(err)
		}
		q.kernel = k
		q.forget(6)
		q.mu.Lock()
		q.inodes.add(7, false)
		q.names.add(entryName{1, "d"}, false)
		q.mu.Unlock()
		if err := q.flush(short(), false); err != nil || k.has("inode 5") || !k.has("inode 6") || !k.has("attr 7") || k.has("entry 1/d") {
			t.Fatal(err, k.told)
		}
		if err := q.flush(short(), true); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v, and the directory is locked", err)
		}
		close(k.locked)
		if err := q.flush(short(), true); err != nil || !k.has("entry 1/d") {
			t.Fatal(err, k.told)
		}

		q.lose()
		began := time.Now()
		if err := q.flush(context.Background(), false); err != nil || time.Since(began) < fs.SharedTimeout {
			t.Fatalf("%v after %v: the kernel may hold what it was not told of", err, time.Since(began))
		}
	})

	full := newKernelQueue() // and nobody empties it
	full.kernel = &toldKernel{}
	for i := range meta.Ino(kernelQueueMax) {
		full.forget(100 + i)
	}
	full.forget(100)
	if !full.lost.IsZero() {
		t.Error("something is lost though there was room")
	}
	full.forget(1)
	if full.lost.IsZero() {
		t.Error("what has no room is not noted as lost")
	}
}

// TestOthersTold: who renames or removes a directory, or changes who may use it, returns when the kernels of the other mounts have been
// told, waits for one that does not answer no longer than its kernel holds anything, and for that not twice.
func TestOthersTold(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := newTestCluster(t, 3, 4*time.Second)
	kernels := map[int]*toldKernel{2: {}, 3: {}}
	for id, k := range kernels {
		c.v(id).AttachKernel(k)
	}
	v := c.v(1)
	mkdir := func(name string) meta.Ino {
		t.Helper()
		in, err := v.Make(ctx, fs.NewNode{Parent: meta.RootIno, Name: name, Mode: unix.S_IFDIR | 0o755})
		if err != nil {
			t.Fatal(err)
		}
		return in.Ino
	}
	for i := range 20 {
		name := fmt.Sprint("d", i)
		ino := mkdir(name)
		mode := uint32(0o700)
		if _, err := v.SetAttr(ctx, ino, fs.SetAttr{Mode: &mode}); err != nil {
			t.Fatal(err)
		}
		for id, k := range kernels {
			if !k.has(fmt.Sprintf("attr %d", ino)) {
				t.Fatalf("chmod: kernel %d was not told: %v", id, k.told)
			}
		}
		if err := v.Rename(ctx, meta.RootIno, name, meta.RootIno, name+"r", 0); err != nil {
			t.Fatal(err)
		}
		for id, k := range kernels {
			if !k.has(fmt.Sprintf("entry %d/%s", meta.RootIno, name)) || !k.has(fmt.Sprintf("entry %d/%sr", meta.RootIno, name)) {
				t.Fatalf("rename: kernel %d was not told: %v", id, k.told)
			}
			k.mu.Lock()
			k.told = nil
			k.mu.Unlock()
		}
		if _, err := v.Rmdir(ctx, meta.RootIno, name+"r"); err != nil {
			t.Fatal(err)
		}
		for id, k := range kernels {
			if !k.has(fmt.Sprintf("attr %d", ino)) {
				t.Fatalf("rmdir: kernel %d was not told: %v", id, k.told)
			}
		}
	}

	// One whose kernel cannot be told in time, as it has the directory locked.
	kernels[2].mu.Lock()
	kernels[2].locked = make(chan struct{})
	kernels[2].mu.Unlock()
	mkdir("x")
	took := func(f func() error) time.Duration {
		t.Helper()
		began := time.Now()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	rename := func() error { return v.Rename(ctx, meta.RootIno, "x", meta.RootIno, "y", 0) }
	if d := took(rename); d < fs.SharedTimeout || d > 10*time.Second {
		t.Fatalf("a rename that another kernel was not told of returned after %v", d)
	}
	close(kernels[2].locked)

	// One that is gone is waited for, until it is clear that it says nothing to anybody.
	c.down(3)
	rmdir := func(name string) func() error {
		mkdir(name)
		return func() error { _, err := v.Rmdir(ctx, meta.RootIno, name); return err }
	}
	if d := took(rmdir("a")); d < fs.SharedTimeout || d > 10*time.Second {
		t.Fatalf("removing a directory returned after %v with a mount that does not answer", d)
	}
	for i := 0; took(rmdir(fmt.Sprint("b", i))) > fs.SharedTimeout; i++ {
		if i == 10 {
			t.Fatal("each removal waits for a mount that is gone")
		}
	}
}
