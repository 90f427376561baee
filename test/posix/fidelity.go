package posix

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What test/diff has found to differ from ext4, by name.
func init() {
	Operations["MovedListing"] = movedListing
	Operations["XattrNames"] = xattrNames
	Operations["RemoveNoACL"] = removeNoACL
	Operations["SetIDOfRoot"] = setIDOfRoot
	Operations["SetGIDNotExecutable"] = setGIDNotExecutable
	Operations["CapabilityOfDirectory"] = capabilityOfDirectory
	Operations["NoAtime"] = noAtime
	Operations["ListingEnds"] = listingEnds
	Operations["Whiteout"] = whiteout
}

// dotDot is the inode number that a listing gives for "..".
func dotDot(t *testing.T, dir string) uint64 {
	t.Helper()
	fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	defer shut(t, fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	must(t, err)
	for b := buf[:n]; len(b) > 0; {
		d := (*unix.Dirent)(ptr(b))
		if d.Name[0] == '.' && d.Name[1] == '.' && d.Name[2] == 0 {
			return d.Ino
		}
		b = b[d.Reclen:]
	}
	t.Fatalf("%s lists no \"..\"", dir)
	return 0
}

// movedListing: a directory that was listed and then moved has its new parent in the listing.
func movedListing(t *testing.T, dir string) {
	a, b := sub(t, dir, "a"), sub(t, dir, "b")
	sub(t, a, "x")
	sub(t, b, "y")
	for range 2 { // the second listing is the kernel's
		equal(t, "parent", dotDot(t, a+"/x"), lstat(t, a).Ino)
		equal(t, "parent", dotDot(t, b+"/y"), lstat(t, b).Ino)
	}
	must(t, unix.Renameat2(unix.AT_FDCWD, a+"/x", unix.AT_FDCWD, b+"/y", unix.RENAME_EXCHANGE))
	equal(t, "parent after an exchange", dotDot(t, b+"/y"), lstat(t, b).Ino)
	equal(t, "parent after an exchange", dotDot(t, a+"/x"), lstat(t, a).Ino)
	must(t, unix.Rename(b+"/y", a+"/z"))
	equal(t, "parent after a rename", dotDot(t, a+"/z"), lstat(t, a).Ino)
}

// xattrNames: there are four namespaces, and none of them is a name.
func xattrNames(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "")
	for name, errno := range map[string]unix.Errno{
		"user.a": 0, "trusted.a": 0, "security.a": 0, "user.": unix.EINVAL, "trusted.": unix.EINVAL, "security.": unix.EINVAL,
		"nonsense": unix.EOPNOTSUPP, "system.nonsense": unix.EOPNOTSUPP, "os2.a": unix.EOPNOTSUPP,
	} {
		want(t, "set "+name, unix.Setxattr(path, name, []byte("x"), 0), errno)
		_, err := unix.Getxattr(path, name, make([]byte, 10))
		want(t, "get "+name, err, errno)
		want(t, "remove "+name, unix.Removexattr(path, name), errno)
	}
}

// removeNoACL: a file always has an ACL, its mode, so removing one that is not stored is done already.
func removeNoACL(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "")
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		want(t, "remove "+name, unix.Removexattr(path, name), 0)
		want(t, "remove "+name+" of a directory", unix.Removexattr(dir, name), 0)
	}
}

// setIDOfRoot: set-id bits stay when root changes contents, in every way, and go when another user does.
func setIDOfRoot(t *testing.T, dir string) {
	must(t, unix.Chmod(dir, 0o777))
	path, source := filepath.Join(dir, "f"), filepath.Join(dir, "source")
	write(t, path, "contents")
	write(t, source, "source")
	mode := func() uint32 { return lstat(t, path).Mode & 0o7777 }
	must(t, unix.Chmod(path, 0o6777))
	fd, from := open(t, path, unix.O_RDWR, 0), open(t, source, unix.O_RDONLY, 0)
	must(t, unix.Fallocate(fd, 0, 0, 10000))
	equal(t, "mode after fallocate", mode(), 0o6777)
	_, err := unix.CopyFileRange(from, nil, fd, nil, 6, 0)
	must(t, err)
	equal(t, "mode after copy_file_range", mode(), 0o6777)
	must(t, as(t, 1001, 1001, dir, "fallocate -l 20000 f"))
	equal(t, "mode after fallocate of an ordinary user", mode(), 0o777)
}

// setGIDNotExecutable: the set-group-id bit of a file that its group may not execute stays when a member of the group
// writes, and goes when somebody else does.
func setGIDNotExecutable(t *testing.T, dir string) {
	must(t, unix.Chmod(dir, 0o777))
	path := filepath.Join(dir, "f")
	for _, change := range []string{"echo >>f", "echo >f", "truncate -s 100 f", "fallocate -l 20000 f"} {
		write(t, path, "contents")
		must(t, unix.Chown(path, 0, 1001))
		must(t, unix.Chmod(path, 0o2766))
		must(t, as(t, 1002, 1001, dir, change))
		equal(t, "mode after "+change+" by the group", lstat(t, path).Mode&0o7777, 0o2766)
		must(t, as(t, 1003, 1003, dir, change))
		equal(t, "mode after "+change+" by another", lstat(t, path).Mode&0o7777, 0o766)
		must(t, unix.Chmod(path, 0o2766))
		must(t, unix.Chown(path, 1001, 1001))
		equal(t, "mode after chown", lstat(t, path).Mode&0o7777, 0o2766)
		must(t, os.Remove(path))
	}
}

// capabilityOfDirectory: what a directory has of file capabilities means nothing, and stays when its owner changes.
func capabilityOfDirectory(t *testing.T, dir string) {
	must(t, unix.Setxattr(dir, "security.capability", capability, 0))
	must(t, unix.Chown(dir, 1001, 1001))
	_, err := unix.Getxattr(dir, "security.capability", make([]byte, 100))
	want(t, "capability after chown", err, 0)
}

