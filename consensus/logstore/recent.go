package logstore

import "sort"

// termIndex knows the terms of a log's last entries, as the runs of entries with
// the same term. Terms never decrease along a log, so there are few runs.
//
// Invariant: runs are sorted by first, strictly; each reaches to the next one's
// first, the last one to the end of the log.
type termIndex struct {
	runs []termRun
}

type termRun struct{ first, term uint64 }

// reset makes the index know only that the entry before first has prevTerm.
func (t *termIndex) reset(first, prevTerm uint64) {
	t.runs = append(t.runs[:0], termRun{first - 1, prevTerm})
}

// add notes the next entry.
func (t *termIndex) add(index, term uint64) {
	if n := len(t.runs); n == 0 || t.runs[n-1].term != term {
		t.runs = append(t.runs, termRun{index, term})
	}
}

// get returns the term of an entry that is not behind the end of the log.
func (t *termIndex) get(index uint64) (term uint64, ok bool) {
	i := sort.Search(len(t.runs), func(i int) bool { return t.runs[i].first > index })
	if i == 0 {
		return 0, false
	}
	return t.runs[i-1].term, true
}

// truncate forgets the entries from index on; the one before has prevTerm.
func (t *termIndex) truncate(index, prevTerm uint64) {
	n := sort.Search(len(t.runs), func(i int) bool { return t.runs[i].first >= index })
	t.runs = t.runs[:n]
	if n == 0 {
		t.reset(index, prevTerm)
	}
}

// compact forgets what is below first-1, whose term is prevTerm.
func (t *termIndex) compact(first, prevTerm uint64) {
	n := sort.Search(len(t.runs), func(i int) bool { return t.runs[i].first >= first })
	if n == 0 || t.runs[n-1].first == first-1 {
		t.runs = t.runs[max(n-1, 0):]
		return
	}
	// The run that reaches over first-1 now starts there.
	t.runs = t.runs[n-1:]
	t.runs[0] = termRun{first - 1, prevTerm}
}

// maxUnapplied bounds what a cache holds beyond its limit, in bytes.
const maxUnapplied = 64 << 20

// entryCache holds the last entries of a log, up to a number of bytes: more, up to
// maxUnapplied, only of entries that have yet to be applied, which are read for sure.
type entryCache struct {
	limit   int
	bytes   int
	applied uint64
	// buf[head:] are the cached entries: consecutive, up to the end of the log. What is
	// before head was forgotten, and its place is used again.
	buf  []Entry
	head int
}

// entries are the cached ones.
func (c *entryCache) entries() []Entry { return c.buf[c.head:] }

func (c *entryCache) add(e Entry) {
	if c.limit <= 0 {
		return
	}
	if len(c.buf) == cap(c.buf) && c.head > len(c.buf)/2 {
		n := copy(c.buf, c.entries())
		clear(c.buf[n:])
		c.buf, c.head = c.buf[:n], 0
	}
	c.buf = append(c.buf, e)
	c.bytes += len(e.Data) + recordHeader
	c.trim()
}

// trim forgets the first entries until the limit is kept.
func (c *entryCache) trim() {
	for c.bytes > c.limit && (c.buf[c.head].Index <= c.applied || c.bytes > maxUnapplied) {
		c.bytes -= len(c.buf[c.head].Data) + recordHeader
		c.buf[c.head] = Entry{}
		c.head++
	}
}

// first is the index from which on entries are cached, ok whether there are any.
func (c *entryCache) first() (index uint64, ok bool) {
	if es := c.entries(); len(es) > 0 {
		return es[0].Index, true
	}
	return 0, false
}

func (c *entryCache) get(index uint64) (Entry, bool) {
	es := c.entries()
	if len(es) == 0 || index < es[0].Index || index-es[0].Index >= uint64(len(es)) {
		return Entry{}, false
	}
	return es[index-es[0].Index], true
}

// truncate forgets the entries from index on.
func (c *entryCache) truncate(index uint64) {
	for n := len(c.buf); n > c.head && c.buf[n-1].Index >= index; n-- {
		c.bytes -= len(c.buf[n-1].Data) + recordHeader
		c.buf[n-1] = Entry{}
		c.buf = c.buf[:n-1]
	}
}

// SetCacheBytes changes FileOptions.CacheBytes from now on. Entries after applied stay
// in memory beyond that, see SetApplied.
func (l *FileLogStore) SetCacheBytes(n int, applied uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cache.limit, l.cache.applied = n, applied
	l.cache.trim()
}

// SetApplied tells that the entries up to index have been read by who applies them.
// Where there is a cache it keeps those behind, up to 64 MiB of them.
func (l *FileLogStore) SetApplied(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cache.applied = index
	l.cache.trim()
}
