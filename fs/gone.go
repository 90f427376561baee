package fs

import (
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"vdefs/vde/meta"
)

// A directory that another mount has removed may still be known to the kernel. Who comes to it by path has to walk the path anew, as something
// else may stand there now: the answer is ESTALE, on which the kernel begins again and asks for every part of the path. Who holds the directory
// itself (as his working directory, or open, as rm -r does) comes back with the same question, and is told that there is no such name, as
// everywhere in a removed directory.

// goneElsewhere tells of a directory whether another mount has removed it.
func (f *filesystem) goneElsewhere(node uint64, inode *meta.Inode) bool {
	return f.others != nil && inode.Nlink == 0 && inode.Mode&syscall.S_IFMT == syscall.S_IFDIR && !f.nodes.get(node).held
}

// lookupGone returns what to answer where a lookup has failed with err: that, but where the directory is gone.
func (f *filesystem) lookupGone(header *fuse.InHeader, parent meta.Ino, name string, err error) error {
	if f.others == nil {
		return err
	}
	if ToErrno(err) == syscall.ENOENT {
		if dir, e := f.others.PeekInode(parent); e == nil && f.goneElsewhere(header.NodeId, &dir) {
			err = syscall.ESTALE
		}
	}
	return f.walkAgain(header, name, err)
}

// attrGone is lookupGone for the attributes of an inode, which the kernel also asks for to see who may use a directory.
func (f *filesystem) attrGone(header *fuse.InHeader, inode *meta.Inode, err error) error {
	if f.others == nil {
		return err
	}
	if err == nil && f.goneElsewhere(header.NodeId, inode) {
		err = syscall.ESTALE
	}
	if f.nodes.get(header.NodeId).opens > 0 {
		return err // a file: fstat(2) does not begin again
	}
	return f.walkAgain(header, "", err)
}

// walkAgain returns an error, but ENOENT for the second ESTALE in a row.
func (f *filesystem) walkAgain(header *fuse.InHeader, name string, err error) error {
	if ToErrno(err) == syscall.ESTALE && f.gone.again(goneName{header.NodeId, header.Pid, name}, time.Now()) {
		return syscall.ENOENT
	}
	return err
}

// goneNames are the names in gone directories for which the answer was ESTALE a moment ago.
type goneNames struct {
	mu    sync.Mutex
	asked map[goneName]time.Time // guarded by mu
}

type goneName struct {
	node   uint64
	thread uint32
	name   string // empty: the directory itself
}

const (
	goneFor  = time.Second // in which a kernel that begins again asks again
	goneMost = 1024
)

// again tells whether a thread asks for something for the second time.
func (g *goneNames) again(n goneName, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, known := g.asked[n]
	delete(g.asked, n)
	if known && now.Sub(at) < goneFor {
		return true
	}
	if g.asked == nil || len(g.asked) >= goneMost {
		g.asked = map[goneName]time.Time{} // they are told once more to begin again
	}
	g.asked[n] = now
	return false
}
