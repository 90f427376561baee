package posix

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	Operations["Attributes"] = attributes
	Operations["Rename"] = rename
	Operations["RenameOver"] = renameOver
	Operations["Removed"] = removed
	Operations["Tmpfile"] = tmpfile
	Operations["Names"] = names
	Operations["SpecialFiles"] = specialFiles
	Operations["ListWhileChanging"] = listWhileChanging
	Operations["ListTypes"] = listTypes
	Operations["SetgidDirectory"] = setgidDirectory
	Operations["FileHandles"] = fileHandles
	Operations["ManyLinks"] = manyLinks
}

// attributes follows link counts and times through operations: whatever the kernel has cached has to be right.
func attributes(t *testing.T, dir string) {
	d, e := sub(t, dir, "d"), sub(t, dir, "e")
	f := filepath.Join(d, "f")
	write(t, f, "x")
	// Each step names what has to be newer afterwards; of everything else the times stay.
	steps := []struct {
		name  string
		do    func() error
		newer []string          // mtime and ctime
		ctime []string          // ctime only
		links map[string]uint64 // link counts afterwards
	}{
		{name: "create", do: func() error { return os.WriteFile(filepath.Join(d, "g"), nil, 0o644) }, newer: []string{d}, links: map[string]uint64{d: 2}},
		{name: "mkdir", do: func() error { return os.Mkdir(filepath.Join(d, "s"), 0o755) }, newer: []string{d}, links: map[string]uint64{d: 3}},
		{name: "symlink", do: func() error { return os.Symlink("f", filepath.Join(d, "l")) }, newer: []string{d}, links: map[string]uint64{d: 3}},
		{name: "link", do: func() error { return os.Link(f, filepath.Join(e, "h")) }, newer: []string{e}, ctime: []string{f}, links: map[string]uint64{f: 2}},
		{name: "chmod", do: func() error { return os.Chmod(f, 0o600) }, ctime: []string{f}},
		{name: "chmod dir", do: func() error { return os.Chmod(d, 0o700) }, ctime: []string{d}},
		{name: "chown", do: func() error { return os.Chown(f, 1, 1) }, ctime: []string{f}},
		{name: "setxattr", do: func() error { return unix.Setxattr(f, "user.a", []byte("1"), 0) }, ctime: []string{f}},
		{name: "setxattr dir", do: func() error { return unix.Setxattr(d, "user.a", []byte("1"), 0) }, ctime: []string{d}},
		{name: "removexattr", do: func() error { return unix.Removexattr(f, "user.a") }, ctime: []string{f}},
		{name: "write", do: func() error { return os.WriteFile(f, []byte("longer"), 0o644) }, newer: []string{f}},
		{name: "truncate", do: func() error { return os.Truncate(f, 2) }, newer: []string{f}},
		{name: "extend", do: func() error { return os.Truncate(f, 100000) }, newer: []string{f}},
		{name: "rename within", do: func() error { return os.Rename(filepath.Join(d, "g"), filepath.Join(d, "g2")) }, newer: []string{d}},
		{name: "rename across", do: func() error { return os.Rename(filepath.Join(d, "g2"), filepath.Join(e, "g")) }, newer: []string{d, e}},
		{name: "rename directory across", do: func() error { return os.Rename(filepath.Join(d, "s"), filepath.Join(e, "s")) }, newer: []string{d, e},
			links: map[string]uint64{d: 2, e: 3}},
		{name: "unlink", do: func() error { return os.Remove(filepath.Join(e, "h")) }, newer: []string{e}, ctime: []string{f}, links: map[string]uint64{f: 1}},
		{name: "rmdir", do: func() error { return os.Remove(filepath.Join(e, "s")) }, newer: []string{e}, links: map[string]uint64{e: 2}},
		{name: "open", do: func() error {
			file, err := os.Open(f)
			if err == nil {
				err = file.Close()
			}
			return err
		}},
	}
	watched := []string{d, e, f}
	for _, step := range steps {
		before := map[string]*unix.Stat_t{}
		for _, path := range watched {
			before[path] = lstat(t, path)
		}
		// The kernel's clock for times of files ticks every 1 to 10 ms. (Not nanosleep(2): the runtime's signals cut it short.)
		time.Sleep(12 * time.Millisecond)
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		for _, path := range watched {
			was, is := before[path], lstat(t, path)
			what := fmt.Sprintf("%s: %s", step.name, filepath.Base(path))
			newer := slices.Contains(step.newer, path)
			equal(t, what+" has a newer mtime", is.Mtim.Nano() > was.Mtim.Nano(), newer)
			equal(t, what+" has a newer ctime", is.Ctim.Nano() > was.Ctim.Nano(), newer || slices.Contains(step.ctime, path))
			if n, ok := step.links[path]; ok {
				equal(t, what+" links", uint64(is.Nlink), n)
			}
		}
	}
	equal(t, "size", lstat(t, f).Size, 100000)
}

