package recode

import (
	"strings"
	"time"

	"vdefs/vde/meta"
)

// place is where a file has its name.
type place struct {
	parent meta.Ino
	name   string
}

const suffix = ".png"

// isPNG tells whether a name is that of a candidate.
func isPNG(name string) bool {
	return len(name) >= len(suffix) && strings.EqualFold(name[len(name)-len(suffix):], suffix)
}

const modeType, modeRegular = 0o170000, 0o100000

func regular(in *meta.Inode) bool { return in.Mode&modeType == modeRegular }

// Bounds of what is remembered, in files. What falls out (any of them) is at worst not re-encoded.
const (
	maxNames = 1 << 16
	maxDirty = 1 << 16
	maxKept  = 1 << 16
	maxQueue = 1 << 18
)

// put puts something into a map of bounded size.
func put[K comparable, V any](m map[K]V, key K, value V, limit int) {
	if _, ok := m[key]; !ok && len(m) >= limit {
		for old := range m {
			delete(m, old)
			break
		}
	}
	m[key] = value
}

// Named notes the name of a candidate.
func (r *Recoder) Named(parent meta.Ino, name string, in *meta.Inode) {
	if !isPNG(name) || !regular(in) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.names[in.Ino]; ok && old.parent == parent && old.name == name {
		return
	}
	put(r.names, in.Ino, place{parent, strings.Clone(name)}, maxNames)
}

// Renamed makes a file that got the name of a PNG a candidate.
func (r *Recoder) Renamed(parent meta.Ino, name string, in *meta.Inode) {
	if !regular(in) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !isPNG(name) {
		delete(r.names, in.Ino)
		return
	}
	put(r.names, in.Ino, place{parent, strings.Clone(name)}, maxNames)
	r.enqueueLocked(in.Ino)
}

// Wrote notes that a file was written.
func (r *Recoder) Wrote(ino meta.Ino) {
	r.mu.Lock()
	if _, dirty := r.dirty[ino]; !dirty {
		put(r.dirty, ino, struct{}{}, maxDirty)
		r.noteLocked(ino)
	}
	r.mu.Unlock()
}

// Closed makes a file that was written a candidate.
func (r *Recoder) Closed(ino meta.Ino) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, dirty := r.dirty[ino]
	_, waiting := r.waiting[ino]
	p, prepared := r.prepared[ino]
	delete(r.dirty, ino)
	delete(r.waiting, ino)
	switch {
	case prepared:
		delete(r.prepared, ino)
		r.preparedBytes -= len(p.made)
		r.swaps = append(r.swaps, p)
		wake(r.swapWake)
	case dirty || waiting:
		r.enqueueLocked(ino)
	}
}

// job is one candidate in the queue.
type job struct {
	ino meta.Ino
	seq uint64    // of its latest entry in Recoder.order: earlier ones are void
	due time.Time // not to be looked at before
}

// enqueueLocked puts a candidate at the end of the queue; mu is held.
func (r *Recoder) enqueueLocked(ino meta.Ino) {
	if _, named := r.names[ino]; !named || r.mount == nil {
		return
	}
	if _, queued := r.queued[ino]; !queued && len(r.queued) >= maxQueue || len(r.order) >= 4*maxQueue {
		r.skipLocked(skipQueue)
		return
	}
	r.seq++
	r.noteLocked(ino)
	r.queued[ino] = job{ino, r.seq, time.Now().Add(r.options.Delay)}
	r.order = append(r.order, r.queued[ino])
	wake(r.wake)
}

// next takes the next candidate that is due. Without one it tells how long to wait for the first, 0 if there is none.
func (r *Recoder) next() (ino meta.Ino, wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.order) > 0 {
		first := r.order[0]
		if r.queued[first.ino].seq == first.seq {
			if wait = time.Until(first.due); wait > 0 {
				return 0, wait, false
			}
			delete(r.queued, first.ino)
			ok = true
		}
		r.order = r.order[1:]
		if ok {
			wake(r.wake) // there may be more, for another worker
			return first.ino, 0, true
		}
	}
	r.order = nil
	return 0, 0, false
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
