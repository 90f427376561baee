package diff

import (
	"encoding/hex"
	"fmt"
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// The look at a whole tree.
func init() {
	register(&call{name: "tree", draw: nil, run: runTree, show: func(o *op) string { return [...]string{"", "after syncfs"}[o.flags] }})
}

// walk is one look at a tree.
type walk struct {
	side  *side
	sync  bool              // everything was written back
	first map[uint64]string // the first name of each inode
	lines []string
}

// runTree tells everything of every file below the root of the thread, sorted by path, one property a line.
func runTree(s *side, o *op) string {
	w := &walk{side: s, sync: o.flags == 1, first: map[uint64]string{}}
	if w.sync {
		root, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return errno(err)
		}
		err = unix.Syncfs(root)
		unix.Close(root)
		if err != nil {
			return "syncfs: " + errno(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat("/", &st); err != nil {
		return errno(err)
	}
	w.visit("/", &st)
	return strings.Join(w.lines, "\n")
}

func (w *walk) add(p, format string, arguments ...any) {
	w.lines = append(w.lines, fmt.Sprintf("%q: ", p)+fmt.Sprintf(format, arguments...))
}

func (w *walk) visit(p string, st *unix.Stat_t) {
	for _, line := range strings.Split(describe(st), "\n") {
		w.add(p, "%s", line)
	}
	if first := w.first[st.Ino]; first != "" {
		w.add(p, "the same as %q", first)
		return
	}
	w.first[st.Ino] = p
	w.xattrs(p)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		n, err := unix.Readlink(p, w.side.buf[:5000])
		w.add(p, "target %s", w.side.got(n, err))
		if int64(n) != st.Size {
			w.add(p, "the size is not that of the target")
		}
	case unix.S_IFREG:
		w.contents(p, st)
	case unix.S_IFDIR:
		w.directory(p)
	}
}

func (w *walk) xattrs(p string) {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		w.add(p, "listxattr: %s", errno(err))
		return
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	sort.Strings(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(p, name, buf)
		if err != nil {
			w.add(p, "xattr %s: %s", name, errno(err))
			continue
		}
		w.add(p, "xattr %s = %s", name, hex.EncodeToString(buf[:n]))
	}
}

// contents tells what is in a file: the pages that are not zeros.
func (w *walk) contents(p string, st *unix.Stat_t) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		w.add(p, "open: %s", errno(err))
		return
	}
	// Closed before blocks are asked for: with its writeback cache the kernel counts them anew then (docs/KNOWN.md).
	pages := w.pages(p, fd, st.Size)
	unix.Close(fd)
	if w.sync && pages >= 0 && unix.Lstat(p, st) == nil {
		if st.Blocks*512 < pages*page {
			w.add(p, "%d blocks do not hold %d pages", st.Blocks, pages)
		}
		w.add(p, "blocks %d", st.Blocks)
	}
}

const page = 4096

// pages tells the pages of a file that are not zeros, and counts them; -1: the file could not be read.
func (w *walk) pages(p string, fd int, fileSize int64) (pages int64) {
	for off := int64(0); off < fileSize; {
		at, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			w.add(p, "lseek: %s", errno(err))
			return -1
		}
		off = at &^ (page - 1)
		n, err := unix.Pread(fd, w.side.buf[:min(256<<10, fileSize-off)], off)
		if err != nil || n == 0 {
			w.add(p, "read at %d of %d: %s", off, fileSize, result(n, err))
			return -1
		}
		for b := w.side.buf[:n]; len(b) > 0; {
			size := min(page, len(b))
			if zeros(b[:size]) {
				b, off = b[size:], off+int64(size)
				continue
			}
			w.add(p, "page %d: %s", off/page, digest(b[:size]))
			pages++
			b, off = b[size:], off+int64(size)
		}
	}
	return pages
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func (w *walk) directory(p string) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		w.add(p, "open: %s", errno(err))
		return
	}
	list, err := w.side.list(fd)
	unix.Close(fd)
	if err != nil {
		w.add(p, "getdents: %s", errno(err))
		return
	}
	last := ""
	for _, e := range list {
		if e.name == last {
			w.add(p, "%q is listed twice", e.name)
		}
		last = e.name
		child := path.Join(p, e.name)
		var st unix.Stat_t
		if err := unix.Lstat(p+"/"+e.name, &st); err != nil {
			w.add(child, "listed, but lstat: %s", errno(err))
			continue
		}
		if uint32(e.typ)<<12 != st.Mode&unix.S_IFMT || e.ino != st.Ino && !(p == "/" && e.name == "..") {
			w.add(child, "getdents tells type %#o and inode %d, lstat %#o and %d", uint32(e.typ)<<12, e.ino, st.Mode&unix.S_IFMT, st.Ino)
		}
		if e.name != "." && e.name != ".." {
			w.visit(child, &st)
		}
	}
}
