package check_test

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde"
	"vdefs/vde/check"
	"vdefs/vde/meta"
)

// manyInodes makes a store with n files of one block each, 100 to a directory, straight into the metadata: their data is
// not written.
func manyInodes(t testing.TB, dir string, n int) {
	t.Helper()
	if _, err := vde.Format(dir, vde.FormatOptions{Size: uint64(n)*4096*5/4 + 64<<20}); err != nil {
		t.Fatal(err)
	}
	m, err := meta.Open(dir+"/meta", meta.Options{FS: vfs.Default, Barrier: func() error { return nil }, Logger: noLogger{}})
	if err != nil {
		t.Fatal(err)
	}
	root, err := m.Inode(meta.RootIno)
	if err != nil {
		t.Fatal(err)
	}
	group, err := m.Group(0)
	if err != nil {
		t.Fatal(err)
	}
	b := m.NewBatch()
	node := func(dir *meta.Inode, name string, mode uint32) *meta.Inode {
		in := &meta.Inode{Ino: meta.MakeIno(0, group.NextSeq), Mode: mode, Nlink: 1, NextCookie: 3}
		group.NextSeq++
		group.Inodes++
		b.SetDirent(dir.Ino, meta.Dirent{Name: name, Ino: in.Ino, Type: mode & unix.S_IFMT, Cookie: dir.NextCookie})
		dir.NextCookie++
		dir.Size++
		return in
	}
	block := uint64(16 << 10)
	var sub *meta.Inode
	for i := range n {
		if i%100 == 0 {
			if sub != nil {
				b.SetInode(sub)
			}
			sub = node(&root, fmt.Sprintf("directory-%d", i), unix.S_IFDIR|0o755)
			sub.Nlink, sub.Parent = 2, root.Ino
			root.Nlink++
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			b = m.NewBatch()
		}
		in := node(sub, fmt.Sprintf("file-%d.txt", i), unix.S_IFREG|0o644)
		in.Size, in.Blocks = 4096, 1
		b.SetExtent(in.Ino, meta.Extent{Phys: block, Count: 1})
		block++
		b.SetInode(in)
	}
	b.SetInode(sub)
	b.SetInode(&root)
	b.SetGroup(0, group)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// A million inodes are checked in less than 30 s. VDE_CHECK_INODES sets their number; without it, a few are enough to
// see that nothing is found.
func TestManyInodes(t *testing.T) {
	n := 5_000
	if v, err := strconv.Atoi(os.Getenv("VDE_CHECK_INODES")); err == nil {
		n = v
	}
	dir := t.TempDir() + "/store"
	manyInodes(t, dir, n)
	var peak uint64
	calls := 0
	begin := time.Now()
	r, err := check.Run(dir, check.Options{Progress: func(done, total uint64, what string) {
		if done > total {
			t.Errorf("%s: %d of %d", what, done, total)
		}
		calls++
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapAlloc)
	}})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	if len(r.Findings) > 0 || r.Inodes != uint64(n+(n+99)/100+1) || r.Extents != uint64(n) || calls == 0 {
		t.Errorf("%d inodes, %d extents, %d calls of Progress%s", r.Inodes, r.Extents, calls, describe(r))
	}
	t.Logf("%d inodes in %v, at most %d MiB in use, %d calls of Progress", r.Inodes, took.Round(time.Millisecond), peak>>20, calls)
	if n >= 1_000_000 && took > 30*time.Second*time.Duration(n)/1_000_000 {
		t.Errorf("took %v", took)
	}
}
