package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"
)

// The suite runs on every implementation. A harness makes an empty log and, where
// the log lives in files, opens it again.
type harness struct {
	open func() (LogStore, error)
	// reopens: what was appended is there again after Close and open.
	reopens bool
	// exact: CompactTo gives up exactly what it is allowed to.
	exact bool
}

var implementations = map[string]func() harness{
	"memory": func() harness {
		return harness{open: func() (LogStore, error) { return NewMemory(), nil }, exact: true}
	},
	"file": func() harness { return fileHarness(DefaultSegmentSize, 0) },
	// Segments of a kilobyte hold a handful of entries: every path over their borders.
	"file/small": func() harness { return fileHarness(1<<10, 0) },
	"file/cache": func() harness { return fileHarness(1<<10, 700) },
}

func fileHarness(segment int64, cache int) harness {
	fs := vfs.NewCrashableMem()
	return harness{
		open: func() (LogStore, error) {
			return OpenFile(FileOptions{FS: fs, Dir: "log", SegmentSize: segment, CacheBytes: cache})
		},
		reopens: true,
	}
}

func eachImplementation(t *testing.T, f func(t *testing.T, h harness)) {
	t.Parallel()
	for name, make := range implementations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, make())
		})
	}
}

// tooLong is what no log takes. It is shared, as the race detector makes it dear.
var tooLong = sync.OnceValue(func() []byte { return make([]byte, MaxDataSize+1) })

func mustOpen(t *testing.T, h harness) LogStore {
	t.Helper()
	l, err := h.open()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func entry(index, term uint64) Entry {
	return Entry{Index: index, Term: term, Type: EntryCommand, Data: []byte(fmt.Sprintf("command %d of term %d", index, term))}
}

func fill(t *testing.T, l LogStore, lo, hi, term uint64) {
	t.Helper()
	for i := lo; i <= hi; i++ {
		if err := l.Append([]Entry{entry(i, term)}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSuiteEmpty(t *testing.T) {
	eachImplementation(t, func(t *testing.T, h harness) {
		l := mustOpen(t, h)
		if l.FirstIndex() != 1 || l.LastIndex() != 0 || l.LastTerm() != 0 || l.DurableIndex() != 0 {
			t.Fatalf("an empty log is %d..%d, term %d, durable %d", l.FirstIndex(), l.LastIndex(), l.LastTerm(), l.DurableIndex())
		}
		if term, err := l.Term(0); term != 0 || err != nil {
			t.Fatalf("Term(0) = %d, %v", term, err)
		}
		if _, err := l.Entry(1); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Entry(1) = %v", err)
		}
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := l.TruncateFrom(1); err != nil {
			t.Fatal(err)
		}
		if err := l.Append([]Entry{entry(2, 1)}); err == nil {
			t.Fatal("a gap was appended")
		}
		if err := l.Append([]Entry{{Index: 1, Term: 1, Type: 99}}); err == nil {
			t.Fatal("an unknown type was appended")
		}
		if err := l.Append([]Entry{{Index: 1, Term: 1, Type: EntryCommand, Data: tooLong()}}); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("a huge entry: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.Append([]Entry{entry(1, 1)}); !errors.Is(err, ErrClosed) {
			t.Fatalf("append after close: %v", err)
		}
	})
}

// TestSuiteTail: giving up what Tail says leaves at least as many bytes as asked for.
func TestSuiteTail(t *testing.T) {
	eachImplementation(t, func(t *testing.T, h harness) {
		l := mustOpen(t, h)
		defer l.Close()
		fill(t, l, 1, 500, 1)
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if h.reopens {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, h)
			defer l.Close()
		}
		for _, keep := range []int64{1 << 40, 20_000, 3_000, 100, 1} {
			at := l.Tail(keep)
			if keep > 1<<30 && at != l.FirstIndex()-1 {
				t.Fatalf("Tail(%d) = %d, the log starts at %d", keep, at, l.FirstIndex())
			}
			if err := l.CompactTo(at); err != nil {
				t.Fatal(err)
			}
			first, left := l.FirstIndex(), int64(0)
			for i := first; i <= 500; i++ {
				left += recordSize(len(entry(i, 1).Data))
			}
			// The sync mark behind the last entry counts as well.
			if first > 1 && (left+recordHeader < keep || h.exact && left > keep+100) {
				t.Fatalf("Tail(%d) = %d leaves %d bytes", keep, at, left)
			}
			if first != at+1 {
				t.Fatalf("Tail(%d) = %d, CompactTo gave up to %d", keep, at, first-1)
			}
		}
	})
}

func TestSuiteReset(t *testing.T) {
	eachImplementation(t, func(t *testing.T, h harness) {
		l := mustOpen(t, h)
		fill(t, l, 1, 60, 3)
		for _, at := range []uint64{100, 40} { // forwards and, as after a restored store, backwards
			if err := l.Reset(at, 7); err != nil {
				t.Fatal(err)
			}
			if l.FirstIndex() != at+1 || l.LastIndex() != at || l.LastTerm() != 7 || l.DurableIndex() != at {
				t.Fatalf("after Reset(%d): %d..%d term %d durable %d", at, l.FirstIndex(), l.LastIndex(), l.LastTerm(), l.DurableIndex())
			}
			if _, err := l.Entry(at); !errors.Is(err, ErrCompacted) {
				t.Fatalf("Entry(%d) = %v", at, err)
			}
			fill(t, l, at+1, at+30, 8)
		}
		if h.reopens {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, h)
		}
		if l.FirstIndex() != 41 || l.LastIndex() != 70 {
			t.Fatalf("log is %d..%d", l.FirstIndex(), l.LastIndex())
		}
		if term, err := l.Term(40); term != 7 || err != nil {
			t.Fatalf("Term(40) = %d, %v", term, err)
		}
	})
}

func TestSuiteSizes(t *testing.T) {
	eachImplementation(t, func(t *testing.T, h harness) {
		l := mustOpen(t, h)
		sizes := []int{0, 1, 5, 1000, directWrite - 1, directWrite, directWrite + 1, 100_000, 1<<20 + 1, 7}
		var es []Entry
		for i, n := range sizes {
			data := bytes.Repeat([]byte{byte(i + 1)}, n)
			es = append(es, Entry{Index: uint64(i + 1), Term: 1, Type: EntryCommand, Data: data})
		}
		if err := l.Append(es[:5]); err != nil {
			t.Fatal(err)
		}
		if err := l.Append(es[5:]); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, err := l.Entries(nil, 1, uint64(len(sizes))+1, 1<<40)
			if err != nil {
				t.Fatal(err)
			}
			sameEntries(t, got, es)
			if !h.reopens {
				break
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, h)
		}
		got, err := l.Entries(nil, 4, 11, 1000+directWrite)
		if err != nil {
			t.Fatal(err)
		}
		sameEntries(t, got, es[3:5])
		got, err = l.Entries(nil, 9, 11, 0)
		if err != nil || len(got) != 1 {
			t.Fatalf("%d entries, %v: at least one is due", len(got), err)
		}
	})
}

