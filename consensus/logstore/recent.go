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
	entries []Entry // consecutive, up to the end of the log
}

func (c *entryCache) add(e Entry) {
	if c.limit <= 0 {
		return
	}
	c.entries = append(c.entries, e)
	c.bytes += len(e.Data) + recordHeader
	c.trim()
}

// trim forgets the first entries until the limit is kept.
func (c *entryCache) trim() {
	for c.bytes > c.limit && (c.entries[0].Index <= c.applied || c.bytes > maxUnapplied) {
		c.bytes -= len(c.entries[0].Data) + recordHeader
		c.entries[0] = Entry{}
		c.entries = c.entries[1:]
	}
}

// first is the index from which on entries are cached, ok whether there are any.
func (c *entryCache) first() (index uint64, ok bool) {
	if len(c.entries) == 0 {
		return 0, false
	}
	return c.entries[0].Index, true
}

func (c *entryCache) get(index uint64) (Entry, bool) {
	if first, ok := c.first(); !ok || index < first || index-first >= uint64(len(c.entries)) {
		return Entry{}, false
	}
	return c.entries[index-c.entries[0].Index], true
}

// truncate forgets the entries from index on.
func (c *entryCache) truncate(index uint64) {
	for n := len(c.entries); n > 0 && c.entries[n-1].Index >= index; n-- {
		c.bytes -= len(c.entries[n-1].Data) + recordHeader
		c.entries[n-1] = Entry{}
		c.entries = c.entries[:n-1]
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