// noAtime: what is read through a descriptor opened with O_NOATIME leaves no trace: contents, listings, copies.
func noAtime(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "contents")
	long := []unix.Timespec{unix.NsecToTimespec(int64(time.Hour)), unix.NsecToTimespec(int64(2 * time.Hour))}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, long, 0))
	fd := open(t, path, unix.O_RDONLY|unix.O_NOATIME, 0)
	to := open(t, filepath.Join(dir, "to"), unix.O_WRONLY|unix.O_CREAT, 0o644)
	_, err := unix.CopyFileRange(fd, nil, to, nil, 5, 0)
	must(t, err)
	_, err = unix.Read(fd, make([]byte, 10))
	must(t, err)
	equal(t, "atime of the file", lstat(t, path).Atim, long[0])

	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir, long, 0))
	fd = open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME, 0)
	_, err = unix.Getdents(fd, make([]byte, 4096))
	must(t, err)
	equal(t, "atime of the directory", lstat(t, dir).Atim, long[0])
}

// listingEnds: a program that changes names for each that it lists comes to the end of the directory, and has met each that stayed once.
func listingEnds(t *testing.T, dir string) {
	const count, most = 200, 2000
	name := func(kind string, i int) string { return fmt.Sprintf("%s%04d%s", kind, i, strings.Repeat("-", 100)) } // some requests for a listing
	made := 0
	fresh := func(path string) string { made++; return filepath.Join(filepath.Dir(path), name("new", made)) }
	for way, change := range map[string]struct {
		stays bool // the name is there before and after
		do    func(path string)
	}{
		"make":    {true, func(path string) { write(t, fresh(path), "") }},
		"replace": {true, func(path string) { other := fresh(path); write(t, other, ""); must(t, os.Rename(other, path)) }},
		"rename":  {false, func(path string) { must(t, os.Rename(path, fresh(path))) }},
		"forth and back": {true, func(path string) {
			other := fresh(path)
			must(t, os.Rename(path, other))
			must(t, os.Rename(other, path))
		}},
		"anew": {false, func(path string) { must(t, os.Remove(path)); write(t, path, "") }},
		"to and fro": {false, func(path string) {
			must(t, os.Rename(path, dir+"/aside"))
			must(t, os.Rename(dir+"/aside", path))
		}},
	} {
		d := sub(t, dir, way)
		for i := range count {
			write(t, filepath.Join(d, name("old", i)), "")
		}
		fd := open(t, d, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		met := map[string]int{}
		buf := make([]byte, 4096)
		for total := 0; ; {
			n, err := unix.Getdents(fd, buf)
			must(t, err)
			if n == 0 {
				break
			}
			_, _, names := unix.ParseDirent(buf[:n], -1, nil)
			for _, name := range names {
				met[name]++
				change.do(filepath.Join(d, name))
			}
			if total += len(names); total > most {
				t.Fatalf("%s: a listing of %d names goes on after %d", way, count, total)
			}
		}
		shut(t, fd)
		for i := range count {
			if n := met[name("old", i)]; change.stays && n != 1 || n == 0 {
				t.Errorf("%s: %s was listed %d times", way, name("old", i), n)
			}
		}
		left, err := os.ReadDir(d)
		must(t, err)
		if way != "make" {
			equal(t, "names after "+way, len(left), count)
		}
	}
}

// whiteout: a rename can leave a device 0:0 in the place of the old name, for overlayfs.
func whiteout(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	renameat := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, at(from), unix.AT_FDCWD, at(to), unix.RENAME_WHITEOUT|flags)
	}
	left := func(name string, gid uint32) {
		t.Helper()
		st := lstat(t, at(name))
		equal(t, "mode of the whiteout", st.Mode, unix.S_IFCHR)
		equal(t, "device of the whiteout", st.Rdev, 0)
		equal(t, "links of the whiteout", st.Nlink, 1)
		equal(t, "group of the whiteout", st.Gid, gid)
	}
	write(t, at("a"), "a")
	write(t, at("b"), "b")
	sub(t, dir, "d")
	sub(t, dir, "d/s")
	must(t, unix.Chown(at("d"), 0, 1001))
	must(t, unix.Chmod(at("d"), 0o2755))
	want(t, "noreplace", renameat("a", "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	want(t, "exchange", renameat("a", "b", unix.RENAME_EXCHANGE), unix.EINVAL)
	want(t, "missing", renameat("x", "b", 0), unix.ENOENT)
	want(t, "over itself", renameat("a", "a", 0), 0)
	equal(t, "still there", content(t, at("a")), "a")
	want(t, "over another", renameat("a", "b", 0), 0)
	left("a", 0)
	equal(t, "renamed", content(t, at("b")), "a")
	want(t, "noreplace", renameat("b", "c", unix.RENAME_NOREPLACE), 0)
	left("b", 0)
	links := lstat(t, at("d")).Nlink
	want(t, "directory, out of one with the set-group-id bit", renameat("d/s", "s", 0), 0)
	left("d/s", 1001)
	equal(t, "links of the parent", lstat(t, at("d")).Nlink, links-1)
	want(t, "whiteout over a whiteout", renameat("a", "b", 0), 0)
	left("a", 0)
	left("b", 0)
	entries, err := os.ReadDir(dir)
	must(t, err)
	names := ""
	for _, e := range entries {
		names += e.Name()
	}
	equal(t, "names", names, "abcds")
	must(t, os.Remove(at("a")))
	must(t, os.Remove(at("d/s")))
	must(t, os.Remove(at("d")))
}
