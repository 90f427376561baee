package check_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/replica"
	"vdefs/vde"
	"vdefs/vde/check"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

const (
	storeDir  = "store"
	imageSize = 1 << 20 // bytes
)

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

// replay is what cmd/vde gives Run as Options.Replay.
func replay(dir string, f vfs.FS) error {
	v, err := replica.Open(dir, replica.Options{FS: f, Logger: quiet(), SegmentSize: 128 << 10})
	if err != nil {
		return err
	}
	return v.Close()
}

// sample is a store with one of everything, as the volume itself makes it, and the numbers of what is in it.
type sample struct {
	*vfs.MemFS
	file, copied, prealloc, sparse, symlink, fifo, sub, deep, inner, last meta.Ino
}

func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) + byte(i>>8) + seed
	}
	return b
}

// makeSample makes a store; stop leaves it as a crash would, instead of closing it.
func makeSample(t testing.TB) *sample {
	t.Helper()
	s := &sample{MemFS: vfs.NewCrashableMem()}
	if _, err := vde.Format(storeDir, vde.FormatOptions{Size: imageSize, FS: s.MemFS}); err != nil {
		t.Fatal(err)
	}
	v, err := replica.Open(storeDir, replica.Options{FS: s.MemFS, Logger: quiet(), SegmentSize: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	s.fill(t, v)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *sample) fill(t testing.TB, v *replica.Volume) {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node := func(parent meta.Ino, name string, mode uint32, target string) meta.Ino {
		t.Helper()
		in, err := v.Make(ctx, fs.NewNode{Parent: parent, Name: name, Mode: mode, Target: target})
		must(err)
		return in.Ino
	}
	write := func(ino meta.Ino, off uint64, data []byte) {
		t.Helper()
		_, err := v.Write(ctx, ino, off, data, 0)
		must(err)
	}
	const reg, dir = unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755
	s.file = node(meta.RootIno, "file", reg, "")
	write(s.file, 0, pattern(1, 5*4096+100))
	_, err := v.Link(ctx, s.file, meta.RootIno, "file2")
	must(err)
	must(v.SetXattr(ctx, s.file, "user.colour", []byte("green"), 0, false))
	s.copied = node(meta.RootIno, "copied", reg, "")
	_, _, err = v.CopyRange(ctx, s.file, 0, s.copied, 0, 4*4096)
	must(err)
	s.prealloc = node(meta.RootIno, "prealloc", reg, "")
	_, err = v.Fallocate(ctx, s.prealloc, unix.FALLOC_FL_KEEP_SIZE, 0, 8*4096)
	must(err)
	write(s.prealloc, 4096, pattern(2, 4096))
	s.sparse = node(meta.RootIno, "sparse", reg, "")
	write(s.sparse, 100*4096, pattern(3, 2*4096))
	write(s.sparse, 200*4096, pattern(4, 3*4096))
	s.symlink = node(meta.RootIno, "link", unix.S_IFLNK|0o777, "file")
	s.fifo = node(meta.RootIno, "fifo", unix.S_IFIFO|0o600, "")
	s.sub = node(meta.RootIno, "sub", dir, "")
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255}
	must(v.SetXattr(ctx, s.sub, "system.posix_acl_default", acl, 0, false))
	s.deep = node(s.sub, "deep", dir, "")
	s.inner = node(s.deep, "inner", reg, "")
	write(s.inner, 0, pattern(5, 4096))
	for i := range 20 {
		s.last = node(s.sub, fmt.Sprintf("many%02d", i), reg, "")
	}
	gone := node(s.sub, "gone", reg, "")
	write(gone, 0, pattern(6, 3*4096))
	_, err = v.Unlink(ctx, s.sub, "gone")
	must(err)
}

// clone copies the store, so that each case damages its own.
func (s *sample) clone() *sample {
	c := *s
	c.MemFS = s.MemFS.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 2))})
	return &c
}

