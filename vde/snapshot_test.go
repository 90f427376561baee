package vde

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/vde/alloc"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

var snapshotRuns = flag.Uint64("vde.snapshots", 4, "random groups that are sent to another store")

// engineWith opens a store of a size with a group, in memory.
func engineWith(t testing.TB, f vfs.FS, size uint64, slot uint16) (*Engine, *testLog) {
	t.Helper()
	e, l := openTest(t, f, size)
	if slot != 0 {
		if err := e.CreateGroup(slot); err != nil {
			t.Fatal(err)
		}
		l = logOf(t, e, slot)
	}
	return e, l
}

func applyAll(t testing.TB, l *testLog, ops []op) {
	t.Helper()
	for _, o := range ops {
		if err := l.apply(o.apply); err != nil {
			t.Fatalf("%v: %v", o, err)
		}
	}
}

// slowReader reads a stream in small pieces and does something else between them.
type slowReader struct {
	r       io.Reader
	n       int
	between func()
}

func (r slowReader) Read(p []byte) (int, error) {
	r.between()
	return r.r.Read(p[:min(len(p), r.n)])
}

// usedBlocks tells how many blocks the store uses, after what was freed has been given back.
func usedBlocks(t testing.TB, e *Engine) uint64 {
	t.Helper()
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	total, _ := e.Usage()
	return total - e.alloc.FreeBlocks()
}

