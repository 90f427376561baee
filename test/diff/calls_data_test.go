package diff

import (
	"bytes"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls on contents.
func init() {
	register(
		&call{name: "open", weight: 60, draw: drawOpen, run: runOpen, show: func(o *op) string {
			return fmt.Sprintf("%q, %s, %#o) -> fd%d", o.path, openFlags(o.flags), o.mode, o.slot) + ""
		}},
		&call{name: "close", weight: 8, draw: onSlot, run: func(s *side, o *op) string {
			if s.fd[o.slot] < 0 {
				return "closed"
			}
			s.close(o.slot)
			return "0"
		}, show: showSlot},
		&call{name: "dup", weight: 3, draw: func(g *generator, o *op) { o.slot, o.slot2 = g.anySlot(), g.anySlot() }, run: func(s *side, o *op) string {
			fd, err := unix.FcntlInt(uintptr(s.fd[o.slot]), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				s.put(o.slot2, fd, s.flags[o.slot])
			}
			return status(err)
		}, show: func(o *op) string { return fmt.Sprintf("fd%d -> fd%d", o.slot, o.slot2) }},
		&call{name: "read", weight: 12, draw: drawIO, run: func(s *side, o *op) string {
			if s.direct(o.slot) {
				return "left out" // the position may not be aligned
			}
			return s.got(unix.Read(s.fd[o.slot], s.buf[:o.n]))
		}, show: showLength},
		&call{name: "pread", weight: 14, draw: drawIO, run: func(s *side, o *op) string {
			off, n := s.aligned(o.slot, o.off, o.n)
			return s.got(unix.Pread(s.fd[o.slot], s.buf[:n], off))
		}, show: showRange},
		&call{name: "write", weight: 14, draw: drawIO, run: func(s *side, o *op) string {
			if s.direct(o.slot) {
				return "left out"
			}
			return result(unix.Write(s.fd[o.slot], s.pattern(o, o.n)))
		}, show: showLength},
		&call{name: "pwrite", weight: 30, draw: drawIO, run: func(s *side, o *op) string {
			off, n := s.aligned(o.slot, o.off, o.n)
			return result(unix.Pwrite(s.fd[o.slot], s.pattern(o, n), off))
		}, show: showRange},
		&call{name: "writev", weight: 5, draw: drawIO, run: func(s *side, o *op) string {
			off, n := s.aligned(o.slot, o.off, o.n)
			b := s.pattern(o, n)
			cut := (n / 3) &^ 4095
			return result(unix.Pwritev2(s.fd[o.slot], [][]byte{b[:cut], b[cut:]}, off, o.flags&unix.RWF_DSYNC))
		}, show: showRange},
		&call{name: "lseek", weight: 8, draw: func(g *generator, o *op) {
			o.slot, o.off, o.flags = g.anySlot(), g.offset(), pick(g, unix.SEEK_SET, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END)
			if o.flags != unix.SEEK_SET && g.one(2) {
				o.off = -o.off
			}
		}, run: func(s *side, o *op) string {
			if s.isDir(o.slot) {
				return "left out" // positions in directories are each filesystem's own
			}
			n, err := unix.Seek(s.fd[o.slot], o.off, o.flags)
			return result(int(n), err)
		}, show: func(o *op) string {
			return fmt.Sprintf("fd%d, %d, %s", o.slot, o.off, [...]string{"SEEK_SET", "SEEK_CUR", "SEEK_END"}[o.flags])
		}},
		&call{name: "seekhole", weight: 8, draw: func(g *generator, o *op) {
			o.slot, o.off, o.flags = g.anySlot(), g.offset(), pick(g, unix.SEEK_DATA, unix.SEEK_HOLE)
		}, run: runSeekHole, show: func(o *op) string {
			return fmt.Sprintf("fd%d, %d, %s", o.slot, o.off, map[int]string{unix.SEEK_DATA: "SEEK_DATA", unix.SEEK_HOLE: "SEEK_HOLE"}[o.flags])
		}},
		&call{name: "truncate", weight: 8, draw: func(g *generator, o *op) { o.path, o.n = g.file(), g.offset() }, run: func(s *side, o *op) string {
			return status(unix.Truncate(o.path, o.n))
		}, show: func(o *op) string { return fmt.Sprintf("%q, %d", o.path, o.n) }},
		&call{name: "ftruncate", weight: 8, draw: func(g *generator, o *op) { o.slot, o.n = g.anySlot(), g.offset() }, run: func(s *side, o *op) string {
			return status(unix.Ftruncate(s.fd[o.slot], o.n))
		}, show: showLength},
		&call{name: "fallocate", weight: 12, draw: func(g *generator, o *op) {
			o.slot, o.off, o.n = g.anySlot(), g.offset(), g.length()
			o.flags = pick(g, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
				unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE,
				unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE,
				unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_UNSHARE_RANGE)
		}, run: func(s *side, o *op) string {
			return status(unix.Fallocate(s.fd[o.slot], uint32(o.flags), o.off, o.n))
		}, show: func(o *op) string {
			return fmt.Sprintf("fd%d, %s, %d, %d", o.slot, bits(o.flags, "0", unix.FALLOC_FL_KEEP_SIZE, "KEEP_SIZE",
				unix.FALLOC_FL_PUNCH_HOLE, "PUNCH_HOLE", unix.FALLOC_FL_ZERO_RANGE, "ZERO_RANGE",
				unix.FALLOC_FL_COLLAPSE_RANGE, "COLLAPSE_RANGE", unix.FALLOC_FL_INSERT_RANGE, "INSERT_RANGE",
				unix.FALLOC_FL_UNSHARE_RANGE, "UNSHARE_RANGE"), o.off, o.n)
		}},
		&call{name: "copy_file_range", weight: 10, draw: drawCopy, run: runCopy, show: showCopy},
		&call{name: "sendfile", weight: 3, draw: drawCopy, run: func(s *side, o *op) string {
			if s.direct(o.slot) || s.direct(o.slot2) {
				return "left out"
			}
			off := o.off
			n, err := unix.Sendfile(s.fd[o.slot2], s.fd[o.slot], &off, int(min(o.n, 60000)))
			return result(n, err)
		}, show: showCopy},
		&call{name: "fsync", weight: 5, draw: func(g *generator, o *op) { o.slot, o.flags = g.anySlot(), g.IntN(4) }, run: func(s *side, o *op) string {
			switch o.flags {
			case 0:
				return status(unix.Fsync(s.fd[o.slot]))
			case 1:
				return status(unix.Fdatasync(s.fd[o.slot]))
			case 2:
				return status(unix.SyncFileRange(s.fd[o.slot], 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER))
			}
			// What is read next comes from the filesystem, not from the page cache.
			if err := unix.Fsync(s.fd[o.slot]); err != nil {
				return errno(err)
			}
			return status(unix.Fadvise(s.fd[o.slot], 0, 0, unix.FADV_DONTNEED))
		}, show: func(o *op) string {
			return fmt.Sprintf("fd%d), by (%s", o.slot, [...]string{"fsync", "fdatasync", "sync_file_range", "fsync, FADV_DONTNEED"}[o.flags])
		}},
		&call{name: "mmap", weight: 10, draw: func(g *generator, o *op) {
			drawIO(g, o)
			o.flags = g.IntN(4)
		}, run: runMmap, show: func(o *op) string {
			return fmt.Sprintf("fd%d, %d, %d): (%s", o.slot, o.off, o.n, [...]string{"read", "write", "write, msync", "private write"}[o.flags])
		}},
	)
}

func onSlot(g *generator, o *op) { o.slot = g.anySlot() }
func drawIO(g *generator, o *op) {
	o.slot, o.off, o.n = g.anySlot(), g.offset(), g.length()
	if g.one(8) {
		o.flags = unix.RWF_DSYNC
	}
}
func showSlot(o *op) string   { return fmt.Sprintf("fd%d", o.slot) }
func showLength(o *op) string { return fmt.Sprintf("fd%d, %d", o.slot, o.n) }
func showRange(o *op) string  { return fmt.Sprintf("fd%d, %d bytes at %d", o.slot, o.n, o.off) }

func drawOpen(g *generator, o *op) {
	o.slot, o.mode = g.anySlot(), g.perm()
	o.flags = pick(g, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR, unix.O_RDWR)
	o.path = g.file()
	if g.one(2) {
		o.flags |= unix.O_CREAT
		if g.one(2) {
			o.path = g.fresh()
		}
		g.madeFile(o.path)
		if g.one(5) {
			o.flags |= unix.O_EXCL
		}
	}
	for _, f := range []struct{ flag, one int }{
		{unix.O_TRUNC, 10}, {unix.O_APPEND, 10}, {unix.O_NOFOLLOW, 10}, {unix.O_DIRECTORY, 20}, {unix.O_SYNC, 40}, {unix.O_DSYNC, 40},
		{unix.O_DIRECT, 12}, {unix.O_NOATIME, 20}, {unix.O_PATH, 20},
	} {
		if g.one(f.one) {
			o.flags |= f.flag
		}
	}
	if g.one(15) {
		o.path, o.flags = g.dir(), o.flags&(unix.O_ACCMODE|unix.O_EXCL)|unix.O_TMPFILE
	}
	if o.flags&unix.O_APPEND != 0 {
		o.flags &^= unix.O_DIRECT // the end need not be aligned
	}
	o.flags |= unix.O_NONBLOCK // a fifo
}

func runOpen(s *side, o *op) string {
	fd, err := unix.Open(o.path, o.flags|unix.O_CLOEXEC, o.mode)
	if err == nil {
		s.put(o.slot, fd, o.flags)
	}
	return status(err)
}

func (s *side) got(n int, err error) string {
	if err != nil {
		return errno(err)
	}
	return fmt.Sprintf("%d: %s", n, digest(s.buf[:max(0, n)]))
}

func (s *side) fstat(slot int) (st unix.Stat_t, err error) {
	err = unix.Fstat(s.fd[slot], &st)
	return st, err
}

func (s *side) isDir(slot int) bool {
	st, err := s.fstat(slot)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// runSeekHole asks for data or a hole. Where they are is the filesystem's to say, within rules: the answer must not leave
// out data, nor lie outside of the file.
func runSeekHole(s *side, o *op) string {
	st, err := s.fstat(o.slot)
	if err != nil {
		return errno(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "left out"
	}
	before, err := unix.Seek(s.fd[o.slot], 0, unix.SEEK_CUR)
	if err != nil {
		return errno(err)
	}
	at, err := unix.Seek(s.fd[o.slot], o.off, o.flags)
	if _, err := unix.Seek(s.fd[o.slot], before, unix.SEEK_SET); err != nil {
		return "back: " + errno(err)
	}
	skipped := at // data must not begin before
	switch {
	case err == unix.ENXIO && o.flags == unix.SEEK_DATA && o.off >= 0 && o.off < st.Size:
		skipped = st.Size
	case err != nil:
		return errno(err)
	case at < o.off, at > st.Size, at == st.Size && o.flags == unix.SEEK_DATA:
		return fmt.Sprintf("%d is not in %d..%d", at, o.off, st.Size)
	case o.flags == unix.SEEK_HOLE:
		return "0"
	}
	for off := o.off; off < skipped && !s.direct(o.slot); {
		n, err := unix.Pread(s.fd[o.slot], s.buf[:min(arena, skipped-off)], off)
		if err != nil || n == 0 || skipped-off > arena {
			break // not open for reading, or huge
		}
		if i := bytes.IndexFunc(s.buf[:n], func(r rune) bool { return r != 0 }); i >= 0 {
			return fmt.Sprintf("%d skips data at %d", skipped, off+int64(i))
		}
		off += int64(n)
	}
	return "0"
}

func drawCopy(g *generator, o *op) {
	o.slot, o.slot2, o.off, o.off2, o.n = g.anySlot(), g.anySlot(), g.place(), g.place(), g.length()
	if g.one(3) { // whole blocks
		o.off, o.off2, o.n = o.off&^4095, o.off2&^4095, (o.n+4095)&^4095
	}
}

func runCopy(s *side, o *op) string {
	if s.direct(o.slot) || s.direct(o.slot2) {
		return "left out" // not aligned
	}
	in, out := o.off, o.off2
	n, err := unix.CopyFileRange(s.fd[o.slot], &in, s.fd[o.slot2], &out, int(o.n), 0)
	if err == nil && (in != o.off+int64(n) || out != o.off2+int64(n)) {
		return fmt.Sprintf("%d, but offsets %d and %d", n, in, out)
	}
	return result(n, err)
}

func showCopy(o *op) string {
	return fmt.Sprintf("from fd%d at %d, to fd%d at %d, %d bytes", o.slot, o.off, o.slot2, o.off2, o.n)
}

// runMmap maps a part of a file, never beyond its last page, and reads or writes it.
func runMmap(s *side, o *op) string {
	st, err := s.fstat(o.slot)
	if err != nil {
		return errno(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "left out"
	}
	off := max(0, o.off) &^ 4095
	n := min(o.n, st.Size-off)
	if n <= 0 {
		return "empty"
	}
	prot, how := unix.PROT_READ, unix.MAP_SHARED
	if o.flags > 0 {
		prot |= unix.PROT_WRITE
	}
	if o.flags == 3 {
		how = unix.MAP_PRIVATE
	}
	m, err := unix.Mmap(s.fd[o.slot], off, int(n), prot, how)
	if err != nil {
		return errno(err)
	}
	defer unix.Munmap(m)
	before := digest(m)
	if o.flags > 0 {
		copy(m, s.pattern(o, n))
	}
	if o.flags == 2 {
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return "msync: " + errno(err)
		}
	}
	// What lies in the last page beyond the end reads as zeros.
	if tail := int(n) % 4096; tail != 0 && off+n == st.Size {
		page := unsafe.Slice(unsafe.SliceData(m), (int(n)+4095)&^4095)
		if i := bytes.IndexFunc(page[n:], func(r rune) bool { return r != 0 }); i >= 0 {
			return fmt.Sprintf("a byte beyond the end is not 0: %d", int(n)+i)
		}
	}
	return before
}