// sum tells every byte of every file apart from every other state of the store.
func (s *sample) sum(t testing.TB) map[string]uint32 {
	t.Helper()
	sums := map[string]uint32{}
	var walk func(dir string)
	walk = func(dir string) {
		names, err := s.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			path := s.PathJoin(dir, name)
			st, err := s.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if st.IsDir() {
				walk(path)
				continue
			}
			sums[path] = layout.CRC(s.read(t, path))
		}
	}
	walk(storeDir)
	return sums
}

func (s *sample) read(t testing.TB, path string) []byte {
	t.Helper()
	f, err := s.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// write changes bytes of a file.
func (s *sample) write(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := s.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// replace gives a file other contents.
func (s *sample) replace(t testing.TB, path string, b []byte) {
	t.Helper()
	f, err := s.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
}

const imagePath, infoPath = storeDir + "/disk.vde", storeDir + "/vde.json"

func (s *sample) super(t testing.TB) layout.Superblock {
	t.Helper()
	sb, err := layout.DecodeSuperblock(s.read(t, imagePath)[:4096])
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func (s *sample) setSuper(t testing.TB, change func(*layout.Superblock)) {
	t.Helper()
	sb := s.super(t)
	change(&sb)
	s.write(t, imagePath, 0, sb.Encode())
	s.write(t, imagePath, imageSize-4096, sb.Encode())
}

// db opens the metadata behind everybody's back.
func (s *sample) db(t testing.TB, use func(db *pebble.DB)) {
	t.Helper()
	db, err := pebble.Open(storeDir+"/meta", &pebble.Options{FS: s.MemFS, DisableWAL: true, Logger: noLogger{}, FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		t.Fatal(err)
	}
	use(db)
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

type noLogger struct{}

func (noLogger) Infof(string, ...any)  {}
func (noLogger) Errorf(string, ...any) {}
func (noLogger) Fatalf(f string, a ...any) {
	panic(fmt.Sprintf(f, a...))
}

// Keys and values, written down here a second time: what the store says of itself is not asked.
func key(kind byte, numbers ...uint64) []byte {
	b := []byte{kind}
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func keyName(kind byte, ino meta.Ino, name string) []byte {
	return append(key(kind, uint64(ino)), name...)
}

func valEntry(ino meta.Ino, typ uint32, cookie uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(ino))
	return binary.LittleEndian.AppendUint64(append(b, byte(typ>>12)), cookie)
}

func valPlace(ino meta.Ino, typ uint32, name string) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(ino))
	return append(append(b, byte(typ>>12)), name...)
}

func uvarints(n ...uint64) (b []byte) {
	for _, v := range n {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// set and del change keys; a nil value deletes.
func (s *sample) set(t testing.TB, k, v []byte) {
	t.Helper()
	s.db(t, func(db *pebble.DB) {
		if err := db.Set(k, v, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	})
}

func (s *sample) del(t testing.TB, keys ...[]byte) {
	t.Helper()
	s.db(t, func(db *pebble.DB) {
		for _, k := range keys {
			if _, c, err := db.Get(k); err != nil {
				t.Fatalf("key %q: %v", k, err)
			} else if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			if err := db.Delete(k, pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func (s *sample) get(t testing.TB, k []byte) (out []byte) {
	t.Helper()
	s.db(t, func(db *pebble.DB) {
		v, c, err := db.Get(k)
		if err != nil {
			t.Fatalf("key %q: %v", k, err)
		}
		out = slices.Clone(v)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	})
	return out
}

// inode changes an inode.
func (s *sample) inode(t testing.TB, ino meta.Ino, change func(*meta.Inode)) {
	t.Helper()
	in, err := meta.DecodeInode(ino, s.get(t, key('i', uint64(ino))))
	if err != nil {
		t.Fatal(err)
	}
	change(&in)
	s.set(t, key('i', uint64(ino)), meta.EncodeInode(nil, &in))
}

// extents lists the extents of a file.
func (s *sample) extents(t testing.TB, ino meta.Ino) (out []meta.Extent) {
	t.Helper()
	s.db(t, func(db *pebble.DB) {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: key('e', uint64(ino)), UpperBound: key('e', uint64(ino)+1)})
		if err != nil {
			t.Fatal(err)
		}
		for ok := it.First(); ok; ok = it.Next() {
			x, err := meta.DecodeExtent(binary.BigEndian.Uint64(it.Key()[9:]), it.Value())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, x)
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
	})
	return out
}

// logFile is the path of the only log segment.
// logFile names the first segment of the log.
func (s *sample) logFile(t testing.TB) string {
	t.Helper()
	dir := storeDir + "/raft/default"
	names, err := s.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, n := range names {
		if strings.HasSuffix(n, ".log") {
			return dir + "/" + n
		}
	}
	t.Fatal("no log segment")
	return ""
}

// runCheck checks and describes the findings.
func runCheck(t testing.TB, s *sample, o check.Options) check.Report {
	t.Helper()
	o.FS = s.MemFS
	r, err := check.Run(storeDir, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func describe(r check.Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "\n\t%s: %s (repaired: %v)", f.Kind, f.What, f.Repaired)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n\tnote: %s", n)
	}
	return b.String()
}

// contents reads the whole tree as a user sees it: path to what is there.
func contents(t testing.TB, f vfs.FS) map[string]string {
	t.Helper()
	v, err := replica.Open(storeDir, replica.Options{FS: f, Logger: quiet(), SegmentSize: 128 << 10})
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	out := readTree(t, v)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

func readTree(t testing.TB, v *replica.Volume) map[string]string {
	t.Helper()
	ctx := context.Background()
	out := map[string]string{}
	var walk func(dir meta.Ino, path string)
	walk = func(dir meta.Ino, path string) {
		err := v.ReadDir(ctx, dir, 0, true, func(e meta.Dirent, in *meta.Inode) bool {
			p := path + "/" + e.Name
			switch in.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				out[p] = "dir"
				walk(in.Ino, p)
			case unix.S_IFREG:
				b := make([]byte, in.Size)
				if n, err := v.Read(ctx, in.Ino, 0, b); err != nil || n != len(b) {
					t.Errorf("%s: read %d of %d bytes: %v", p, n, len(b), err)
				}
				// A remade inode knows its size in whole blocks only.
				out[p] = fmt.Sprintf("file %x", layout.CRC(bytes.TrimRight(b, "\x00")))
			default:
				out[p] = fmt.Sprintf("%o %s", in.Mode&unix.S_IFMT, in.Target)
			}
			return true
		})
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	walk(meta.RootIno, "")
	return out
}

// spoil removes or changes n keys at random, but for those that no store is without.
func (s *sample) spoil(t testing.TB, rng *rand.Rand, n int) (done []string) {
	t.Helper()
	s.db(t, func(db *pebble.DB) {
		var keys [][]byte
		it, err := db.NewIter(nil)
		if err != nil {
			t.Fatal(err)
		}
		for ok := it.First(); ok; ok = it.Next() {
			if k := it.Key(); k[0] != 's' && k[0] != 'g' {
				keys = append(keys, slices.Clone(k))
			}
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		for range n {
			k := keys[rng.IntN(len(keys))]
			other := keys[rng.IntN(len(keys))]
			v := []byte(nil)
			if val, c, err := db.Get(other); err == nil {
				v = slices.Clone(val)
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			}
			switch {
			case rng.IntN(3) > 0:
				done = append(done, fmt.Sprintf("delete %q", k))
				err = db.Delete(k, pebble.NoSync)
			case other[0] == k[0]:
				done = append(done, fmt.Sprintf("set %q to that of %q", k, other))
				err = db.Set(k, v, pebble.NoSync)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	return done
}
