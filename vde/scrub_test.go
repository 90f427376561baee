package vde

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// A scrub names every bad block of every group, and nothing that is good.
func TestScrubFindsDamage(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 8<<20)
	defer e.Close()
	if err := e.CreateGroup(4); err != nil {
		t.Fatal(err)
	}
	l4 := logOf(t, e, 4)
	large, small := newFile(t, l), newFile(t, l4)
	data := bytes.Repeat([]byte("12345678"), 600*blockSize/8)
	write(t, l, large, 0, data)
	write(t, l4, small, 2*blockSize, data[:3*blockSize])
	if err := change(l4, small, func(tx *Tx, in *meta.Inode) error { return tx.Preallocate(in, 100*blockSize, 110*blockSize) }); err != nil {
		t.Fatal(err)
	}
	var last ScrubProgress
	scrub := func() ScrubReport {
		t.Helper()
		r, err := e.Scrub(context.Background(), ScrubOptions{Progress: func(p ScrubProgress) { last = p }})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := scrub(); r.BadBlocks() != 0 || r.Blocks != 603 || last.Blocks != 603 || last.Total < 603 {
		t.Errorf("a sound store: %+v, %+v", r, last)
	}
	want := []BadBlock{
		{Ino: large, Offset: 0, Block: spoil(t, e, large, 0)},
		{Ino: large, Offset: 300 * blockSize, Block: spoil(t, e, large, 300)},
		{Ino: large, Offset: 301 * blockSize, Block: spoil(t, e, large, 301)},
		{Ino: small, Offset: 3 * blockSize, Block: spoil(t, e, small, 3)},
	}
	r := scrub()
	if len(r.Bad) != len(want) || last.Bad != 4 || r.Blocks != 603 {
		t.Fatalf("found %+v, %+v; want %+v", r, last, want)
	}
	for i, b := range r.Bad {
		if b.Error == "" {
			t.Errorf("%+v has no error", b)
		}
		if b.Error = ""; b != want[i] {
			t.Errorf("found %+v, want %+v", b, want[i])
		}
	}
	if e.ChecksumErrors() != 4 {
		t.Errorf("%d checksum errors are counted", e.ChecksumErrors())
	}
	if _, err := e.Digest(context.Background(), 4); !errors.Is(err, ErrBadBlock) {
		t.Errorf("digest with a bad block: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := e.Scrub(ctx, ScrubOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended scrub: %v", err)
	}
	for _, b := range want {
		if err := e.RepairBlock(b.Ino, b.Offset/blockSize, data[:blockSize]); err != nil {
			t.Error(err)
		}
	}
	if r := scrub(); r.BadBlocks() != 0 {
		t.Errorf("after the repair: %+v", r)
	}
	if !bytes.Equal(read(t, e, large), data) {
		t.Error("the mended file differs")
	}
}

