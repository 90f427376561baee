package replica

import (
	"sync"

	"vdefs/vde/meta"
)

// Watcher is told what happens to files, by the calls that do it: it must be quick and must not call back.
type Watcher interface {
	// Named: the inode is known under a name (it was looked up, listed, made or linked). Renamed: it got that name
	// by a rename.
	Named(parent meta.Ino, name string, in *meta.Inode)
	Renamed(parent meta.Ino, name string, in *meta.Inode)
	// Wrote: its contents changed.
	Wrote(ino meta.Ino)
	// Closed: nobody has it open any more.
	Closed(ino meta.Ino)
}

// watchers passes events on to the one watcher there may be.
type watchers struct {
	mu sync.RWMutex
	w  Watcher // guarded by mu
}

// Watch sets who is told of events; nil: nobody.
func (v *Volume) Watch(w Watcher) {
	v.watch.mu.Lock()
	v.watch.w = w
	v.watch.mu.Unlock()
}

func (s *watchers) get() Watcher {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.w
}

func (s *watchers) named(parent meta.Ino, name string, in *meta.Inode) {
	if w := s.get(); w != nil && in.Ino != 0 {
		w.Named(parent, name, in)
	}
}

func (s *watchers) renamed(parent meta.Ino, name string, in *meta.Inode) {
	if w := s.get(); w != nil {
		w.Renamed(parent, name, in)
	}
}

func (s *watchers) wrote(ino meta.Ino) {
	if w := s.get(); w != nil {
		w.Wrote(ino)
	}
}

func (s *watchers) closed(ino meta.Ino) {
	if w := s.get(); w != nil {
		w.Closed(ino)
	}
}
