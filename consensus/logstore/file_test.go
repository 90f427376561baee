package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"pgregory.net/rapid"
)

// snapshotOf copies a filesystem as it is.
func snapshotOf(fs *vfs.MemFS) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
}

func files(t testing.TB, fs vfs.FS, suffix string) []string {
	t.Helper()
	names, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		if strings.HasSuffix(n, suffix) {
			out = append(out, n)
		}
	}
	// Names sort by seq.
	for i := range out {
		for j := i; j > 0 && out[j] < out[j-1]; j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

func content(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open("log/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := readAll(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), b...)
}

func patch(t testing.TB, fs vfs.FS, name string, at int64, b []byte) {
	t.Helper()
	f, err := fs.OpenReadWrite("log/"+name, diskCategory)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func openIn(fs vfs.FS, segment int64) (*FileLogStore, error) {
	return OpenFile(FileOptions{FS: fs, Dir: "log", SegmentSize: segment})
}

// TestEveryFlippedBitIsFound flips every third byte of a closed log, one at a time: the
// log then either does not open or does not read, with an error that names file
// and entry, or gives back what was written. It never gives back anything else.
func TestEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	fs := vfs.NewCrashableMem()
	l, err := openIn(fs, 2<<10)
	if err != nil {
		t.Fatal(err)
	}
	const n = 150
	fill(t, l, 1, n, 1)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	segments := files(t, fs, logSuffix)
	if len(segments) < 3 {
		t.Fatalf("only %d segments", len(segments))
	}
	damaged, harmless := 0, 0
	for _, name := range []string{segments[0], segments[len(segments)-1]} {
		data := content(t, fs, name)
		for at := 0; at < len(data); at += 3 {
			bad := snapshotOf(fs)
			patch(t, bad, name, int64(at), []byte{data[at] ^ 1<<(at%8)})
			got, err := readBack(bad, n)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, errVersion) {
					t.Fatalf("%s byte %d: %v", name, at, err)
				}
				if !strings.Contains(err.Error(), name) {
					t.Fatalf("%s byte %d: the error names another file: %v", name, at, err)
				}
				damaged++
				continue
			}
			if len(got) < n {
				t.Fatalf("%s byte %d: %d entries are silently gone", name, at, n-len(got))
			}
			harmless++ // an unused byte
		}
	}
	t.Logf("%d flips refused, %d harmless", damaged, harmless)
	if damaged < 500 {
		t.Fatalf("only %d flips were noticed", damaged)
	}
}

// readBack opens the log and reads its entries, which must be those fill wrote.
func readBack(fs vfs.FS, n uint64) ([]Entry, error) {
	l, err := openIn(fs, 2<<10)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if l.LastIndex() == 0 {
		return nil, nil
	}
	got, err := l.Entries(nil, 1, l.LastIndex()+1, 1<<30)
	if err != nil {
		return nil, err
	}
	for i, e := range got {
		if want := entry(uint64(i+1), 1); e.Index != want.Index || e.Term != 1 || !bytes.Equal(e.Data, want.Data) {
			return nil, fmt.Errorf("entry %d is wrong and nobody noticed", i+1)
		}
	}
	return got, nil
}

