package recode

import (
	"bytes"
	"context"
	"image"
	"image/png"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"vdefs/fs/command"
	ours "vdefs/media/png"
	"vdefs/vde/meta"
)

// volume is one directory of files in memory: the part of a volume that a Recoder asks.
type volume struct {
	mu      sync.Mutex
	inodes  map[meta.Ino]meta.Inode
	data    map[meta.Ino][]byte
	names   map[string]meta.Ino
	swapped map[meta.Ino]int
	onRead  func(ino meta.Ino, n int) // called with mu not held
}

func newVolume() *volume {
	return &volume{
		inodes: map[meta.Ino]meta.Inode{meta.RootIno: {Ino: meta.RootIno, Parent: meta.RootIno, Mode: 0o40755}},
		data:   map[meta.Ino][]byte{}, names: map[string]meta.Ino{}, swapped: map[meta.Ino]int{},
	}
}

func (v *volume) add(name string, data []byte) meta.Inode {
	v.mu.Lock()
	defer v.mu.Unlock()
	ino := meta.RootIno + meta.Ino(len(v.inodes))
	in := meta.Inode{Ino: ino, Parent: meta.RootIno, Mode: 0o100644, Nlink: 1, Size: uint64(len(data)), Version: 1}
	v.inodes[ino], v.data[ino], v.names[name] = in, data, ino
	return in
}

// touch changes a file without changing its contents.
func (v *volume) touch(ino meta.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	in := v.inodes[ino]
	in.Version++
	v.inodes[ino] = in
}

func (v *volume) Inode(_ context.Context, ino meta.Ino) (meta.Inode, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.inodes[ino], nil
}

func (v *volume) Read(_ context.Context, ino meta.Ino, off uint64, dst []byte) (int, error) {
	v.mu.Lock()
	n := copy(dst, v.data[ino][off:])
	v.mu.Unlock()
	if v.onRead != nil {
		v.onRead(ino, n)
	}
	return n, nil
}

func (v *volume) Xattr(context.Context, *meta.Inode, string) ([]byte, error) { return nil, nil }
func (v *volume) RemoveXattr(context.Context, meta.Ino, string) error        { return nil }
func (v *volume) Entry(_ context.Context, _ meta.Ino, name string) (meta.Ino, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.names[name], nil
}

func (v *volume) Swap(_ context.Context, c *command.Replace, begin func(), applied func(meta.Inode)) error {
	begin()
	v.mu.Lock()
	in := v.inodes[c.Ino]
	if in.Version != c.Version {
		v.mu.Unlock()
		return ErrChanged
	}
	in.Version++
	in.Size = uint64(len(c.Data))
	v.inodes[c.Ino], v.data[c.Ino] = in, c.Data
	v.swapped[c.Ino]++
	v.mu.Unlock()
	applied(in)
	return nil
}

func (v *volume) swaps(ino meta.Ino) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.swapped[ino]
}

type nobody struct{}

func (nobody) BeginChange(meta.Ino, time.Duration)  {}
func (nobody) Changed(meta.Ino, uint64)             {}
func (nobody) EndChange(meta.Ino, meta.Ino, string) {}

func started(t *testing.T, v *volume, o Options) *Recoder {
	t.Helper()
	logger := logrus.New()
	logger.SetOutput(t.Output())
	o.Logger, o.Delay = logger, time.Millisecond
	r := New(v, o)
	r.Attach(nobody{})
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		r.Run(stop)
		close(ended)
	}()
	t.Cleanup(func() {
		close(stop)
		<-ended
	})
	return r
}

func soon(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 seconds: %s", what)
		}
	}
}

// gray is an uncompressed picture of one colour, of about width times height bytes.
func gray(t *testing.T, width, height int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(&b, image.NewGray(image.Rect(0, 0, width, height))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestMemoryIsShared: who encodes holds what its picture needs, and waits while others hold it; a picture that needs more
// than there is stays.
func TestMemoryIsShared(t *testing.T) {
	t.Parallel()
	v := newVolume()
	const budget = 40 << 20
	r := started(t, v, Options{Mode: Async, Workers: 2, Memory: budget})
	if limit := r.Stats().MemoryLimit; limit != budget {
		t.Errorf("the limit is %d, want %d", limit, budget)
	}
	small, fits, huge := gray(t, 10, 10), gray(t, 1000, 3000), gray(t, 1000, 8000)
	need := func(data []byte) int64 { return ours.Needs(data, int64(len(data))) }
	if need(fits) > budget || 2*need(fits) <= budget || need(huge) <= budget {
		t.Fatalf("the pictures do not fit the test: they need %d and %d of %d", need(fits), need(huge), budget)
	}
	if !r.memory.TryAcquire(budget - need(small)) {
		t.Fatal("memory is held before anything is done")
	}
	var read sync.Map // files whose contents were read
	v.onRead = func(ino meta.Ino, n int) {
		if n > 64 {
			read.Store(ino, true)
		}
	}
	queue := func(name string, data []byte) meta.Ino {
		in := v.add(name, data)
		r.Renamed(meta.RootIno, name, &in)
		return in.Ino
	}
	first := queue("small.png", small)
	soon(t, "what fits beside the others is not done", func() bool { return v.swaps(first) == 1 })
	second := queue("fits.png", fits)
	time.Sleep(50 * time.Millisecond)
	if _, ok := read.Load(second); ok {
		t.Error("a picture was read for which there was no memory")
	}
	r.memory.Release(budget - need(small))
	soon(t, "the picture is not done when there is memory", func() bool { return v.swaps(second) == 1 })

	third := queue("huge.png", huge)
	soon(t, "the picture that is too large was not looked at", func() bool { return r.Stats().Skipped[string(ours.ReasonTooLarge)] == 1 })
	if v.swaps(third) != 0 {
		t.Error("a picture that needs more memory than there is was done")
	}
	soon(t, "memory stays held", func() bool {
		ok := r.memory.TryAcquire(budget)
		if ok {
			r.memory.Release(budget)
		}
		return ok
	})
}

// TestLeastMemory: a budget that no picture fits into is raised to one for small ones.
func TestLeastMemory(t *testing.T) {
	t.Parallel()
	v := newVolume()
	r := started(t, v, Options{Mode: Async, Memory: 1})
	in := v.add("a.png", gray(t, 100, 100))
	r.Renamed(meta.RootIno, "a.png", &in)
	soon(t, "it is not done", func() bool { return v.swaps(in.Ino) == 1 })
}

// TestTouchedMeanwhile: a file that is changed between two looks at it, in its times for example, is looked at again by itself.
func TestTouchedMeanwhile(t *testing.T) {
	t.Parallel()
	v := newVolume()
	r := started(t, v, Options{Mode: Async})
	touches := 3
	v.onRead = func(ino meta.Ino, n int) {
		if n > 64 && touches > 0 { // one file: one worker at a time
			touches--
			v.touch(ino)
		}
	}
	in := v.add("a.png", gray(t, 100, 100))
	r.Renamed(meta.RootIno, "a.png", &in)
	soon(t, "it is not done", func() bool { return v.swaps(in.Ino) == 1 })
	if n := r.Stats().Skipped[skipChanged]; n != 3 {
		t.Errorf("found changed %d times, want 3", n)
	}
}