// A snapshot that is read while the group goes on, and the log behind it, make the same group in another store; also
// when that store had another state of it.
func TestSnapshotAndLogMakeTheGroup(t *testing.T) {
	for seed := range *snapshotRuns {
		rng := rand.New(rand.NewPCG(seed, 3))
		slot := uint16(1 + 4*(seed%2))
		a, la := engineWith(t, vfs.NewMem(), 4<<20, slot)
		b, lb := engineWith(t, vfs.NewMem(), 6<<20, slot)
		ops := makeOps(rng, 120)
		at := 20 + rng.IntN(80)
		applyAll(t, la, ops[:at])
		applyAll(t, lb, makeOps(rng, rng.IntN(60)))
		if rng.IntN(2) == 0 {
			if err := la.SyncAll(); err != nil {
				t.Fatal(err)
			}
		}
		s, err := a.Snapshot(slot)
		if err != nil {
			t.Fatal(err)
		}
		before := digestOf(t, a, slot)
		quiet := seed%4 == 3
		rest := ops[at:]
		slow := slowReader{s, 1000 + rng.IntN(5000), func() {
			if quiet {
				return
			}
			if len(rest) > 0 {
				applyAll(t, la, rest[:1])
				rest = rest[1:]
			}
			if rng.IntN(4) == 0 {
				if err := a.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
		}}
		if err := b.Restore(slot, uint64(at), 5, slow); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if g, _ := b.Group(slot); g.Applied != uint64(at) || g.Term != 5 {
			t.Fatalf("the restored group is at %d, term %d", g.Applied, g.Term)
		}
		if quiet && digestOf(t, b, slot) != before {
			t.Fatalf("seed %d: the restored group differs", seed)
		}
		if err := checkMapping(b); err != nil {
			t.Fatalf("seed %d: restored: %v", seed, err)
		}
		lb.n = uint64(at)
		applyAll(t, la, rest)
		applyAll(t, lb, ops[at:])
		if digestOf(t, a, slot) != digestOf(t, b, slot) {
			t.Fatalf("seed %d: the groups differ after the log", seed)
		}
		da, err := a.DigestMeta(slot)
		if db, berr := b.DigestMeta(slot); err != nil || berr != nil || da != db {
			t.Fatalf("seed %d: metadata differs: %v, %v", seed, err, berr)
		}
		if err := checkMapping(b); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if ua, ub := usedBlocks(t, a), usedBlocks(t, b); ua != ub {
			t.Fatalf("seed %d: %d blocks are used, in the copy %d", seed, ua, ub)
		}
		if held, _ := a.holdBack.size(); held > 0 {
			t.Fatalf("%d blocks are still held back", held)
		}
		for _, e := range []*Engine{a, b} {
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// snapshotOf returns the whole stream of a group.
func snapshotOf(t testing.TB, e *Engine, slot uint16) []byte {
	t.Helper()
	s, err := e.Snapshot(slot)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// While a snapshot is open, what it maps is neither given out nor overwritten by others; afterwards it is.
func TestSnapshotHoldsBack(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 2<<20)
	defer e.Close()
	a, b := newFile(t, l), newFile(t, l)
	old := bytes.Repeat([]byte("old "), 3*blockSize/4)
	write(t, l, a, 0, old)
	share := func() error {
		return l.apply(func(tx *Tx) error {
			src, err := tx.Inode(a)
			if err != nil {
				return err
			}
			dst, err := tx.Inode(b)
			if err != nil {
				return err
			}
			dst.Size = 1 * blockSize
			tx.SetInode(dst)
			return tx.Share(src, 0, dst, 0, 1)
		})
	}
	if err := share(); err != nil {
		t.Fatal(err)
	}
	before := snapshotOf(t, e, 0)
	_, free := e.Usage()
	first, err := e.Snapshot(0)
	if err != nil {
		t.Fatal(err)
	}
	second, err := e.Snapshot(0)
	if err != nil {
		t.Fatal(err)
	}
	// a loses all; b alone has the block that was shared, and overwrites it.
	if err := change(l, a, func(tx *Tx, in *meta.Inode) error { return tx.Truncate(in, 0) }); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := e.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		write(t, l, b, 0, bytes.Repeat([]byte("new "), blockSize/4))
		if err := l.SyncAll(); err != nil {
			t.Fatal(err)
		}
	}
	held, _ := e.holdBack.size()
	if _, now := e.Usage(); held == 0 || now != free+2 {
		t.Errorf("%d blocks are held back, %d are free, before %d", held, now, free)
	}
	got, err := io.ReadAll(first)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, before) {
		t.Error("the snapshot has changed")
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	if held2, _ := e.holdBack.size(); held2 != held {
		t.Errorf("%d blocks are held back for the second snapshot, before %d", held2, held)
	}
	if _, err := io.ReadAll(second); err != nil { // all read is as good as closed
		t.Fatal(err)
	}
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if now, _ := e.holdBack.size(); now > 0 || e.alloc.FreeBlocks() < free {
		t.Errorf("%d blocks are still held back, %d are free", now, e.alloc.FreeBlocks())
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := checkMapping(e); err != nil {
		t.Error(err)
	}
}

// Snapshots of a group end when it is replaced, and when the engine is closed, whatever was read of them.
func TestSnapshotsEnd(t *testing.T) {
	e, l := engineWith(t, vfs.NewMem(), 4<<20, 3)
	applyAll(t, l, makeOps(rand.New(rand.NewPCG(1, 1)), 50))
	stream := snapshotOf(t, e, 3)
	replaced, err := e.Snapshot(3)
	if err != nil {
		t.Fatal(err)
	}
	other, err := e.Snapshot(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Snapshot(4); !errors.Is(err, ErrNoGroup) {
		t.Errorf("snapshot of a missing group: %v", err)
	}
	if _, err := replaced.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := e.Restore(3, 100, 2, bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(replaced); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reading a snapshot of the replaced group: %v", err)
	}
	if _, err := other.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(other); !errors.Is(err, ErrClosed) {
		t.Errorf("reading after Close: %v", err)
	}
	if _, err := e.Snapshot(0); err == nil {
		t.Error("a snapshot of a closed engine")
	}
	if err := errors.Join(other.Close(), replaced.Close()); err != nil {
		t.Error(err)
	}
}

// A block that is bad here is bad there, under its name, and all others are good; with the right contents it is mended.
func TestSnapshotOfABadBlock(t *testing.T) {
	for _, shared := range []bool{false, true} {
		a, l := openTest(t, vfs.NewMem(), 2<<20)
		ino := newFile(t, l)
		data := make([]byte, 5*blockSize)
		for i := range data {
			data[i] = byte(i / blockSize * 7)
		}
		write(t, l, ino, 0, data)
		if shared {
			twin := newFile(t, l)
			if err := l.apply(func(tx *Tx) error {
				src, err := tx.Inode(ino)
				if err != nil {
					return err
				}
				dst, err := tx.Inode(twin)
				if err != nil {
					return err
				}
				dst.Size = src.Size
				tx.SetInode(dst)
				return tx.Share(src, 0, dst, 0, 5)
			}); err != nil {
				t.Fatal(err)
			}
		}
		spoil(t, a, ino, 2)
		b, _ := openTest(t, vfs.NewMem(), 3<<20)
		if err := b.Restore(0, l.n, 1, bytes.NewReader(snapshotOf(t, a, 0))); err != nil {
			t.Fatal(err)
		}
		if a.ChecksumErrors() == 0 {
			t.Error("the bad block was not counted")
		}
		for _, e := range []*Engine{a, b} {
			buf := make([]byte, len(data))
			if _, err := e.Read(context.Background(), ino, 0, buf); !errors.Is(err, ErrBadBlock) || !strings.Contains(err.Error(), "offset 8192") {
				t.Errorf("read: %v", err)
			}
			for i := range 5 {
				if i == 2 {
					continue
				}
				off := uint64(i * blockSize)
				if _, err := e.Read(context.Background(), ino, off, buf[:blockSize]); err != nil || !bytes.Equal(buf[:blockSize], data[off:off+blockSize]) {
					t.Errorf("block %d: %v", i, err)
				}
			}
			if err := e.RepairBlock(ino, 2, data[2*blockSize:3*blockSize]); err != nil {
				t.Errorf("shared %v: %v", shared, err)
			}
			if got := read(t, e, ino); !bytes.Equal(got, data) {
				t.Error("the mended file differs")
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// spoil damages a block of a file in the image.
func spoil(t testing.TB, e *Engine, ino meta.Ino, fileBlock uint64) uint64 {
	t.Helper()
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	var phys uint64
	if err := e.meta.Extents(ino, fileBlock, fileBlock+1, func(x meta.Extent) (bool, error) {
		phys = x.Phys + fileBlock - x.FileBlock
		return false, nil
	}); err != nil || phys == 0 {
		t.Fatalf("block %d of inode %d: %v", fileBlock, ino, err)
	}
	var sum [4]byte
	if err := e.img.ReadSums(phys, sum[:]); err != nil {
		t.Fatal(err)
	}
	junk := bytes.Repeat([]byte("junk"), blockSize/4)
	if err := e.img.WriteSummed(phys, junk, sum[:]); err != nil {
		t.Fatal(err)
	}
	return phys
}

// What does not fit, is cut off or is damaged changes nothing, and leaks nothing.
func TestRestoreRefuses(t *testing.T) {
	a, l := engineWith(t, vfs.NewMem(), 4<<20, 2)
	defer a.Close()
	applyAll(t, l, makeOps(rand.New(rand.NewPCG(5, 1)), 80))
	stream := snapshotOf(t, a, 2)
	b, lb := engineWith(t, vfs.NewMem(), 4<<20, 2)
	defer b.Close()
	applyAll(t, lb, makeOps(rand.New(rand.NewPCG(6, 1)), 80))
	used, digest := usedBlocks(t, b), digestOf(t, b, 2)
	same := func(what string) {
		t.Helper()
		if got := usedBlocks(t, b); got != used {
			t.Fatalf("%s: %d blocks are used, before %d", what, got, used)
		}
		if digestOf(t, b, 2) != digest {
			t.Fatalf("%s: the group has changed", what)
		}
	}
	broken := errors.New("connection lost")
	for n := 0; n < len(stream); n += 1 + len(stream)/40 {
		if err := b.Restore(2, 500, 1, bytes.NewReader(stream[:n])); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("cut off at %d: %v", n, err)
		}
		damaged := bytes.Clone(stream)
		damaged[n] ^= 4
		if err := b.Restore(2, 500, 1, bytes.NewReader(damaged)); !errors.Is(err, ErrSnapshot) {
			t.Fatalf("damaged at %d: %v", n, err)
		}
		if err := b.Restore(2, 500, 1, io.MultiReader(bytes.NewReader(stream[:n]), errReader{broken})); !errors.Is(err, broken) {
			t.Fatalf("broken at %d: %v", n, err)
		}
	}
	same("cut off")
	if err := b.Restore(3, 500, 1, bytes.NewReader(stream)); !errors.Is(err, ErrSnapshot) {
		t.Errorf("as another group: %v", err)
	}
	total, _ := b.Usage()
	if err := b.Reserve(total - used - 3); err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(2, 500, 1, bytes.NewReader(stream)); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "beside the old one") {
		t.Errorf("without space: %v", err)
	}
	b.Unreserve(total - used - 3)
	same("without space")
	// A store that does not have the group gets it.
	if err := b.RemoveGroup(2); err != nil {
		t.Fatal(err)
	}
	if err := b.Restore(2, 500, 3, bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if digestOf(t, a, 2) != digestOf(t, b, 2) {
		t.Error("the group differs")
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// nothing takes a stream and holds the decoder to its promises.
type nothing struct {
	t    testing.TB
	last snapExtent
	due  uint64
}

func (n *nothing) key(k meta.Key, key, value []byte) error { return nil }
func (n *nothing) extent(x snapExtent) error {
	if n.due > 0 || x.count == 0 || x.fileBlock+x.count > maxFileEnd || x.ino.Group() != 2 {
		n.t.Errorf("extent %+v, %d blocks due", x, n.due)
	}
	if n.last = x; x.kind == extentData || x.kind == extentFirst {
		n.due = x.count
	}
	return nil
}

func (n *nothing) data(b []byte, bad func(int) bool) error {
	k := uint64(len(b) / blockSize)
	if k == 0 || k > n.due || len(b)%blockSize != 0 {
		n.t.Errorf("%d bytes, %d blocks due", len(b), n.due)
	}
	n.due -= min(n.due, k)
	for i := range k {
		bad(int(i))
	}
	return nil
}

// reseal gives the records of a damaged stream right checksums, so that what is behind them is reached.
func reseal(b []byte) []byte {
	if len(b) < snapHeaderSize {
		return b
	}
	b = bytes.Clone(b)
	le := binary.LittleEndian
	copy(b, snapMagic)
	le.PutUint32(b[20:], layout.CRC(b[:20]))
	number := uint32(0)
	for at := snapHeaderSize; len(b)-at >= recHeaderSize+4; number++ {
		n := int(le.Uint32(b[at+8:]))
		if n > len(b)-at-recHeaderSize-4 {
			n = len(b) - at - recHeaderSize - 4
			le.PutUint32(b[at+8:], uint32(n))
		}
		le.PutUint32(b[at+4:], number)
		end := at + recHeaderSize + n
		le.PutUint32(b[end:], layout.CRC(b[at:end]))
		at = end + 4
	}
	return b
}

func FuzzSnapshotStream(f *testing.F) {
	e, l := engineWith(f, vfs.NewMem(), 2<<20, 2)
	defer e.Close()
	for i := range 2 {
		ino := newFile(f, l)
		write(f, l, ino, uint64(i*100), []byte("contents"))
	}
	f.Add(snapshotOf(f, e, 2))
	applyAll(f, l, makeOps(rand.New(rand.NewPCG(8, 1)), 12))
	f.Add(snapshotOf(f, e, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, stream := range [][]byte{b, reseal(b)} {
			s, err := newStreamReader(bytes.NewReader(stream), 2)
			if err == nil {
				err = s.run(&nothing{t: t})
			}
			if err != nil && !errors.Is(err, ErrSnapshot) {
				t.Errorf("error of no known sort: %v", err)
			}
		}
	})
}

// Whatever a stream says, Restore answers with an error or a group that is sound.
func FuzzRestore(f *testing.F) {
	e, l := engineWith(f, vfs.NewMem(), 2<<20, 2)
	applyAll(f, l, makeOps(rand.New(rand.NewPCG(8, 1)), 30))
	stream := snapshotOf(f, e, 2)
	if err := e.Close(); err != nil {
		f.Fatal(err)
	}
	b, _ := engineWith(f, vfs.NewMem(), 2<<20, 2)
	f.Cleanup(func() { b.Close() })
	f.Add(uint32(30), byte(1), uint32(50), byte(0))
	f.Fuzz(func(t *testing.T, at1 uint32, to1 byte, at2 uint32, to2 byte) {
		damaged := bytes.Clone(stream)
		damaged[at1%uint32(len(damaged))] = to1
		damaged[at2%uint32(len(damaged))] = to2
		err := b.Restore(2, 1, 1, bytes.NewReader(reseal(damaged)))
		if err != nil && !errors.Is(err, ErrSnapshot) && !errors.Is(err, ErrNoSpace) {
			t.Errorf("error of no known sort: %v", err)
		}
		if b.Err() != nil {
			t.Fatal(b.Err())
		}
		if err := checkMapping(b); err != nil {
			t.Error(err)
		}
	})
}

// spans finds what was added, like a map of single blocks.
func TestSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	var s spans
	blocks := map[uint64]uint64{}
	for range 300 {
		x := span{rng.Uint64N(500), 1 + rng.Uint64N(9), rng.Uint64N(1000)}
		if rng.IntN(2) == 0 {
			x.to = x.from + 5
		}
		if _, found, n := s.find(x.from, x.count); !found && n == x.count {
			s.add(x)
			for i := range x.count {
				blocks[x.from+i] = x.to + i
			}
		}
		from, count := rng.Uint64N(510), 1+rng.Uint64N(20)
		to, found, n := s.find(from, count)
		want, ok := blocks[from]
		if found != ok || found && to != want || n == 0 || n > count {
			t.Fatalf("find %d+%d: %d, %v, %d; want %d, %v", from, count, to, found, n, want, ok)
		}
		for i := range n {
			if w, ok := blocks[from+i]; ok != found || found && w != to+i {
				t.Fatalf("find %d+%d: %d, %v, %d; block %d is %d, %v", from, count, to, found, n, from+i, w, ok)
			}
		}
	}
	if got := union([]alloc.Extent{{Start: 5, Count: 2}, {Start: 1, Count: 2}, {Start: 6, Count: 9}, {Start: 3, Count: 1}}); fmt.Sprint(got) != fmt.Sprint([]alloc.Extent{{Start: 1, Count: 3}, {Start: 5, Count: 10}}) {
		t.Errorf("union: %v", got)
	}
}