func TestTornTailIsCutWithAWarning(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l, err := openIn(fs, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, l, 1, 10, 1)
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	fill(t, l, 11, 20, 1)
	// Entry 15 did not get to the disk, the ones behind it did.
	torn := snapshotOf(fs)
	at := int64(l.segs[0].offsets[14])
	patch(t, torn, files(t, torn, logSuffix)[0], at, make([]byte, 30))
	logger, hook := logtest.NewNullLogger()
	l2, err := OpenFile(FileOptions{FS: torn, Dir: "log", SegmentSize: 64 << 10, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	if l2.LastIndex() != 14 {
		t.Fatalf("the log ends at %d, want 14", l2.LastIndex())
	}
	if e := hook.LastEntry(); e == nil || e.Level != logrus.WarnLevel || !strings.Contains(e.Message, "entry 15") || !strings.Contains(e.Message, "offset") {
		t.Fatalf("no warning that says what was cut: %v", e)
	}
	// Entry 5 was durable: that is no torn write.
	bad := snapshotOf(fs)
	patch(t, bad, files(t, bad, logSuffix)[0], int64(l.segs[0].offsets[4])+recordHeader, []byte{'X'})
	if _, err := openIn(bad, 64<<10); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "entry 5") ||
		!strings.Contains(err.Error(), fmt.Sprintf("offset %d", l.segs[0].offsets[4])) {
		t.Fatalf("damage to a durable entry: %v", err)
	}
}

func TestMissingOrDamagedIndexIsRebuilt(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l, err := openIn(fs, 2<<10)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= 200; i += 20 {
		fill(t, l, i, i+19, 1)
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	indexes := files(t, fs, indexSuffix)
	if len(indexes) < 4 {
		t.Fatalf("only %d index files", len(indexes))
	}
	for name, spoil := range map[string]func(fs vfs.FS, name string){
		"missing":   func(fs vfs.FS, name string) { _ = fs.Remove("log/" + name) },
		"empty":     func(fs vfs.FS, name string) { f, _ := fs.Create("log/"+name, diskCategory); _ = f.Close() },
		"zeros":     func(fs vfs.FS, name string) { patch(t, fs, name, indexHeader, make([]byte, 80)) },
		"misplaced": func(fs vfs.FS, name string) { patch(t, fs, name, indexHeader, []byte{70}) },
		"beyond":    func(fs vfs.FS, name string) { patch(t, fs, name, indexHeader+8, bytes.Repeat([]byte{0xff}, 8)) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := snapshotOf(fs)
			for _, n := range indexes {
				spoil(bad, n)
			}
			for range 2 {
				got, err := readBack(bad, 200)
				if err != nil || len(got) != 200 {
					t.Fatalf("%d entries, %v", len(got), err)
				}
			}
			for _, n := range indexes {
				if !bytes.Equal(content(t, bad, n), content(t, fs, n)) {
					t.Fatalf("%s was not made anew", n)
				}
			}
		})
	}
	// A whole segment is gone.
	bad := snapshotOf(fs)
	segments := files(t, bad, logSuffix)
	_ = bad.Remove("log/" + segments[2])
	if _, err := openIn(bad, 2<<10); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("missing segment: %v", err)
	}
	bad = snapshotOf(fs)
	_ = bad.Remove("log/" + segments[len(segments)-1])
	if _, err := openIn(bad, 2<<10); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("missing last segment: %v", err)
	}
}

