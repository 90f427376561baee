package fs

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

// TestGoneNames: a thread that asks for a name for the second time within a second is known again, once.
func TestGoneNames(t *testing.T) {
	var g goneNames
	now := time.Unix(1000, 0)
	n := goneName{7, 1, "x"}
	for i, c := range []struct {
		n     goneName
		after time.Duration
		want  bool
	}{
		{n, 0, false}, {goneName{7, 2, "x"}, 0, false}, {goneName{7, 1, "y"}, 0, false}, {goneName{8, 1, "x"}, 0, false},
		{n, goneFor / 2, true}, {n, goneFor / 2, false}, {n, 2 * goneFor, false}, {n, 2 * goneFor, true},
	} {
		if got := g.again(c.n, now.Add(c.after)); got != c.want {
			t.Errorf("question %d: %v", i, got)
		}
	}
	for i := range 3 * goneMost {
		g.again(goneName{9, 1, fmt.Sprint(i)}, now)
	}
	if len(g.asked) > goneMost {
		t.Errorf("%d names are kept", len(g.asked))
	}
}

// TestAttrGone: who comes by path is told to begin again and then that there is nothing; who has a file open gets the same answer each time.
func TestAttrGone(t *testing.T) {
	f := newFilesystem(&lazy{memVolume: newMemVolume()}, MountOptions{Shared: true})
	f.nodes.lookup(7)
	header := &fuse.InHeader{NodeId: 7, Caller: fuse.Caller{Pid: 3}}
	ask := func() error { return f.attrGone(header, &meta.Inode{}, syscall.ESTALE) }
	if one, two := ask(), ask(); !errors.Is(one, syscall.ESTALE) || !errors.Is(two, syscall.ENOENT) {
		t.Errorf("by path: %v, then %v", one, two)
	}
	f.nodes.open(7, false, false, false)
	for range 3 {
		if err := ask(); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("of an open file: %v", err)
		}
	}
}
