package vde

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"vdefs/vde/alloc"
	"vdefs/vde/meta"
)

// testLog stands for the log that transactions come from: it is durable when SyncAll says so.
type testLog struct {
	e    *Engine
	slot uint16
	mu   sync.Mutex // the order of the group
	n    uint64     // index of the last entry; guarded by mu
}

func (l *testLog) SyncAll() error {
	for _, slot := range l.e.Groups() {
		if g, ok := l.e.Group(slot); ok {
			l.e.LogDurable(slot, g.Applied)
		}
	}
	return nil
}

// logOf returns a log of another group of the engine.
func logOf(t testing.TB, e *Engine, slot uint16) *testLog {
	t.Helper()
	g, ok := e.Group(slot)
	if !ok {
		t.Fatalf("group %d is missing", slot)
	}
	return &testLog{e: e, slot: slot, n: g.Applied}
}

// apply runs a transaction in order, and its data outside of the order.
func (l *testLog) apply(change func(tx *Tx) error) error {
	l.mu.Lock()
	l.n++
	tx, err := l.e.Begin(l.slot, l.n, 1)
	if err != nil {
		l.mu.Unlock()
		return err
	}
	if err := change(tx); err != nil {
		derr := tx.Discard()
		l.mu.Unlock()
		if derr != nil {
			return derr
		}
		return err
	}
	err = tx.Commit()
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return tx.Rest()
}

func openTest(t testing.TB, f vfs.FS, size uint64) (*Engine, *testLog) {
	t.Helper()
	if _, err := Format("store", FormatOptions{Size: size, FS: f}); err != nil {
		t.Fatal(err)
	}
	return reopenTest(t, f)
}