// TestCrashAtEveryWrite drives a log with random calls and pulls the plug before
// every write, sync, creation and removal: what comes back is the log as it was
// at some moment since the last sync.
func TestCrashAtEveryWrite(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		percent := rapid.SampledFrom([]int{0, 20, 50, 80, 100}).Draw(t, "unsynced kept")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		mem := vfs.NewCrashableMem()
		if err := errors.Join(mem.MkdirAll("log", 0o755), SyncDir(mem, "")); err != nil {
			t.Fatal(err)
		}
		m := &model{}
		// A crash brings back at least what is durable, and of the rest a prefix. Only
		// while a truncation is under way either log may come back.
		durable, truncating := uint64(0), false
		pull := func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpRemove, errorfs.OpCreate:
			default:
				return nil
			}
			if rng.IntN(3) != 0 {
				return nil
			}
			fs := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
			l, err := openIn(fs, 1<<10)
			if err != nil {
				t.Fatalf("after a crash at %v of %s: %v", op.Kind, op.Path, err)
			}
			last := l.LastIndex()
			if last < durable {
				t.Fatalf("entry %d was durable, the log ends at %d", durable, last)
			}
			// An append that is just being written may be there in part.
			for i := max(l.FirstIndex(), m.base+1); i <= min(last, m.last()) && !truncating; i++ {
				e, err := l.Entry(i)
				if err != nil {
					t.Fatalf("Entry(%d): %v", i, err)
				}
				if want := m.entries[i-m.base-1]; e.Term != want.Term || !bytes.Equal(e.Data, want.Data) {
					t.Fatalf("entry %d has term %d and %d bytes, want %d and %d", i, e.Term, len(e.Data), want.Term, len(want.Data))
				}
			}
			// It works, and what was cut off does not come back.
			if err := l.Append([]Entry{{Index: last + 1, Term: 1 << 40, Type: EntryNoop}}); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if l, err = openIn(fs, 1<<10); err != nil {
				t.Fatal(err)
			}
			if l.LastIndex() != last+1 || l.LastTerm() != 1<<40 {
				t.Fatalf("the log ends at %d after a clean close at %d", l.LastIndex(), last+1)
			}
			_ = l.Close()
			return nil
		}
		l, err := openIn(errorfs.Wrap(mem, errorfs.InjectorFunc(pull)), 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(5, 25).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"append", "append", "append", "sync", "truncate", "compact"}).Draw(t, "step") {
			case "append":
				es := m.next(rapid.IntRange(1, 4).Draw(t, "n"), rapid.Bool().Draw(t, "new term"), func() int {
					return rapid.SampledFrom([]int{0, 30, 300, 5000}).Draw(t, "size")
				})
				m.entries = append(m.entries, es...)
				if err := l.Append(es); err != nil {
					t.Fatal(err)
				}
			case "sync":
				if err := l.Sync(); err != nil {
					t.Fatal(err)
				}
				durable = m.last()
			case "truncate":
				at := rapid.Uint64Range(l.FirstIndex(), m.last()+1).Draw(t, "at")
				truncating = true
				durable = min(durable, at-1)
				if err := l.TruncateFrom(at); err != nil {
					t.Fatal(err)
				}
				truncating = false
				m.truncate(at)
			case "compact":
				at := rapid.Uint64Range(m.base, max(m.base, l.DurableIndex())).Draw(t, "at")
				if err := l.CompactTo(at); err != nil {
					t.Fatal(err)
				}
				m.compact(l.FirstIndex())
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSyncRunsBesideAppend(t *testing.T) {
	release, inside := make(chan struct{}), make(chan struct{}, 10)
	hold := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, logSuffix) {
			select {
			case inside <- struct{}{}:
			default:
			}
			<-release
		}
		return nil
	})
	mem := vfs.NewCrashableMem()
	l, err := openIn(mem, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	go func() { release <- struct{}{} }() // the sync of the open
	l, err = openIn(errorfs.Wrap(mem, hold), 0)
	if err != nil {
		t.Fatal(err)
	}
	<-inside
	fill(t, l, 1, 1, 1)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		if err := l.Sync(); err != nil {
			t.Error(err)
		}
	}()
	<-inside
	fill(t, l, 2, 100, 1) // would hang if a sync kept appends away
	if e, err := l.Entry(100); err != nil || e.Index != 100 {
		t.Fatalf("Entry(100) = %v", err)
	}
	close(release)
	wg.Wait()
	if d := l.DurableIndex(); d != 1 {
		t.Fatalf("durable %d: only entry 1 was there when the sync began", d)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStateFile(t *testing.T) {
	mem := vfs.NewCrashableMem()
	if err := mem.MkdirAll("log", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(mem, "log"); !errors.Is(err, ErrNoState) {
		t.Fatalf("no state: %v", err)
	}
	// At every write and sync the old or the new state is there, and never an older
	// one once a write of a newer one has returned: no vote is given twice.
	rng := rand.New(rand.NewPCG(3, 4))
	written := uint64(0)
	pulls := 0
	pull := errorfs.InjectorFunc(func(op errorfs.Op) error {
		for _, percent := range []int{0, 50, 100} {
			fs := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
			s, err := ReadState(fs, "log")
			if errors.Is(err, ErrNoState) && written == 0 {
				continue
			}
			if err != nil {
				t.Fatalf("crash at %v: %v", op.Kind, err)
			}
			if s.Term != written && s.Term != written+1 || s.Vote != s.Term*10 || string(s.Conf) != fmt.Sprint("conf", s.Term) {
				t.Fatalf("crash at %v after state %d: %+v", op.Kind, written, s)
			}
			pulls++
		}
		return nil
	})
	if err := SyncDir(mem, ""); err != nil {
		t.Fatal(err)
	}
	fs := errorfs.Wrap(mem, pull)
	for term := uint64(1); term <= 20; term++ {
		s := HardState{NodeID: 3, Term: term, Vote: term * 10, Commit: 5, Conf: []byte(fmt.Sprint("conf", term)), ConfIndex: 2}
		if err := WriteState(fs, "log", s); err != nil {
			t.Fatal(err)
		}
		written = term
		got, err := ReadState(mem, "log")
		if err != nil || got.Term != term || got.Vote != term*10 || got.NodeID != 3 || got.ConfIndex != 2 || got.Commit != 5 {
			t.Fatalf("read back %+v, %v", got, err)
		}
	}
	if pulls < 100 {
		t.Fatalf("only %d crashes", pulls)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	b := make([]byte, recordHeader)
	putRecordHeader(b, 7, EntryCommand, 3, 9, []byte("abc"))
	f.Add(append(b, "abc"...))
	f.Add([]byte{5, 0, 0, 0})
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, size, state, err := decodeRecord(data, 7)
		if (state == recordBad) != (err != nil) {
			t.Fatalf("state %d with error %v", state, err)
		}
		if state != recordOK {
			return
		}
		h := make([]byte, recordHeader)
		putRecordHeader(h, 7, e.Type, e.Term, e.Index, e.Data)
		if !bytes.Equal(append(h, e.Data...), data[:size]) {
			t.Fatal("decoded and encoded again it differs")
		}
	})
}

func FuzzScanSegment(f *testing.F) {
	id := segmentID{seq: 1, first: 1, salt: 2}
	var seg []byte
	seg = append(seg, encodeSegmentHeader(id, 0, true)...)
	for i := uint64(1); i < 4; i++ {
		h := make([]byte, recordHeader)
		e := entry(i, 1)
		putRecordHeader(h, id.seed(), e.Type, e.Term, e.Index, e.Data)
		seg = append(append(seg, h...), e.Data...)
	}
	f.Add(seg, uint16(0), byte(0))
	f.Add(seg, uint16(70), byte(3))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, flip byte) {
		// Random bytes hardly ever have a checksum: damage a sound segment too.
		for _, b := range [][]byte{data, append([]byte(nil), seg...)} {
			if int(at) < len(b) {
				b[at] ^= flip
			}
			s := scanRecords(b, id, ^uint64(0))
			if s.end > int64(max(len(b), segmentHeader)) || len(s.offsets) != len(s.terms) {
				t.Fatalf("scanned %d bytes of %d", s.end, len(b))
			}
			_, _, _ = decodeSegmentHeader(b, id)
			_, _ = lastMark(b, 0, id)
		}
	})
}

