package vde

import (
	"sync"

	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

// firstCookie is the cookie of the first entry of a directory; those below stand for "." and "..".
const firstCookie = 3

// file is what files in use share: the lock on ranges of their blocks.
type file struct {
	lock rangelock.BlockRangeLock
	refs int // guarded by its shard's mu
}

// fileTable holds the files that somebody reads or writes at the moment.
type fileTable struct {
	shards [16]struct {
		mu    sync.Mutex
		files map[meta.Ino]*file // guarded by mu
	}
}

// use returns the file of an inode; every use is followed by one done.
func (t *fileTable) use(ino meta.Ino) *file {
	s := &t.shards[uint64(ino)%uint64(len(t.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[ino]
	if f == nil {
		if s.files == nil {
			s.files = map[meta.Ino]*file{}
		}
		f = &file{}
		s.files[ino] = f
	}
	f.refs++
	return f
}

func (t *fileTable) done(ino meta.Ino, f *file) {
	s := &t.shards[uint64(ino)%uint64(len(t.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.refs--; f.refs == 0 {
		delete(s.files, ino)
	}
}