// The rate is kept, and the wait for it ends with the context.
// So it does every damaged table of the metadata, wherever the byte is that changed, and one that is missing.
func TestScrubFindsDamagedTables(t *testing.T) {
	fs := vfs.NewMem()
	e, l := openTest(t, fs, 8<<20)
	defer func() { _ = e.Close() }() // it cannot compact what is damaged
	for range 300 {
		write(t, l, newFile(t, l), 0, make([]byte, blockSize))
	}
	if err := e.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	scrub := func() ScrubReport {
		t.Helper()
		r, err := e.Scrub(context.Background(), ScrubOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	dir := fs.PathJoin("store", metaName)
	var sound ScrubReport
	var names []string
	for range 1000 { // until nothing is merged any more
		var err error
		sound = scrub()
		if names, err = fs.List(dir); err != nil {
			t.Fatal(err)
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, ".sst") })
		if len(names) == sound.Tables {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(names) != sound.Tables || sound.Tables == 0 || len(sound.BadTables) > 0 || sound.Blocks != 300 {
		t.Fatalf("a sound store with %q: %+v", names, sound)
	}
	name := names[len(names)-1]
	path := fs.PathJoin(dir, name)
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, st.Size())
	if _, err := f.ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	for at := int64(0); at < st.Size(); at += 1 + st.Size()/50 {
		if _, err := f.WriteAt([]byte{whole[at] ^ 4}, at); err != nil {
			t.Fatal(err)
		}
		if r := scrub(); len(r.BadTables) != 1 || r.BadTables[0].Name != name || r.BadTables[0].Error == "" || r.Tables != sound.Tables {
			t.Errorf("byte %d of %d changed: %+v", at, st.Size(), r)
		}
		if _, err := f.WriteAt(whole[at:at+1], at); err != nil {
			t.Fatal(err)
		}
	}
	if r := scrub(); len(r.BadTables) > 0 {
		t.Errorf("put right again: %+v", r)
	}
	if err := fs.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r := scrub(); len(r.BadTables) != 1 || !strings.Contains(r.BadTables[0].Error, "missing") {
		t.Errorf("removed: %+v", r)
	}
}

func TestScrubRate(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 16<<20)
	defer e.Close()
	ino := newFile(t, l)
	write(t, l, ino, 0, make([]byte, 2<<20))
	start := time.Now()
	if _, err := e.Scrub(context.Background(), ScrubOptions{Rate: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 100*time.Millisecond { // two pieces of 1 MiB, a wait of 125 ms between
		t.Errorf("2 MiB at 8 MiB/s took %v", took)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	start = time.Now()
	if r, err := e.Scrub(ctx, ScrubOptions{Rate: 1}); !errors.Is(err, context.DeadlineExceeded) || r.Tables+int(r.Blocks) == 0 || r.Blocks > dataChunk || time.Since(start) > 20*time.Second {
		t.Errorf("%+v, %v", r, err)
	}
}

// Closing the engine ends a scrub, and waits for it.
func TestScrubEndsWithTheEngine(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 16<<20)
	write(t, l, newFile(t, l), 0, make([]byte, 4<<20))
	if err := e.Checkpoint(); err != nil { // a table, which the scrub begins with
		t.Fatal(err)
	}
	begun, ended := make(chan struct{}), make(chan error)
	go func() {
		var once sync.Once
		_, err := e.Scrub(context.Background(), ScrubOptions{Rate: 1, Progress: func(ScrubProgress) { once.Do(func() { close(begun) }) }})
		ended <- err
	}()
	<-begun
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("the scrub ended with %v", err)
	}
	if _, err := e.Scrub(context.Background(), ScrubOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a scrub of a closed engine: %v", err)
	}
}

// Paths names files by where they are.
func TestPaths(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 4<<20)
	defer e.Close()
	var dir, file, orphan meta.Ino
	if err := l.apply(func(tx *Tx) error {
		root, err := tx.Inode(meta.RootIno)
		if err != nil {
			return err
		}
		d, f, o := tx.NewInode(), tx.NewInode(), tx.NewInode()
		d.Mode, d.Parent, d.Nlink = unix.S_IFDIR|0o700, root.Ino, 2
		f.Mode, o.Mode = unix.S_IFREG, unix.S_IFREG
		dir, file, orphan = d.Ino, f.Ino, o.Ino
		tx.AddDirent(root, "a dir", dir, d.Mode)
		tx.AddDirent(d, "b", file, f.Mode)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	got, err := e.Paths([]meta.Ino{file, dir, orphan, 99})
	if err != nil || len(got) != 2 || got[file] != "/a dir/b" || got[dir] != "/a dir" {
		t.Errorf("%v, %v", got, err)
	}
}

// Files that are overwritten, moved and freed all the time have no bad blocks; run with -race.
func TestScrubBesideWriters(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 8<<20)
	defer e.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	applyAll(t, l, makeOps(rand.New(rand.NewPCG(1, 2)), 60))
	for w := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				o := op{opKinds[1+rng.IntN(len(opKinds)-2)], rng.Uint64()}
				if err := l.apply(o.apply); err != nil {
					t.Errorf("%v: %v", o, err)
					return
				}
				if i%10 == 0 {
					if err := errors.Join(l.SyncAll(), e.Checkpoint()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 40 {
		if r, err := e.Scrub(context.Background(), ScrubOptions{}); err != nil || r.BadBlocks() > 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	close(stop)
	wg.Wait()
}

// Repair refuses what is good, and contents that would be wrong for another file.
func TestRepairRefuses(t *testing.T) {
	e, l := openTest(t, vfs.NewMem(), 4<<20)
	defer e.Close()
	ino, twin := newFile(t, l), newFile(t, l)
	data := bytes.Repeat([]byte("abcd"), 2*blockSize/4)
	write(t, l, ino, 0, data)
	if err := l.apply(func(tx *Tx) error {
		src, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		dst, err := tx.Inode(twin)
		if err != nil {
			return err
		}
		dst.Size = blockSize
		tx.SetInode(dst)
		return tx.Share(src, 0, dst, 0, 1)
	}); err != nil {
		t.Fatal(err)
	}
	newer := bytes.Repeat([]byte("newer..."), blockSize/8)
	for _, block := range []uint64{0, 1, 2, 1 << 40} {
		if err := e.RepairBlock(ino, block, newer); !errors.Is(err, ErrBlockGood) {
			t.Errorf("block %d: %v", block, err)
		}
	}
	if err := e.RepairBlock(ino, 0, newer[:100]); err == nil {
		t.Error("a part of a block was taken")
	}
	spoil(t, e, ino, 0)
	spoil(t, e, ino, 1)
	if err := e.RepairBlock(ino, 0, newer); !errors.Is(err, ErrNotContents) {
		t.Errorf("newer contents of a shared block: %v", err)
	}
	if err := e.RepairBlock(twin, 0, data[:blockSize]); err != nil {
		t.Error(err)
	}
	if err := e.RepairBlock(ino, 1, newer); err != nil {
		t.Error(err)
	}
	if got := read(t, e, ino); !bytes.Equal(got[:blockSize], data[:blockSize]) || !bytes.Equal(got[blockSize:], newer) {
		t.Error("the mended file differs")
	}
	// What was overwritten meanwhile is good, wherever its contents are.
	spoil(t, e, ino, 1)
	write(t, l, ino, blockSize, data[:blockSize])
	if err := e.RepairBlock(ino, 1, newer); !errors.Is(err, ErrBlockGood) {
		t.Errorf("a block that was overwritten: %v", err)
	}
	if got := read(t, e, ino); !bytes.Equal(got, data) {
		t.Error("the overwritten file differs")
	}
}

// fingerprintOf sums up the first file of group 1.
func fingerprintOf(t *testing.T, e *Engine) Fingerprint {
	t.Helper()
	f, err := e.Fingerprint(context.Background(), meta.MakeIno(1, 1), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Digests tell states apart, and tell the same state the same whatever its blocks.
func TestDigest(t *testing.T) {
	a, la := openTest(t, vfs.NewMem(), 4<<20)
	defer a.Close()
	b, lb := openTest(t, vfs.NewMem(), 8<<20)
	defer b.Close()
	// The root differs in its times, so the groups compared are others.
	for _, e := range []*Engine{a, b} {
		if err := e.CreateGroup(1); err != nil {
			t.Fatal(err)
		}
	}
	// Blocks lie elsewhere and in pieces.
	of0 := newFile(t, lb)
	for i := range uint64(20) {
		write(t, lb, of0, i*3*blockSize, make([]byte, blockSize))
	}
	la, lb = logOf(t, a, 1), logOf(t, b, 1)
	seen, prints := map[string]bool{}, map[uint64]bool{}
	both := func(what string, do func(tx *Tx, in *meta.Inode) error) {
		t.Helper()
		for _, l := range []*testLog{la, lb} {
			if err := change(l, meta.MakeIno(1, 1), do); err != nil {
				t.Fatal(err)
			}
		}
		d := digestOf(t, a, 1)
		if d != digestOf(t, b, 1) {
			t.Errorf("%s: the digests differ", what)
		}
		fa, fb := fingerprintOf(t, a), fingerprintOf(t, b)
		if fa != fb {
			t.Errorf("%s: the fingerprints differ: %+v, %+v", what, fa, fb)
		}
		if prints[fa.Sum] && !strings.HasSuffix(what, "fact") { // facts are the group's, not the inode's
			t.Errorf("%s: the fingerprint is not new", what)
		}
		prints[fa.Sum] = true
		if seen[d] {
			t.Errorf("%s: the digest is not new", what)
		}
		seen[d] = true
	}
	newFile(t, la)
	newFile(t, lb)
	data := bytes.Repeat([]byte("x"), 5*blockSize)
	both("write", func(tx *Tx, in *meta.Inode) error { return tx.WriteData(in, 0, data) })
	both("other contents", func(tx *Tx, in *meta.Inode) error { return tx.WriteData(in, 100, []byte("y")) })
	both("hole", func(tx *Tx, in *meta.Inode) error { return tx.PunchHole(in, 2*blockSize, 3*blockSize) })
	both("unwritten", func(tx *Tx, in *meta.Inode) error { return tx.ZeroRange(in, 2*blockSize, 3*blockSize) })
	both("zeros", func(tx *Tx, in *meta.Inode) error { return tx.WriteData(in, 2*blockSize, make([]byte, blockSize)) })
	both("fact", func(tx *Tx, in *meta.Inode) error { return tx.SetFact("a", nil) })
	both("other fact", func(tx *Tx, in *meta.Inode) error { return tx.SetFact("b", nil) })
	both("mode", func(tx *Tx, in *meta.Inode) error { in.Mode ^= 1; return nil })
	both("attribute", func(tx *Tx, in *meta.Inode) error { tx.SetXattr(in.Ino, "user.a", nil); return nil })
	if _, err := a.Digest(context.Background(), 9); !errors.Is(err, ErrNoGroup) {
		t.Errorf("missing group: %v", err)
	}
}
