package logstore

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// uncacheMin is how many bytes are synced before the kernel is asked to forget them.
const uncacheMin = 1 << 20

// uncache has the kernel forget what was synced, up to an offset: nobody reads it but followers that are far behind, and memory
// that is used again is much faster than memory that is new, above all in a virtual machine that has to ask its host for it. Best
// effort. syncMu is held.
func (s *segment) uncache(end int64) {
	end &^= 4095
	if fd := s.file.Fd(); fd != vfs.InvalidFd && end-s.uncached >= uncacheMin {
		_ = unix.Fadvise(int(fd), s.uncached, end-s.uncached, unix.FADV_DONTNEED) // only a hint
		s.uncached = end
	}
}