func reopenTest(t testing.TB, f vfs.FS) (*Engine, *testLog) {
	t.Helper()
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	e, err := Open("store", OpenOptions{FS: f, Logger: quiet, CheckpointEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	g, _ := e.Group(0)
	l := &testLog{e: e, n: g.Applied}
	e.AttachLogs(l)
	return e, l
}

func newFile(t testing.TB, l *testLog) meta.Ino {
	t.Helper()
	var ino meta.Ino
	if err := l.apply(func(tx *Tx) error {
		in := tx.NewInode()
		in.Mode, in.Nlink = unix.S_IFREG|0o644, 1
		ino = in.Ino
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return ino
}

// change applies a change of one file.
func change(l *testLog, ino meta.Ino, do func(tx *Tx, in *meta.Inode) error) error {
	return l.apply(func(tx *Tx) error {
		in, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		if err := do(tx, in); err != nil {
			return err
		}
		tx.SetInode(in)
		return nil
	})
}

// checkMapping verifies what must hold of all extents together: inside the data, used in the allocator, and mapped as
// often as the reference counts say.
func checkMapping(e *Engine) error {
	count := map[uint64]uint64{}
	err := e.meta.AllExtents(func(ino meta.Ino, x meta.Extent) (bool, error) {
		for b := x.Phys; b < x.Phys+x.Count; b++ {
			count[b]++
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for b, n := range count {
		refs := uint64(1)
		e.refs.mu.RLock()
		for _, r := range e.refs.overlappingLocked(b, 1) {
			refs = r.Refs
		}
		e.refs.mu.RUnlock()
		if refs != n {
			return fmt.Errorf("block %d is mapped %d times, its count is %d", b, n, refs)
		}
	}
	var free alloc.Extent
	e.alloc.FreeExtents(func(x alloc.Extent) bool {
		for b := range count {
			if b >= x.Start && b < x.Start+x.Count {
				free = x
				return false
			}
		}
		return true
	})
	if free.Count > 0 {
		return fmt.Errorf("free extent %v is mapped", free)
	}
	if total, avail := e.Usage(); total-avail != uint64(len(count)) {
		return fmt.Errorf("%d blocks are mapped, %d of %d are used", len(count), total-avail, total)
	}
	return e.alloc.Check()
}

// TestFilesAgainstModel compares files with byte slices under random changes, checkpoints and restarts.
func TestFilesAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := vfs.NewMem()
		e, l := openTest(t, mem, 2<<20)
		defer func() {
			if err := e.Close(); err != nil {
				rt.Fatal(err)
			}
		}()
		inos := []meta.Ino{newFile(t, l), newFile(t, l)}
		models := make([][]byte, len(inos))
		const maxSize = 96 << 10
		grow := func(m []byte, size uint64) []byte {
			if uint64(len(m)) < size {
				m = append(m, make([]byte, size-uint64(len(m)))...)
			}
			return m
		}
		offset := func(label string) uint64 {
			off := rapid.Uint64Range(0, maxSize).Draw(rt, label)
			if rapid.Bool().Draw(rt, "aligned") {
				off &^= blockSize - 1
			}
			return off
		}
		must := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(rt, "file")
				off, n := offset("off"), rapid.IntRange(1, 20<<10).Draw(rt, "n")
				data := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "fill")}, n)
				must(change(l, inos[i], func(tx *Tx, in *meta.Inode) error { return tx.WriteData(in, off, data) }))
				models[i] = grow(models[i], off+uint64(n))
				copy(models[i][off:], data)
			},
			"reference": func(rt *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(rt, "file")
				off := offset("off") &^ (blockSize - 1)
				data := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "fill")}, rapid.IntRange(1, 6).Draw(rt, "blocks")*blockSize)
				x, _, err := e.PrepareWrite(inos[i], off/blockSize, data)
				must(err)
				end := off + uint64(len(data))
				must(change(l, inos[i], func(tx *Tx, in *meta.Inode) error { return tx.MapWritten(in, off/blockSize, x, end) }))
				models[i] = grow(models[i], end)
				copy(models[i][off:], data)
			},
			"truncate": func(rt *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(rt, "file")
				size := offset("size")
				must(change(l, inos[i], func(tx *Tx, in *meta.Inode) error { return tx.Truncate(in, size) }))
				models[i] = grow(models[i], size)[:size]
			},
			"zero": func(rt *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(rt, "file")
				off, n := offset("off"), rapid.Uint64Range(1, 20<<10).Draw(rt, "n")
				keep := rapid.Bool().Draw(rt, "keep")
				must(change(l, inos[i], func(tx *Tx, in *meta.Inode) error { return tx.zeroRange(in, off, off+n, keep) }))
				if off < uint64(len(models[i])) {
					clear(models[i][off:min(off+n, uint64(len(models[i])))])
				}
			},
			"preallocate": func(rt *rapid.T) {
				i := rapid.IntRange(0, 1).Draw(rt, "file")
				off, n := offset("off"), rapid.Uint64Range(1, 20<<10).Draw(rt, "n")
				must(change(l, inos[i], func(tx *Tx, in *meta.Inode) error { return tx.Preallocate(in, off, off+n) }))
			},
			"share": func(rt *rapid.T) {
				i, j := rapid.IntRange(0, 1).Draw(rt, "src"), rapid.IntRange(0, 1).Draw(rt, "dst")
				from, to := rapid.Uint64Range(0, 20).Draw(rt, "from"), rapid.Uint64Range(0, 20).Draw(rt, "to")
				n := min(rapid.Uint64Range(1, 8).Draw(rt, "n"), uint64(len(models[i]))/blockSize-min(from, uint64(len(models[i]))/blockSize))
				if n == 0 || i == j && from < to+n && to < from+n {
					return
				}
				must(l.apply(func(tx *Tx) error {
					src, err := tx.Inode(inos[i])
					if err != nil {
						return err
					}
					dst, err := tx.Inode(inos[j])
					if err != nil {
						return err
					}
					dst.Size = max(dst.Size, (to+n)*blockSize)
					tx.SetInode(dst)
					return tx.Share(src, from, dst, to, n)
				}))
				models[j] = grow(models[j], (to+n)*blockSize)
				copy(models[j][to*blockSize:], bytes.Clone(models[i][from*blockSize:(from+n)*blockSize]))
			},
			"checkpoint": func(*rapid.T) { must(e.Checkpoint()) },
			"durable":    func(*rapid.T) { must(l.SyncAll()) },
			"reopen": func(*rapid.T) {
				must(e.Close())
				e, l = reopenTest(t, mem)
			},
			"": func(rt *rapid.T) {
				for i, ino := range inos {
					in, err := e.meta.Inode(ino)
					must(err)
					if in.Size != uint64(len(models[i])) {
						rt.Fatalf("file %d has size %d, the model %d", i, in.Size, len(models[i]))
					}
					got := make([]byte, len(models[i])+10)
					n, err := e.Read(context.Background(), ino, 0, got)
					must(err)
					if !bytes.Equal(got[:n], models[i]) {
						rt.Fatalf("file %d differs from the model", i)
					}
				}
				must(checkMapping(e))
			},
		})
	})
}

