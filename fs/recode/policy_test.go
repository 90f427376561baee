package recode_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/recode"
)

// Copies of a file that is done are not changed and cost no encoding; what is no PNG stays and gets no attribute.
func TestLeftAlone(t *testing.T) {
	t.Parallel()
	m := picture(200, 100, 5)
	data := fat(t, m)
	dir, v := mounted(t, "async", fs.MountOptions{})
	path := filepath.Join(dir, "a.png")
	write(t, path, data)
	done(t, path)
	made := read(t, path)
	var copies []string
	for i, option := range []string{"-a", "--reflink=never", "--sparse=never"} {
		copies = append(copies, filepath.Join(dir, fmt.Sprintf("copy%d.png", i)))
		if out, err := exec.Command("cp", option, path, copies[i]).CombinedOutput(); err != nil {
			t.Fatalf("cp %s: %v: %s", option, err, out)
		}
	}
	others := map[string][]byte{
		"text.png": []byte("no picture"), "empty.png": {}, "cut.png": data[:len(data)/2], "tail.png": append(bytes.Clone(data), 0),
		"picture.jpg": data, "png": data,
	}
	for name, b := range others {
		write(t, filepath.Join(dir, name), b)
	}
	idle(t, v)
	for _, c := range copies {
		if !bytes.Equal(read(t, c), made) {
			t.Errorf("%s was changed", c)
		}
	}
	for name, b := range others {
		if !bytes.Equal(read(t, filepath.Join(dir, name)), b) {
			t.Errorf("%s was changed", name)
		}
		if _, ok := record(filepath.Join(dir, name)); ok {
			t.Errorf("%s got an attribute", name)
		}
	}
	s := v.PNGStats()
	if s.Done != 1 || s.Skipped["already-done"] != 3 || s.Skipped["not-png"] != 1 || s.Skipped["truncated"] != 1 || s.Skipped["trailing-data"] != 1 {
		t.Errorf("stats %+v", s)
	}
	// The attribute of a file that is written anew and stays as it is goes.
	write(t, path, others["text.png"])
	eventually(t, "the attribute stays", func() bool { _, ok := record(path); return !ok })
}

func TestRename(t *testing.T) {
	t.Parallel()
	m := picture(200, 100, 6)
	dir, v := mounted(t, "async", fs.MountOptions{})
	write(t, filepath.Join(dir, "x.tmp"), fat(t, m))
	idle(t, v)
	before := stat(t, filepath.Join(dir, "x.tmp"))
	if err := os.Rename(filepath.Join(dir, "x.tmp"), filepath.Join(dir, "x.png")); err != nil {
		t.Fatal(err)
	}
	done(t, filepath.Join(dir, "x.png"))
	smaller(t, filepath.Join(dir, "x.png"), before, m)

	// A file made without a name.
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o644)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return // the FUSE library knows none yet
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(fat(t, m)); err != nil {
		t.Fatal(err)
	}
	y := filepath.Join(dir, "y.png")
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, y, unix.AT_SYMLINK_FOLLOW); err != nil {
		t.Fatal(err)
	}
	f.Close()
	done(t, y)
}

// The nearest directory that says something decides; a work tree says no.
func TestModesOfDirectories(t *testing.T) {
	t.Parallel()
	m := picture(100, 100, 7)
	data := fat(t, m)
	dir, v := mounted(t, "off", fs.MountOptions{})
	for path, mode := range map[string]string{
		"off": "", "on": "async", "on/below": "", "on/not": "off", "on/not/again": "async\n", "on/odd": "what?", "on/work": "", "on/work/.git": "",
		"on/work/assets": "", "on/work/yes": "async", "tree": "async", "tree/.git": "",
	} {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(full, 0o755); err != nil {
			t.Fatal(err)
		}
		if mode != "" {
			if err := unix.Setxattr(full, recode.Xattr, []byte(mode), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]bool{
		".": false, "off": false, "on": true, "on/below": true, "on/not": false, "on/not/again": true, "on/odd": true, "on/work": false,
		"on/work/assets": false, "on/work/yes": true, "tree": true,
	}
	for path := range want {
		write(t, filepath.Join(dir, path, "a.png"), data)
	}
	idle(t, v)
	for path, small := range want {
		if size := stat(t, filepath.Join(dir, path, "a.png")).Size; (size < int64(len(data))) != small {
			t.Errorf("%s/a.png has %d bytes of %d, should be small: %v", path, size, len(data), small)
		}
	}
}

// The memory of the mount bounds what is done: with little of it large pictures stay, and small ones are done.
func TestLittleMemory(t *testing.T) {
	t.Parallel()
	dir, v := mountedWith(t, "async", 64<<20, fs.MountOptions{})
	if limit := v.PNGStats().MemoryLimit; limit != 24<<20 {
		t.Errorf("pictures may take %d bytes of 64 MiB", limit)
	}
	large, small := filepath.Join(dir, "large.png"), filepath.Join(dir, "small.png")
	data := fat(t, picture(900, 800, 11))
	write(t, large, data)
	write(t, small, fat(t, picture(90, 80, 11)))
	done(t, small)
	eventually(t, "the large picture was not looked at", func() bool { return v.PNGStats().Skipped["too-large"] == 1 })
	if !bytes.Equal(read(t, large), data) {
		t.Error("the large picture was changed")
	}
}