func sameEntries(t interface {
	Helper()
	Fatalf(string, ...any)
}, got, want []Entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d", len(got), len(want))
	}
	for i := range got {
		if g, w := got[i], want[i]; g.Index != w.Index || g.Term != w.Term || g.Type != w.Type || !bytes.Equal(g.Data, w.Data) {
			t.Fatalf("entry %d/%d has %d bytes, want %d/%d with %d bytes", g.Term, g.Index, len(g.Data), w.Term, w.Index, len(w.Data))
		}
	}
}

// TestSuiteModel drives a log with random calls beside a slice that does the same.
func TestSuiteModel(t *testing.T) {
	t.Parallel()
	for name, newHarness := range implementations {
		if name == "file" {
			// What counts is that there are few segments: a sync writes zeros ahead, and an open
			// reads them, by the size of a segment.
			newHarness = func() harness { return fileHarness(256<<10, 0) }
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				h := newHarness()
				l, err := h.open()
				if err != nil {
					t.Fatal(err)
				}
				m := &model{}
				fatal := func(what string, err error) {
					if err != nil {
						t.Fatalf("%s: %v", what, err)
					}
				}
				t.Repeat(map[string]func(*rapid.T){
					"append": func(t *rapid.T) {
						es := m.next(rapid.IntRange(1, 8).Draw(t, "n"), rapid.Bool().Draw(t, "new term"), func() int {
							return rapid.SampledFrom([]int{0, 1, 20, 300, 1200, 9000}).Draw(t, "size")
						})
						fatal("append", l.Append(es))
						m.entries = append(m.entries, es...)
					},
					"truncate": func(t *rapid.T) {
						at := rapid.Uint64Range(l.FirstIndex(), m.last()+2).Draw(t, "at")
						fatal("truncate", l.TruncateFrom(at))
						m.truncate(at)
					},
					"compact": func(t *rapid.T) {
						at := rapid.Uint64Range(m.base, m.last()).Draw(t, "at")
						fatal("compact", l.CompactTo(at))
						first := l.FirstIndex()
						if first > at+1 && first > m.base+1 || h.exact && first != at+1 {
							t.Fatalf("compacted to %d, the log starts at %d", at, first)
						}
						m.compact(first)
					},
					"sync": func(t *rapid.T) {
						fatal("sync", l.Sync())
						if l.DurableIndex() != m.last() {
							t.Fatalf("durable %d after a sync at %d", l.DurableIndex(), m.last())
						}
					},
					"reopen": func(t *rapid.T) {
						if !h.reopens {
							t.Skip()
						}
						fatal("close", l.Close())
						l, err = h.open()
						fatal("open", err)
					},
					"": func(t *rapid.T) { m.check(t, l) },
				})
				fatal("close", l.Close())
			})
		})
	}
}

