package diff

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// The calls on names.
func init() {
	register(
		&call{name: "mkdir", weight: 14, draw: func(g *generator, o *op) {
			o.path, o.mode = g.fresh(), pick[uint32](g, 0o755, 0o777, 0o777, 0o2777, 0o1777, 0o700)
			g.madeDir(o.path)
		}, run: func(s *side, o *op) string { return status(unix.Mkdir(o.path, o.mode)) }, show: showMode},
		&call{name: "rmdir", weight: 5, draw: func(g *generator, o *op) { o.path = g.path() },
			run: func(s *side, o *op) string { return status(unix.Rmdir(o.path)) }, show: showPath},
		&call{name: "unlink", weight: 12, draw: func(g *generator, o *op) { o.path = g.path() },
			run: func(s *side, o *op) string { return status(unix.Unlink(o.path)) }, show: showPath},
		&call{name: "rename", weight: 20, draw: func(g *generator, o *op) {
			o.path, o.path2 = g.path(), g.fresh()
			if g.one(2) {
				o.path2 = g.path()
			}
			o.flags = pick(g, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT)
			g.madeFile(o.path2)
		}, run: func(s *side, o *op) string {
			return status(unix.Renameat2(unix.AT_FDCWD, o.path, unix.AT_FDCWD, o.path2, uint(o.flags)))
		}, show: func(o *op) string {
			return fmt.Sprintf("%q, %q, %s", o.path, o.path2, bits(o.flags, "0", unix.RENAME_NOREPLACE, "NOREPLACE",
				unix.RENAME_EXCHANGE, "EXCHANGE", unix.RENAME_WHITEOUT, "WHITEOUT"))
		}},
		&call{name: "link", weight: 12, draw: func(g *generator, o *op) {
			o.path, o.path2, o.flags = g.path(), g.fresh(), pick(g, 0, 0, unix.AT_SYMLINK_FOLLOW)
			g.madeFile(o.path2)
		}, run: func(s *side, o *op) string {
			return status(unix.Linkat(unix.AT_FDCWD, o.path, unix.AT_FDCWD, o.path2, o.flags))
		}, show: func(o *op) string {
			return fmt.Sprintf("%q, %q, %s", o.path, o.path2, bits(o.flags, "0", unix.AT_SYMLINK_FOLLOW, "AT_SYMLINK_FOLLOW"))
		}},
		&call{name: "linkfd", weight: 6, draw: func(g *generator, o *op) {
			o.slot, o.path2 = g.anySlot(), g.fresh()
			g.madeFile(o.path2)
		}, run: func(s *side, o *op) string {
			return status(unix.Linkat(s.fd[o.slot], "", unix.AT_FDCWD, o.path2, unix.AT_EMPTY_PATH))
		}, show: func(o *op) string { return fmt.Sprintf("fd%d, %q", o.slot, o.path2) }},
		&call{name: "symlink", weight: 8, draw: func(g *generator, o *op) {
			o.path2 = pick(g, g.path(), pick(g, g.names...), "../"+pick(g, g.names...), ".", "..", "/", strings.Repeat("x", 200), strings.Repeat("./", 1000))
			o.path = g.fresh()
			g.madeFile(o.path)
		}, run: func(s *side, o *op) string { return status(unix.Symlink(o.path2, o.path)) }, show: func(o *op) string {
			return fmt.Sprintf("%q, %q", o.path2, o.path)
		}},
		&call{name: "readlink", weight: 4, draw: func(g *generator, o *op) { o.path = g.file() }, run: func(s *side, o *op) string {
			return s.got(unix.Readlink(o.path, s.buf[:5000]))
		}, show: showPath},
		&call{name: "mknod", weight: 6, draw: func(g *generator, o *op) {
			o.path = g.fresh()
			o.mode = pick[uint32](g, unix.S_IFIFO, unix.S_IFIFO, unix.S_IFREG, unix.S_IFSOCK, unix.S_IFCHR) | g.perm()&0o777
			if o.mode&unix.S_IFMT == unix.S_IFCHR {
				o.off = int64(unix.Mkdev(1, 3)) // null
			}
			g.madeFile(o.path)
		}, run: func(s *side, o *op) string { return status(unix.Mknod(o.path, o.mode, int(o.off))) }, show: func(o *op) string {
			return fmt.Sprintf("%q, %#o, %d", o.path, o.mode, o.off)
		}},
		&call{name: "chdir", weight: 3, draw: func(g *generator, o *op) { o.path = g.dir() },
			run: func(s *side, o *op) string { return status(unix.Chdir(o.path)) }, show: showPath},
		&call{name: "umask", weight: 2, draw: func(g *generator, o *op) { o.mode = pick[uint32](g, 0o22, 0, 0o77, 0o27, 0o777) },
			run: func(s *side, o *op) string { return fmt.Sprintf("%#o", unix.Umask(int(o.mode))) }, show: func(o *op) string { return fmt.Sprintf("%#o", o.mode) }},
		&call{name: "readdir", weight: 6, draw: func(g *generator, o *op) { o.path = g.dir() }, run: func(s *side, o *op) string {
			fd, err := unix.Open(o.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return errno(err)
			}
			defer unix.Close(fd)
			list, err := s.list(fd)
			if err != nil {
				return errno(err)
			}
			lines := []string{fmt.Sprint(len(list))}
			for _, e := range list {
				lines = append(lines, fmt.Sprintf("%q %s", e.name, kindOf(uint32(e.typ)<<12)))
			}
			return strings.Join(lines, "\n")
		}, show: showPath},
		&call{name: "handle", weight: 3, draw: func(g *generator, o *op) {
			o.path, o.path2, o.flags = g.path(), "", g.IntN(3)
		}, run: runHandle, show: func(o *op) string {
			return fmt.Sprintf("%q): name_to_handle_at, %sopen_by_handle_at(", o.path, [...]string{"", "unlink, ", "rename to \"/moved\", "}[o.flags])
		}},
	)
}

func showPath(o *op) string { return fmt.Sprintf("%q", o.path) }
func showMode(o *op) string { return fmt.Sprintf("%q, %#o", o.path, o.mode) }

type entry struct {
	name string
	ino  uint64
	typ  byte
}

// list reads a directory with getdents64, from its beginning, sorted by name.
func (s *side) list(fd int) ([]entry, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	buf := make([]byte, 8192)
	var list []entry
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			length := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := bytes.Cut(b[19:length], []byte{0})
			list = append(list, entry{string(name), binary.NativeEndian.Uint64(b), b[18]})
			b = b[length:]
		}
	}
	sort.Slice(list, func(i, k int) bool { return list[i].name < list[k].name })
	return list, nil
}

// kindOf names the type of a file.
func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	}
	return fmt.Sprintf("type %#o", mode&unix.S_IFMT)
}

// runHandle finds a file again by its handle, also after its name has gone or changed.
func runHandle(s *side, o *op) string {
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, o.path, 0)
	if err != nil {
		return errno(err)
	}
	var st, again unix.Stat_t
	if err := unix.Lstat(o.path, &st); err != nil {
		return errno(err)
	}
	var step error
	switch o.flags {
	case 1:
		step = unix.Unlink(o.path)
	case 2:
		step = unix.Rename(o.path, "/moved")
	}
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	defer unix.Close(root)
	fd, err := unix.OpenByHandleAt(root, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return status(step) + ", " + errno(err)
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &again); err != nil {
		return status(step) + ", " + errno(err)
	}
	return fmt.Sprintf("%s, the same: %t", status(step), st.Ino == again.Ino && st.Mode == again.Mode)
}
