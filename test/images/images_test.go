package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	mount "vdefs/fs"
	"vdefs/fs/replica"
	"vdefs/vde"
	"vdefs/vde/check"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

var makeImages = flag.Bool("make", false, "make the archives of the newest format version anew")

func quiet() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

func open(t *testing.T, dir string) *replica.Volume {
	t.Helper()
	v, err := replica.Open(dir, replica.Options{Logger: quiet(), SegmentSize: 1 << 20, Atime: replica.Noatime})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func text(line string, n int) []byte { return bytes.Repeat([]byte(line+"\n"), n) }

// fill puts into a volume what contents lists.
func fill(t *testing.T, v *replica.Volume) {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node := func(parent meta.Ino, name string, mode uint32, target string) meta.Ino {
		t.Helper()
		in, err := v.Make(ctx, mount.NewNode{Parent: parent, Name: name, Mode: mode, UID: 1000, GID: 100, Umask: 0o022, Target: target})
		must(err)
		return in.Ino
	}
	write := func(ino meta.Ino, off uint64, data []byte) {
		t.Helper()
		_, err := v.Write(ctx, ino, off, data, 0)
		must(err)
	}
	const reg, dir = unix.S_IFREG | 0o666, unix.S_IFDIR | 0o777
	notes := node(meta.RootIno, "notes.txt", reg, "")
	write(notes, 0, text("what was written first", 2000))
	write(notes, 5000, text("OVERWRITTEN", 300))
	must(v.SetXattr(ctx, notes, "user.colour", []byte("green"), 0, false))
	_, err := v.Link(ctx, notes, meta.RootIno, "second name")
	must(err)
	sub := node(meta.RootIno, "sub", dir, "")
	deep := node(sub, "deep", dir, "")
	big := node(deep, "big", reg, "")
	write(big, 0, text("a large write, which goes to the image at once", 8000)[:256<<10])
	copied := node(deep, "copied", reg, "")
	_, _, err = v.CopyRange(ctx, big, 0, copied, 0, 64<<10)
	must(err)
	write(copied, 8192, text("no longer shared", 100))
	sparse := node(sub, "sparse", reg, "")
	write(sparse, 1<<40, []byte("far away"))
	room := node(sub, "room", reg, "")
	_, err = v.Fallocate(ctx, room, unix.FALLOC_FL_KEEP_SIZE, 0, 40_000)
	must(err)
	write(room, 4096, []byte("in the middle"))
	holes := node(sub, "holes", reg, "")
	write(holes, 0, text("holes", 6000))
	_, err = v.Fallocate(ctx, holes, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4000, 9000)
	must(err)
	size := uint64(20_001)
	_, err = v.SetAttr(ctx, holes, mount.SetAttr{Size: &size})
	must(err)
	node(sub, "symlink", unix.S_IFLNK, "../notes.txt")
	node(sub, "fifo", unix.S_IFIFO|0o600, "")
	must(v.Rename(ctx, sub, "room", deep, "räume"+strings.Repeat("x", 200), 0))
	gone := node(sub, "gone", reg, "")
	write(gone, 0, text("gone", 3000))
	_, err = v.Unlink(ctx, sub, "gone")
	must(err)
	when := meta.Time{Sec: -5, Nsec: 123_456_789}
	_, err = v.SetAttr(ctx, notes, mount.SetAttr{Mtime: &when})
	must(err)
	must(v.Sync(ctx))
}

// listing describes everything a user can see, times aside but for the one that was set.
func listing(t *testing.T, v *replica.Volume) map[string]string {
	t.Helper()
	ctx := context.Background()
	out := map[string]string{}
	var walk func(dir meta.Ino, path string)
	walk = func(dir meta.Ino, path string) {
		err := v.ReadDir(ctx, dir, 0, true, func(e meta.Dirent, in *meta.Inode) bool {
			p := path + "/" + e.Name
			s := fmt.Sprintf("%o links %d owner %d:%d size %d blocks %d", in.Mode, in.Nlink, in.UID, in.GID, in.Size, in.Blocks)
			if in.Mtime.Sec < 0 {
				s += fmt.Sprintf(" mtime %d.%09d", in.Mtime.Sec, in.Mtime.Nsec)
			}
			switch in.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				defer walk(in.Ino, p)
			case unix.S_IFLNK:
				s += " to " + in.Target
			case unix.S_IFREG:
				s += fmt.Sprintf(" crc %08x", dataCRC(t, v, in))
			}
			names, err := v.Xattrs(ctx, in.Ino)
			if err != nil {
				t.Errorf("%s: %v", p, err)
			}
			for _, n := range names {
				value, err := v.Xattr(ctx, in.Ino, n)
				if err != nil {
					t.Errorf("%s: %s: %v", p, n, err)
				}
				s += fmt.Sprintf(" %s=%s", n, value)
			}
			out[p] = s
			return true
		})
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	walk(meta.RootIno, "")
	return out
}

// dataCRC sums up the data of a file and where it is; holes are passed over.
func dataCRC(t *testing.T, v *replica.Volume, in *meta.Inode) uint32 {
	t.Helper()
	ctx := context.Background()
	var all []byte
	for off := uint64(0); off < in.Size; {
		start, err := v.Seek(ctx, in.Ino, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		end, err := v.Seek(ctx, in.Ino, start, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, end-start)
		if n, err := v.Read(ctx, in.Ino, start, b); err != nil || n != len(b) {
			t.Errorf("inode %d: read %d of %d bytes at %d: %v", in.Ino, n, len(b), start, err)
		}
		all = append(append(all, fmt.Sprint(start, " ")...), b...)
		off = end
	}
	return layout.CRC(all)
}

// contents is what the stores of each version hold. It is never changed for a version that was released.
var contents = map[string]map[string]string{
	"v1": {
		"/notes.txt":       "100644 links 2 owner 1000:100 size 46000 blocks 12 mtime -5.123456789 crc e7fa4640 user.colour=green",
		"/second name":     "100644 links 2 owner 1000:100 size 46000 blocks 12 mtime -5.123456789 crc e7fa4640 user.colour=green",
		"/sub":             "40755 links 3 owner 1000:100 size 5 blocks 0",
		"/sub/deep":        "40755 links 2 owner 1000:100 size 3 blocks 0",
		"/sub/deep/big":    "100644 links 1 owner 1000:100 size 262144 blocks 64 crc 20c2de39",
		"/sub/deep/copied": "100644 links 1 owner 1000:100 size 65536 blocks 16 crc b2e582ab",
		"/sub/deep/räume" + strings.Repeat("x", 200): "100644 links 1 owner 1000:100 size 4109 blocks 10 crc 298742e8",
		"/sub/fifo":    "10600 links 1 owner 1000:100 size 0 blocks 0",
		"/sub/holes":   "100644 links 1 owner 1000:100 size 20001 blocks 3 crc 9b5afe17",
		"/sub/sparse":  "100644 links 1 owner 1000:100 size 1099511627784 blocks 1 crc 07aa5dfd",
		"/sub/symlink": "120777 links 1 owner 1000:100 size 12 blocks 0 to ../notes.txt",
	},
}

// Every store that was ever made opens, is sound, and holds what was put in; and can be written to and closed.
func TestOldStores(t *testing.T) {
	if *makeImages {
		pack(t)
	}
	archives, err := filepath.Glob("*.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	if len(archives) < 2*layout.Newest {
		t.Errorf("only %q for %d format versions", archives, layout.Newest)
	}
	for _, a := range archives {
		t.Run(strings.TrimSuffix(a, ".tar.gz"), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			unpack(t, a, dir)
			sound(t, dir)
			version, _, _ := strings.Cut(a, "-")
			v := open(t, dir)
			got, want := listing(t, v), contents[version]
			if !maps.Equal(got, want) {
				for p, s := range got {
					if want[p] != s {
						t.Errorf("%q: %q,", p, s)
					}
				}
				for p := range want {
					if got[p] == "" {
						t.Errorf("%s is missing", p)
					}
				}
			}
			if _, err := v.Make(context.Background(), mount.NewNode{Parent: meta.RootIno, Name: "new", Mode: unix.S_IFREG | 0o600}); err != nil {
				t.Error(err)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			sound(t, dir)
		})
	}
}

func sound(t *testing.T, dir string) {
	t.Helper()
	r, err := check.Run(dir, check.Options{Data: true, Replay: func(dir string, f vfs.FS) error {
		v, err := replica.Open(dir, replica.Options{FS: f, Logger: quiet()})
		if err != nil {
			return err
		}
		return v.Close()
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("%s: %s", f.Kind, f.What)
	}
	if r.CheckedBlocks == 0 {
		t.Error("no data was checked")
	}
}

// pack makes the archives of the newest version.
func pack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if _, err := vde.Format(dir, vde.FormatOptions{Size: 4 << 20, Now: time.Unix(1_767_323_045, 0)}); err != nil {
		t.Fatal(err)
	}
	v := open(t, dir)
	fill(t, v)
	write := func(how string) {
		t.Helper()
		if err := os.WriteFile(fmt.Sprintf("v%d-%s.tar.gz", layout.Newest, how), tarOf(t, dir), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("crashed")
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	write("closed")
}

func tarOf(t *testing.T, dir string) []byte {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o700})
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err = errors.Join(err, w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
