package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// realTree is a tree of real files: the source of the Go library, some 10,000 files.
func realTree(t *testing.T) string {
	t.Helper()
	output, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(output)), "src")
}

// makeZoo fills a directory with one of each: the kinds of files and attributes that copying tools get wrong.
func makeZoo(t *testing.T, dir string) {
	t.Helper()
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	try(os.Mkdir(dir, 0o755))
	write(t, path("empty"), nil)
	write(t, path("one byte"), []byte("x"))
	write(t, path("block"), bytes.Repeat([]byte("b"), 4096))
	write(t, path("block and one"), bytes.Repeat([]byte("c"), 4097))
	write(t, path("new\nline, ünïcödé and \xff\xfe"), []byte("names are bytes"))
	write(t, path(strings.Repeat("n", 255)), []byte("the longest name"))
	for _, mode := range []uint32{0, 0o400, 0o4755, 0o2755, 0o6711, 0o1777, 0o777} {
		name := path(fmt.Sprintf("mode %o", mode))
		write(t, name, []byte("#!/bin/true\n"))
		try(unix.Chmod(name, mode))
	}
	try(os.Chown(path("block"), 12345, 54321))
	try(unix.Mkfifo(path("fifo"), 0o640))
	try(unix.Mknod(path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	try(os.Symlink("empty", path("link")))
	try(os.Symlink("nowhere/"+strings.Repeat("x/", 1000), path("dangling link")))
	try(os.Lchown(path("link"), 7, 8))
	try(os.Link(path("block"), path("hard link")))
	try(os.MkdirAll(path("deep/"+strings.Repeat("d/", 100)), 0o755))
	try(os.Link(path("block"), path("deep/d/d/hard link too")))
	try(os.Mkdir(path("sticky"), 0o755))
	try(unix.Chmod(path("sticky"), 0o1777))
	try(os.Mkdir(path("setgid"), 0o755))
	try(unix.Chmod(path("setgid"), 0o2775))
	write(t, path("sparse"), nil)
	try(os.Truncate(path("sparse"), 300<<20))
	f, err := os.OpenFile(path("sparse"), os.O_WRONLY, 0)
	try(err)
	_, err = f.WriteAt([]byte("an island"), 200<<20)
	try(err)
	try(f.Close())
	try(xattr.Set(path("one byte"), "user.comment", []byte("an attribute")))
	try(xattr.Set(path("setgid"), "user.big", bytes.Repeat([]byte("v"), 1000)))
	for name, stamp := range map[string]time.Time{
		"one byte": time.Unix(1, 1), "block": time.Unix(1_700_000_000, 999_999_999), "empty": time.Date(2100, 1, 2, 3, 4, 5, 6, time.UTC),
		"mode 400": time.Date(1950, 6, 1, 0, 0, 0, 500, time.UTC), "sticky": time.Unix(1_000_000_000, 123_456_789),
	} {
		try(os.Chtimes(path(name), stamp, stamp))
	}
	stamp := []unix.Timespec{{Sec: 1234, Nsec: 5678}, {Sec: 1234, Nsec: 5678}}
	try(unix.UtimesNanoAt(unix.AT_FDCWD, path("link"), stamp, unix.AT_SYMLINK_NOFOLLOW))
}

// Trees of thousands of files, copied in by the usual tools, come out as they went in.
func TestCopyTrees(t *testing.T) {
	need(t, "cp", "tar", "rsync")
	source := t.TempDir()
	// Without the commands, the largest part: the rest is more than 7,000 files.
	line := fmt.Sprintf("cp -a %s %s/src && rm -rf %s/src/cmd", realTree(t), source, source)
	if output, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, output)
	}
	makeZoo(t, filepath.Join(source, "zoo"))

	// With cp the .png files are made smaller as by default: they are compared by their pixels.
	for _, tool := range []struct{ name, png, line string }{
		{"cp", "async", "cp -a $SRC $MNT/copy"},
		{"tar", "off", "mkdir $MNT/copy && tar -C $SRC --xattrs --xattrs-include='*' -cSf - . | tar -C $MNT/copy --xattrs --xattrs-include='*' -xpSf -"},
		{"rsync", "off", "rsync -aHAXS --numeric-ids $SRC/ $MNT/copy && test -z \"$(rsync -aHAXS --numeric-ids --checksum --itemize-changes $SRC/ $MNT/copy)\""},
	} {
		t.Run(tool.name, func(t *testing.T) {
			d := mounted(t, "2G", "png="+tool.png)
			start := time.Now()
			d.sh(tool.line, "SRC="+source)
			copied := time.Since(start)
			files := compareTrees(t, source, d.path("copy"), tool.png != "off")
			if files < 5000 {
				t.Errorf("the tree has %d files only", files)
			}
			d.remount("ro")
			compareTrees(t, source, d.path("copy"), tool.png != "off")
			t.Logf("%d files in %.1f s", files, copied.Seconds())
			d.remount()
			d.sh("rm -rf $MNT/copy")
			if left, err := os.ReadDir(d.mnt); err != nil || len(left) > 0 {
				t.Errorf("after rm -rf: %v, %v", left, err)
			}
		})
	}
}

// A sparse file takes the room of its data alone.
func TestSparse(t *testing.T) {
	d := mounted(t, "64M")
	f, err := os.Create(d.path("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("end"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(d.path("sparse"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 1<<40+3 || st.Blocks*512 > 64<<10 {
		t.Errorf("size %d, %d bytes used", st.Size, st.Blocks*512)
	}
	if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || at > 1<<40 || at < 1<<40-1<<20 {
		t.Errorf("SEEK_DATA: %d, %v", at, err)
	}
}
