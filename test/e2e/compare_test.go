package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"image/png"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// compareTrees fails the test for everything in which the tree at got differs from the one at want: names, types, modes, owners,
// sizes, times, contents, link targets, device numbers, hard links, extended attributes. Where .png files may have been made smaller,
// of those that were the pixels are compared. It returns the number of files.
func compareTrees(t *testing.T, want, got string, smallerPNG bool) int {
	t.Helper()
	wanted, found := listTree(t, want), listTree(t, got)
	for name := range found {
		if wanted[name] == nil {
			t.Errorf("%s: should not be there", filepath.Join(got, name))
		}
	}
	// Hard links: what is one inode there must be one inode here.
	inodes := map[uint64]uint64{}
	problems, smaller := 0, 0
	for name, w := range wanted {
		g := found[name]
		if g == nil {
			t.Errorf("%s: missing", filepath.Join(got, name))
			continue
		}
		if smallerPNG && w.stat.Size > g.stat.Size && strings.HasSuffix(name, ".png") {
			comparePNG(t, w, g)
			smaller++
		}
		differences := compareNodes(w, g)
		if w.stat.Nlink > 1 && !w.isDir() {
			if first, seen := inodes[w.stat.Ino]; seen && first != g.stat.Ino {
				differences = append(differences, "it is no hard link to the same file")
			}
			inodes[w.stat.Ino] = g.stat.Ino
		}
		for _, difference := range differences {
			t.Errorf("%s: %s", g.path, difference)
		}
		if problems += len(differences); problems > 20 {
			t.Fatal("too many differences")
		}
	}
	if smallerPNG {
		t.Logf("%d .png files were made smaller", smaller)
	}
	return len(wanted)
}

// comparePNG compares the pixels of a .png file that was made smaller, and takes what is new about it for the old.
func comparePNG(t *testing.T, want, got *node) {
	t.Helper()
	m, err := png.Decode(bytes.NewReader(read(t, want.path)))
	if err != nil {
		t.Errorf("%s was changed, but was no picture: %v", got.path, err)
		return
	}
	samePixels(t, got.path, m)
	want.stat.Size, want.path = got.stat.Size, got.path
	delete(got.xattrs, "user.vde.png")
}

// node is one file in a tree.
type node struct {
	path   string
	stat   unix.Stat_t
	target string
	xattrs map[string]string
}

func (n *node) isDir() bool { return n.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

func listTree(t *testing.T, root string) map[string]*node {
	t.Helper()
	nodes := map[string]*node{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n := &node{path: path, xattrs: map[string]string{}}
		if err := unix.Lstat(path, &n.stat); err != nil {
			return err
		}
		if n.stat.Mode&unix.S_IFMT == unix.S_IFLNK {
			if n.target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		names, err := xattr.LList(path)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
		for _, name := range names {
			value, err := xattr.LGet(path, name)
			if err != nil {
				return err
			}
			n.xattrs[name] = string(value)
		}
		name, err := filepath.Rel(root, path)
		nodes[name] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

func compareNodes(want, got *node) []string {
	var differences []string
	differ := func(what string, want, got any) {
		if want != got {
			differences = append(differences, fmt.Sprintf("%s is %v, should be %v", what, got, want))
		}
	}
	w, g := &want.stat, &got.stat
	differ("mode", fmt.Sprintf("%o", w.Mode), fmt.Sprintf("%o", g.Mode))
	differ("owner", [2]uint32{w.Uid, w.Gid}, [2]uint32{g.Uid, g.Gid})
	differ("mtime", w.Mtim, g.Mtim)
	differ("target", want.target, got.target)
	differ("device", w.Rdev, g.Rdev)
	differ("extended attributes", fmt.Sprint(want.xattrs), fmt.Sprint(got.xattrs))
	if !want.isDir() {
		differ("size", w.Size, g.Size)
		differ("links", w.Nlink, g.Nlink)
	}
	if w.Mode&unix.S_IFMT == unix.S_IFREG && len(differences) == 0 {
		if err := compareFiles(want.path, got.path); err != nil {
			differences = append(differences, err.Error())
		}
	}
	return differences
}

// compareFiles says where two files differ.
func compareFiles(want, got string) error {
	w, err := os.Open(want)
	if err != nil {
		return err
	}
	defer w.Close()
	g, err := os.Open(got)
	if err != nil {
		return err
	}
	defer g.Close()
	const piece = 256 << 10
	a, b := make([]byte, piece), make([]byte, piece)
	for offset := 0; ; offset += piece {
		n, errA := io.ReadFull(w, a)
		m, errB := io.ReadFull(g, b)
		if n != m || !bytes.Equal(a[:n], b[:m]) {
			at := 0
			for at < min(n, m) && a[at] == b[at] {
				at++
			}
			return fmt.Errorf("contents differ from offset %d on", offset+at)
		}
		if errA == io.EOF || errA == io.ErrUnexpectedEOF {
			return nil
		}
		if errA != nil || errB != nil {
			return errors.Join(errA, errB)
		}
	}
}