// slowFS makes every write of the image take a time, as a device with latency does.
type slowFS struct {
	vfs.FS
	delay time.Duration
}

type slowFile struct {
	vfs.File
	delay time.Duration
}

func (f slowFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	if err != nil || f.PathBase(name) != imageName {
		return file, err
	}
	return slowFile{file, f.delay}, nil
}

func (f slowFile) WriteAt(p []byte, off int64) (int, error) {
	if len(p) >= blockSize { // a block; its checksum goes to a cached page
		time.Sleep(f.delay)
	}
	return f.File.WriteAt(p, off)
}

// BenchmarkWriters shows that writes to disjoint ranges of one file are applied in parallel, and writes to one block
// one after the other: the device takes 1 ms for every write.
func BenchmarkWriters(b *testing.B) {
	for _, c := range []struct {
		name    string
		writers int
		same    bool
	}{{"1", 1, false}, {"8-disjoint", 8, false}, {"8-one-block", 8, true}} {
		b.Run(c.name, func(b *testing.B) {
			e, l := openTest(b, slowFS{vfs.NewMem(), time.Millisecond}, 64<<20)
			defer e.Close()
			ino := newFile(b, l)
			data := bytes.Repeat([]byte{1}, blockSize)
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range c.writers {
				wg.Go(func() {
					for i := range b.N / c.writers {
						block := uint64(w*1000 + i%1000)
						if c.same {
							block = 0
						}
						err := change(l, ino, func(tx *Tx, in *meta.Inode) error {
							// A hole each time: the write goes to the device at once.
							return tx.WriteData(in, block*blockSize, data)
						})
						if err == nil {
							err = change(l, ino, func(tx *Tx, in *meta.Inode) error { return tx.Unmap(in, block, block+1) })
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
		})
	}
}

// TestParallelWriters has writers and readers on disjoint and on common ranges of one file; run with -race. Every block
// must hold one writer's bytes, whole.
func TestParallelWriters(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 16<<20)
	defer e.Close()
	ino := newFile(t, l)
	const blocks = 32
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 0))
			for range 200 {
				b := rng.Uint64N(blocks)
				data := bytes.Repeat([]byte{byte(w + 1)}, blockSize)
				if err := change(l, ino, func(tx *Tx, in *meta.Inode) error { return tx.WriteData(in, b*blockSize, data) }); err != nil {
					t.Error(err)
					return
				}
				if rng.IntN(20) == 0 {
					if err := e.Checkpoint(); err != nil {
						t.Error(err)
					}
				}
				buf := make([]byte, blockSize)
				b = rng.Uint64N(blocks)
				n, err := e.Read(context.Background(), ino, b*blockSize, buf)
				if err != nil {
					t.Error(err)
				}
				for i := range n {
					if buf[i] != buf[0] {
						t.Errorf("block %d is torn: %d at 0, %d at %d", b, buf[0], buf[i], i)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if err := checkMapping(e); err != nil {
		t.Fatal(err)
	}
}