// model is what a log should be.
type model struct {
	base, baseTerm uint64
	entries        []Entry
	term           uint64
}

func (m *model) last() uint64 { return m.base + uint64(len(m.entries)) }

func (m *model) next(n int, newTerm bool, size func() int) []Entry {
	if newTerm || m.term == 0 {
		m.term++
	}
	var es []Entry
	for i := range n {
		index := m.last() + 1 + uint64(i)
		data := bytes.Repeat([]byte{byte(index*7 + m.term)}, size())
		es = append(es, Entry{Index: index, Term: m.term, Type: EntryCommand, Data: data})
	}
	return es
}

func (m *model) truncate(at uint64) {
	if at <= m.last() {
		m.entries = append([]Entry(nil), m.entries[:at-m.base-1]...)
	}
}

func (m *model) compact(first uint64) {
	if n := first - 1 - m.base; n > 0 {
		m.baseTerm = m.entries[n-1].Term
		m.entries = m.entries[n:]
		m.base += n
	}
}

func (m *model) check(t *rapid.T, l LogStore) {
	lastTerm := m.baseTerm
	if n := len(m.entries); n > 0 {
		lastTerm = m.entries[n-1].Term
	}
	if l.FirstIndex() != m.base+1 || l.LastIndex() != m.last() || l.LastTerm() != lastTerm {
		t.Fatalf("log is %d..%d with last term %d, want %d..%d with %d", l.FirstIndex(), l.LastIndex(), l.LastTerm(), m.base+1, m.last(), lastTerm)
	}
	if d := l.DurableIndex(); d > m.last() {
		t.Fatalf("durable %d, last %d", d, m.last())
	}
	for i := m.base; i <= m.last(); i++ {
		want := m.baseTerm
		if i > m.base {
			want = m.entries[i-m.base-1].Term
		}
		if term, err := l.Term(i); err != nil || term != want {
			t.Fatalf("Term(%d) = %d, %v, want %d", i, term, err, want)
		}
	}
	if len(m.entries) == 0 {
		return
	}
	lo := rapid.Uint64Range(m.base+1, m.last()).Draw(t, "lo")
	hi := rapid.Uint64Range(lo+1, m.last()+1).Draw(t, "hi")
	limit := rapid.SampledFrom([]uint64{0, 500, 5000, 1 << 40}).Draw(t, "limit")
	got, err := l.Entries(nil, lo, hi, limit)
	if err != nil {
		t.Fatalf("Entries(%d, %d): %v", lo, hi, err)
	}
	if len(got) == 0 || len(got) > int(hi-lo) || limit == 1<<40 && len(got) < int(hi-lo) {
		t.Fatalf("Entries(%d, %d, %d) returned %d", lo, hi, limit, len(got))
	}
	sameEntries(t, got, m.entries[lo-m.base-1:][:len(got)])
	size := 0
	for _, e := range got[1:] {
		size += len(e.Data)
	}
	if size += len(got[0].Data); len(got) > 1 && uint64(size) > limit {
		t.Fatalf("Entries(%d, %d, %d) returned %d bytes", lo, hi, limit, size)
	}
}