func rename(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	file := func(name string) { write(t, at(name), name) }
	renameat := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, at(from), unix.AT_FDCWD, at(to), flags)
	}
	file("a")
	file("b")
	sub(t, dir, "d")
	sub(t, dir, "d/s")
	sub(t, dir, "empty")
	want(t, "noreplace over a file", renameat("a", "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	want(t, "noreplace", renameat("a", "c", unix.RENAME_NOREPLACE), 0)
	want(t, "exchange with nothing", renameat("c", "x", unix.RENAME_EXCHANGE), unix.ENOENT)
	want(t, "exchange", renameat("c", "b", unix.RENAME_EXCHANGE), 0)
	equal(t, "exchanged", content(t, at("b"))+content(t, at("c")), "ab")
	want(t, "exchange with a directory", renameat("c", "empty", unix.RENAME_EXCHANGE), 0)
	equal(t, "exchanged with a directory", content(t, at("empty")), "b")
	want(t, "exchange back", renameat("c", "empty", unix.RENAME_EXCHANGE), 0)
	want(t, "both flags", renameat("c", "b", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
	want(t, "unknown flag", renameat("c", "b", 1<<10), unix.EINVAL)
	want(t, "into itself", renameat("d", "d/s/x", 0), unix.EINVAL)
	want(t, "exchange with a parent", renameat("d/s", "d", unix.RENAME_EXCHANGE), unix.EINVAL)
	want(t, "directory over file", renameat("d", "b", 0), unix.ENOTDIR)
	want(t, "file over directory", renameat("b", "empty", 0), unix.EISDIR)
	want(t, "over a full directory", renameat("empty", "d", 0), unix.ENOTEMPTY)
	want(t, "missing", renameat("nothing", "b", 0), unix.ENOENT)
	want(t, "directory over empty one", renameat("d", "empty", 0), 0)
	want(t, "over itself", renameat("b", "b", 0), 0)
	must(t, os.Link(at("b"), at("b2")))
	want(t, "over another name of it", renameat("b", "b2", 0), 0)
	equal(t, "still two names", lstat(t, at("b")).Nlink, 2)
	_, err := os.Lstat(at("d"))
	want(t, "old name", err, unix.ENOENT)
	// A directory that moved knows its new parent.
	must(t, renameat("empty/s", "moved", 0))
	parent := lstat(t, at("moved/.."))
	equal(t, "..", parent.Ino, lstat(t, dir).Ino)
}

// renameOver is what happens to a file that is open, and one that only a path descriptor knows, when another takes its name.
func renameOver(t *testing.T, dir string) {
	old, fresh := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	write(t, old, "old")
	opened := open(t, old, unix.O_RDONLY, 0)
	path := open(t, old, unix.O_PATH, 0)
	write(t, fresh, "new")
	must(t, os.Rename(fresh, old))
	equal(t, "new content", content(t, old), "new")
	var st unix.Stat_t
	must(t, unix.Fstat(opened, &st))
	equal(t, "links of the replaced file", st.Nlink, 0)
	buf := make([]byte, 10)
	n, err := unix.Pread(opened, buf, 0)
	must(t, err)
	equal(t, "content of the replaced file", string(buf[:n]), "old")
	shut(t, opened)
	equal(t, "reopened", content(t, fmt.Sprintf("/proc/self/fd/%d", path)), "old")
}

// removed is what stays of things without a name.
func removed(t *testing.T, dir string) {
	file, d := filepath.Join(dir, "f"), sub(t, dir, "d")
	write(t, file, "content")
	path, dirFD := open(t, file, unix.O_PATH, 0), open(t, d, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, os.Remove(file))
	must(t, os.Remove(d))
	var st unix.Stat_t
	must(t, unix.Fstat(path, &st))
	equal(t, "links of the file", st.Nlink, 0)
	equal(t, "size of the file", st.Size, 7)
	reopened := fmt.Sprintf("/proc/self/fd/%d", path)
	equal(t, "content", content(t, reopened), "content")
	write(t, reopened, "changed")
	must(t, os.Chmod(reopened, 0o600))
	equal(t, "changed content", content(t, reopened), "changed")
	must(t, unix.Fstat(path, &st))
	equal(t, "changed mode", st.Mode&0o777, 0o600)
	want(t, "a new name", unix.Linkat(unix.AT_FDCWD, reopened, unix.AT_FDCWD, filepath.Join(dir, "again"), unix.AT_SYMLINK_FOLLOW), unix.ENOENT)

	must(t, unix.Fstat(dirFD, &st))
	equal(t, "links of the directory", st.Nlink, 0)
	n, err := unix.ReadDirent(dirFD, make([]byte, 4096))
	equal(t, "entries", unixEntries(n, err), "none")
	_, err = unix.Openat(dirFD, "x", unix.O_CREAT|unix.O_RDWR, 0o644)
	want(t, "create in it", err, unix.ENOENT)
	want(t, "mkdir in it", unix.Mkdirat(dirFD, "x", 0o755), unix.ENOENT)
	must(t, unix.Fchmod(dirFD, 0o700))
	must(t, unix.Fsync(dirFD))
}

// unixEntries tells what a getdents on a removed directory gave: nothing, or ENOENT.
func unixEntries(n int, err error) string {
	if n <= 0 && (err == nil || err == unix.ENOENT) {
		return "none"
	}
	return fmt.Sprint(n, err)
}

func tmpfile(t *testing.T, dir string) {
	fd := open(t, dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	_, err := unix.Write(fd, []byte("hidden"))
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	equal(t, "links", st.Nlink, 0)
	entries, err := os.ReadDir(dir)
	must(t, err)
	equal(t, "entries", len(entries), 0)
	proc, name := fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(dir, "named")
	times := []unix.Timespec{{Sec: 1000}, {Sec: 2000, Nsec: 7}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, proc, times, 0))
	must(t, unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW))
	named := lstat(t, name)
	equal(t, "links", named.Nlink, 1)
	equal(t, "mtime", named.Mtim, times[1])
	equal(t, "mode", named.Mode&0o777, 0o640)
	shut(t, fd)
	equal(t, "content", content(t, name), "hidden")
	must(t, os.Remove(name))
	excl := open(t, dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o640)
	want(t, "name for O_EXCL", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", excl), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
}

func names(t *testing.T, dir string) {
	long := strings.Repeat("n", 255)
	for _, name := range []string{long, "\xff\xfe", "a\nb", " ", "...", strings.Repeat("ü", 127)} {
		path := filepath.Join(dir, name)
		write(t, path, name)
		equal(t, "content", content(t, path), name)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	equal(t, "entries", len(entries), 6)
	_, err = os.Lstat(filepath.Join(dir, long+"n"))
	want(t, "256 bytes", err, unix.ENAMETOOLONG)
	want(t, "256 bytes", os.Mkdir(filepath.Join(dir, long+"n"), 0o755), unix.ENAMETOOLONG)
	target := strings.Repeat("t/", 2047) + "t"
	must(t, os.Symlink(target, filepath.Join(dir, "link")))
	got, err := os.Readlink(filepath.Join(dir, "link"))
	must(t, err)
	equal(t, "target", got == target, true)
	equal(t, "size of a symlink", lstat(t, filepath.Join(dir, "link")).Size, 4095)
	_, err = unix.Open(filepath.Join(dir, "link"), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	want(t, "O_NOFOLLOW", err, unix.ELOOP)
	_, err = os.Lstat(filepath.Join(dir, long, "below"))
	want(t, "below a file", err, unix.ENOTDIR)
	// A name that was looked up and not found is found when it is there.
	late := filepath.Join(dir, "late")
	_, err = os.Lstat(late)
	want(t, "before", err, unix.ENOENT)
	write(t, late, "")
	lstat(t, late)
	must(t, os.Remove(late))
	_, err = os.Lstat(late)
	want(t, "after", err, unix.ENOENT)
}

func specialFiles(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "char": unix.S_IFCHR, "block": unix.S_IFBLK, "file": unix.S_IFREG} {
		dev := 0
		if mode == unix.S_IFCHR || mode == unix.S_IFBLK {
			dev = int(unix.Mkdev(0xabc, 0x12345))
		}
		must(t, unix.Mknod(at(name), mode|0o600, dev))
		st := lstat(t, at(name))
		equal(t, name+" mode", st.Mode, mode|0o600)
		equal(t, name+" rdev", st.Rdev, uint64(dev))
	}
	must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	write(t, at("null"), "gone")
	equal(t, "null device", content(t, at("null")), "")
	done := make(chan string, 1)
	go func() {
		data, _ := os.ReadFile(at("fifo"))
		done <- string(data)
	}()
	must(t, os.WriteFile(at("fifo"), []byte("through"), 0))
	equal(t, "fifo", <-done, "through")

	must(t, os.Remove(at("socket")))
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(listener)
	must(t, unix.Bind(listener, &unix.SockaddrUnix{Name: at("socket")}))
	must(t, unix.Listen(listener, 1))
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(client)
	must(t, unix.Connect(client, &unix.SockaddrUnix{Name: at("socket")}))
}

// listWhileChanging reads a large directory in small pieces while half of it is removed and more is added: what stays has to
// be seen once, and seeking back has to find the same.
func listWhileChanging(t *testing.T, dir string) {
	const count = 250
	for i := range count {
		write(t, filepath.Join(dir, fmt.Sprintf("stays%d", i)), "")
		write(t, filepath.Join(dir, fmt.Sprintf("goes%d", i)), "")
	}
	fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	seen := map[string]int{}
	buf := make([]byte, 2048)
	changed := 0
	for {
		n, err := unix.ReadDirent(fd, buf)
		must(t, err)
		if n == 0 {
			break
		}
		_, _, found := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range found {
			seen[name]++
		}
		for range 20 {
			if changed < count {
				must(t, os.Remove(filepath.Join(dir, fmt.Sprintf("goes%d", changed))))
				write(t, filepath.Join(dir, fmt.Sprintf("new%d", changed)), "")
				changed++
			}
		}
	}
	for i := range count {
		equal(t, fmt.Sprintf("stays%d seen", i), seen[fmt.Sprintf("stays%d", i)], 1)
	}
	for name, n := range seen {
		if n > 1 {
			t.Errorf("%s seen %d times", name, n)
		}
	}
	if t.Failed() {
		return
	}
	// telldir and seekdir: the place after some entry leads to the same entry again.
	_, err := unix.Seek(fd, 0, 0)
	must(t, err)
	n, err := unix.ReadDirent(fd, buf)
	must(t, err)
	_, _, first := unix.ParseDirent(buf[:n], -1, nil)
	place, err := unix.Seek(fd, 0, 1)
	must(t, err)
	n, err = unix.ReadDirent(fd, buf)
	must(t, err)
	_, _, second := unix.ParseDirent(buf[:n], -1, nil)
	_, err = unix.Seek(fd, place, 0)
	must(t, err)
	n, err = unix.ReadDirent(fd, buf)
	must(t, err)
	_, _, again := unix.ParseDirent(buf[:n], -1, nil)
	equal(t, "entry after seekdir", again[0], second[0])
	equal(t, "entries differ", first[0] != second[0], true)
	must(t, os.RemoveAll(dir))
}

// listTypes checks d_type and d_ino against stat, with a listing that comes with attributes and one that does not.
func listTypes(t *testing.T, dir string) {
	write(t, filepath.Join(dir, "file"), "")
	sub(t, dir, "dir")
	must(t, os.Symlink("file", filepath.Join(dir, "link")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for range 3 {
		fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		buf := make([]byte, 4096)
		n, err := unix.ReadDirent(fd, buf)
		must(t, err)
		found := 0
		for buf = buf[:n]; len(buf) > 0; {
			ino := *(*uint64)(ptr(buf))
			length := int(buf[16]) | int(buf[17])<<8
			name := strings.TrimRight(string(buf[19:length]), "\x00")
			name, _, _ = strings.Cut(name, "\x00")
			if name != ".." { // at the root of a mount it is another one's
				st := lstat(t, filepath.Join(dir, name))
				equal(t, name+" d_ino", ino, st.Ino)
				equal(t, name+" d_type", uint32(buf[18])<<12, st.Mode&unix.S_IFMT)
			}
			found++
			buf = buf[length:]
		}
		equal(t, "entries", found, 6)
	}
}

func setgidDirectory(t *testing.T, dir string) {
	d := sub(t, dir, "d")
	must(t, os.Chown(d, 0, 4242))
	must(t, unix.Chmod(d, 0o2775))
	write(t, filepath.Join(d, "f"), "")
	sub(t, d, "s")
	equal(t, "group of a file", lstat(t, filepath.Join(d, "f")).Gid, 4242)
	st := lstat(t, filepath.Join(d, "s"))
	equal(t, "group of a directory", st.Gid, 4242)
	equal(t, "setgid of a directory", st.Mode&unix.S_ISGID, unix.S_ISGID)
	must(t, unix.Chmod(d, 0o777))
	must(t, as(t, 1234, 1234, d, "umask 027; : > mine; mkdir dir"))
	st = lstat(t, filepath.Join(d, "mine"))
	equal(t, "mode with a umask", st.Mode&0o7777, 0o640)
	equal(t, "owner", st.Uid, 1234)
	equal(t, "directory with a umask", lstat(t, filepath.Join(d, "dir")).Mode&0o777, 0o750)
	must(t, unix.Chmod(d, 0o1777))
	if as(t, 1235, 1235, d, "rm -f mine") == nil {
		t.Error("the sticky bit does not keep others from removing")
	}
}

// fileHandles opens by handle, also after the kernel has dropped what it can.
func fileHandles(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "by handle")
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
	must(t, err)
	mount := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	read := func() error {
		fd, err := unix.OpenByHandleAt(mount, handle, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		buf := make([]byte, 20)
		n, err := unix.Read(fd, buf)
		must(t, err)
		equal(t, "content", string(buf[:n]), "by handle")
		return nil
	}
	must(t, read())
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	must(t, read())
	must(t, os.Remove(path))
	// The kernel may hold the inode for the name that it had by handle; dropping it is best effort.
	for tries := 0; tries < 20 && err == nil; tries++ {
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
		err = read()
	}
	want(t, "after the end", err, unix.ESTALE)
}

func manyLinks(t *testing.T, dir string) {
	first := filepath.Join(dir, "0")
	write(t, first, "one")
	const count = 150
	for i := 1; i < count; i++ {
		must(t, os.Link(first, filepath.Join(dir, fmt.Sprint(i))))
	}
	equal(t, "links", lstat(t, first).Nlink, count)
	must(t, os.Remove(first))
	last := filepath.Join(dir, fmt.Sprint(count-1))
	equal(t, "links", lstat(t, last).Nlink, count-1)
	equal(t, "content", content(t, last), "one")
	want(t, "link to a directory", os.Link(dir, filepath.Join(dir, "d")), unix.EPERM)
}
