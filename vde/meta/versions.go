package meta

import (
	"hash/maphash"
	"sync"
	"time"
)

// A table in memory keeps every version of a key until it is flushed, and Pebble steps over all of them to tell that a key is
// gone, or what stands before or behind it. A lock file that is made and removed again and again, or a file that grows
// by small writes, would take longer with each turn, up to milliseconds: 32 MiB have room for a hundred thousand versions. So the table is
// flushed as soon as it has many versions of one key; a flush keeps the newest.

const (
	// versionLimit is how many versions of a key a table may have before a flush is asked for. It is where the steps over them
	// cost about as much as the flush.
	versionLimit = 512
	// versionSlots is the number of counters that the keys share. Keys that differ reach the limit by chance only when a table
	// is full anyway.
	versionSlots = 4096
	// versionPause is how many times as long as it took such a flush is not repeated.
	versionPause = 9
)

// versions counts changes of keys since the table in memory was begun, roughly: keys share counters.
type versions struct {
	seed maphash.Seed

	mu      sync.Mutex
	counts  [versionSlots]uint16 // guarded by mu
	asked   bool                 // a flush was asked for and has not ended; guarded by mu
	resumes time.Time            // no flush is asked for before; guarded by mu
}

func newVersions() *versions { return &versions{seed: maphash.MakeSeed()} }

// slot names the counter of a key.
func (v *versions) slot(key []byte) uint16 {
	return uint16(maphash.Bytes(v.seed, key) % versionSlots)
}

// add counts changes that were committed, by the slots of their keys, and tells whether a flush is due, which the caller begins. It is not
// due again before ended was called.
func (v *versions) add(slots []uint16, now time.Time) (flush bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range slots {
		if v.counts[s] < versionLimit {
			v.counts[s]++
		}
		flush = flush || v.counts[s] == versionLimit
	}
	if flush = flush && !v.asked && !now.Before(v.resumes); flush {
		v.asked = true
		clear(v.counts[:])
	}
	return flush
}

// ended notes that a flush has ended, whoever asked for it, and how long it took.
func (v *versions) ended(now time.Time, took time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = false
	v.resumes = now.Add(versionPause * took)
}
