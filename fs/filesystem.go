package fs

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// filesystem answers the kernel's requests; its methods are fuse.RawFileSystem, in the op_*.go files by family. Those
// that are not there answer ENOSYS, after which the kernel does not ask again: ACCESS (it checks permissions itself).
type filesystem struct {
	fuse.RawFileSystem // the answer to everything else: ENOSYS

	volume   Volume
	log      logrus.FieldLogger
	options  MountOptions
	nodes    *nodeTable
	renewals *renewals
	handles  atomic.Uint64 // the last handle given
	listings listings
	// untouched: reads are not noted. It is what Remount changes of options.
	untouched atomic.Bool
	locks     *lockTable   // nil: locks are the kernel's
	shared    SharedLocker // nil: nobody else has locks
	others    SharedVolume // nil: nobody else has the volume
	failures  failures
	noRoom    noRoom
	gone      goneNames
	syncing   atomic.Bool // an early sync is under way
	ownTimes  ownTimes
	stats     counters

	// writeback: the kernel agreed to keep a writeback cache. Set by Init, before the first request.
	writeback bool
	// closing is SelfChanger.Closing; nil: nobody waits at close(2). Set before the first request.
	closing func(meta.Ino)
	// server is where invalidations go; set by Init.
	server *fuse.Server

	// ctx ends when the connection is gone. It is what operations of the volume run under, and not the request's own
	// interruption: that comes with any signal (a Go program gets SIGURG all the time), and a rename that answers EINTR
	// although it will be done, or an fsync that does, breaks programs that no disk filesystem breaks. Only a wait for a
	// lock heeds it.
	ctx    context.Context
	cancel context.CancelFunc
}

var _ fuse.RawFileSystem = (*filesystem)(nil)

func newFilesystem(volume Volume, options MountOptions) *filesystem {
	f := &filesystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		volume:        volume,
		log:           options.Logger,
		options:       options,
		nodes:         newNodeTable(),
		renewals:      newRenewals(),
	}
	f.untouched.Store(options.NoAtime || options.ReadOnly)
	if options.ServerLocks {
		f.locks = newLockTable()
		f.shared, _ = volume.(SharedLocker)
	}
	if options.Shared {
		f.others, _ = volume.(SharedVolume)
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

func (f *filesystem) String() string { return typeName }

// Init is called when the kernel has said what it can, before the first request.
func (f *filesystem) Init(server *fuse.Server) {
	f.server = server
	f.writeback = !f.options.NoWriteback && !f.options.NoCache && server.KernelSettings().Flags64()&fuse.CAP_WRITEBACK_CACHE != 0
}

// count counts a request.
func (f *filesystem) count(o op) { f.stats.requests[o].Add(1) }

// ino is the inode behind a node id.
func (f *filesystem) ino(node uint64) meta.Ino { return f.renewals.ino(node) }

// node is the node id that an inode is answered under.
func (f *filesystem) node(ino meta.Ino) uint64 { return f.renewals.node(ino) }

// fillEntry answers with an inode, which the kernel holds from now on.
func (f *filesystem) fillEntry(inode *meta.Inode, out *fuse.EntryOut) {
	var keep bool
	if out.NodeId, keep = f.renewals.answer(inode, f.nodes); keep {
		entry := f.options.Timeouts.Entry
		if inode.Mode&unix.S_IFMT == unix.S_IFDIR {
			entry = f.options.Timeouts.Directory
		}
		setTimeout(entry, &out.EntryValid, &out.EntryValidNsec)
		if !f.writeback || !f.nodes.get(out.NodeId).staleTimes {
			setTimeout(f.options.Timeouts.Attr, &out.AttrValid, &out.AttrValidNsec)
		}
	}
	fillAttr(inode, &out.Attr)
}

// fillNegative answers that there is no such name, to be kept.
func (f *filesystem) fillNegative(out *fuse.EntryOut) {
	setTimeout(f.options.Timeouts.Negative, &out.EntryValid, &out.EntryValidNsec)
}

// fillAttrOut answers with attributes.
func (f *filesystem) fillAttrOut(inode *meta.Inode, out *fuse.AttrOut) {
	setTimeout(f.options.Timeouts.Attr, &out.AttrValid, &out.AttrValidNsec)
	fillAttr(inode, &out.Attr)
}

func setTimeout(d time.Duration, sec *uint64, nsec *uint32) {
	*sec = uint64(d / time.Second)
	*nsec = uint32(d % time.Second)
}

const (
	blockSize = 4096 // st_blksize, and what Inode.Blocks counts
	statBlock = 512  // what st_blocks counts
)

// fillAttr translates an inode to what stat(2) tells.
func fillAttr(inode *meta.Inode, a *fuse.Attr) {
	a.Ino = uint64(inode.Ino)
	a.Size = inode.Size
	a.Blocks = inode.Blocks * (blockSize / statBlock)
	a.Atime, a.Atimensec = uint64(inode.Atime.Sec), inode.Atime.Nsec
	a.Mtime, a.Mtimensec = uint64(inode.Mtime.Sec), inode.Mtime.Nsec
	a.Ctime, a.Ctimensec = uint64(inode.Ctime.Sec), inode.Ctime.Nsec
	a.Mode = inode.Mode
	a.Nlink = inode.Nlink
	a.Uid = inode.UID
	a.Gid = inode.GID
	a.Rdev = inode.Rdev // both sides use the kernel's 12+20 bits
	a.Blksize = blockSize
}