func FuzzDecodeIndex(f *testing.F) {
	f.Add(encodeIndex(7, 200, []uint32{64, 100, 150}))
	f.Fuzz(func(t *testing.T, data []byte) {
		end, offsets, err := decodeIndex(data, 7)
		if err == nil && !bytes.Equal(encodeIndex(7, end, offsets), data) && len(data) < 1<<20 {
			// Only the four unused bytes may differ.
			again := encodeIndex(7, end, offsets)
			copy(again[28:32], data[28:32])
			if !bytes.Equal(again, data) {
				t.Fatal("decoded and encoded again it differs")
			}
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add(EncodeState(HardState{NodeID: 1, Term: 2, Vote: 3, Commit: 4, Conf: []byte("x"), ConfIndex: 5}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := DecodeState(data); err == nil && !bytes.Equal(EncodeState(s), data) {
			t.Fatal("decoded and encoded again it differs")
		}
	})
}

// TestGoldenBytes is FORMAT.md's example: the drawing holds.
func TestGoldenBytes(t *testing.T) {
	id := segmentID{seq: 1, first: 1, salt: 0x11223344}
	if id.name() != "00000001-0000000000000001-11223344" {
		t.Fatalf("name %s", id.name())
	}
	rec := make([]byte, recordHeader)
	putRecordHeader(rec, id.seed(), EntryCommand, 2, 1, []byte("hello"))
	rec = append(rec, "hello"...)
	mark := make([]byte, recordHeader)
	putRecordHeader(mark, id.seed(), typeSyncMark, 2, 1, nil)
	doc, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"segment header": encodeSegmentHeader(id, 0, true),
		"record":         rec,
		"sync mark":      mark,
		"index":          encodeIndex(id.seed(), 119, []uint32{64}),
		"state":          EncodeState(HardState{NodeID: 1, Term: 2, Vote: 1, Commit: 1, Conf: []byte{8, 1}}),
	} {
		if dump := dumpHex(b); !strings.Contains(string(doc), dump) {
			t.Errorf("FORMAT.md does not show the %s as it is:\n%s", name, dump)
		}
	}
}

func dumpHex(b []byte) string {
	var s strings.Builder
	for i := 0; i < len(b); i += 16 {
		fmt.Fprintf(&s, "%04x  % x\n", i, b[i:min(i+16, len(b))])
	}
	return s.String()
}

// TestBigLog opens and looks up in a log of 10 million entries, or as many as
// LOGSTORE_BIG says; not run without it.
func TestBigLog(t *testing.T) {
	var n int
	if _, err := fmt.Sscan(os.Getenv("LOGSTORE_BIG"), &n); err != nil {
		t.Skip("LOGSTORE_BIG is not set to a number of entries")
	}
	size := 100
	_, _ = fmt.Sscan(os.Getenv("LOGSTORE_BIG_SIZE"), &size)
	dir := t.TempDir()
	open := func() *FileLogStore {
		begin := time.Now()
		l, err := OpenFile(FileOptions{FS: vfs.Default, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("open %v", time.Since(begin))
		return l
	}
	l := open()
	begin := time.Now()
	data := make([]byte, size)
	batch := make([]Entry, 0, 64)
	for i := uint64(1); i <= uint64(n); i++ {
		batch = append(batch, Entry{Index: i, Term: 1, Type: EntryCommand, Data: data})
		if len(batch) == cap(batch) || i == uint64(n) {
			if err := l.Append(batch); err != nil {
				t.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	t.Logf("append %v", time.Since(begin))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open()
	for _, part := range []int{1, 2, 10, 100} {
		const k = 20000
		begin := time.Now()
		for range k {
			i := 1 + rand.Uint64N(uint64(n/part))
			if e, err := l.Entry(i); err != nil || e.Index != i {
				t.Fatal(err)
			}
		}
		t.Logf("look-up in the first 1/%d: %v each", part, time.Since(begin)/k)
	}
	_ = l.Close()
}

// TestCacheKeepsWhatIsNotApplied: beyond its limit the cache holds what is yet to be
// applied, and no more than maxUnapplied of it.
func TestCacheKeepsWhatIsNotApplied(t *testing.T) {
	const size = 1000
	c := entryCache{limit: 2 * size, applied: 3}
	for i := uint64(1); i <= 10; i++ {
		c.add(Entry{Index: i, Data: make([]byte, size)})
	}
	if first, _ := c.first(); first != 4 {
		t.Fatalf("3 entries are applied, the cache begins at %d", first)
	}
	c.applied = 9
	c.trim()
	if first, _ := c.first(); first != 10 {
		t.Fatalf("9 entries are applied, the cache begins at %d", first)
	}
	huge := make([]byte, maxUnapplied/4) // shared
	for i := uint64(11); i <= 20; i++ {
		c.add(Entry{Index: i, Data: huge})
	}
	if first, _ := c.first(); first != 18 || c.bytes > maxUnapplied {
		t.Fatalf("the cache begins at %d and has %d bytes", first, c.bytes)
	}
}
