package replica

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"

	"vdefs/consensus"
	"vdefs/consensus/transport"
	"vdefs/fs"
	"vdefs/fs/cluster"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// Options say how a volume is opened.
type Options struct {
	FS       vfs.FS // nil: the operating system's
	ReadOnly bool   // refuse changes with EROFS (recovery still writes)
	Atime    Atime
	Logger   logrus.FieldLogger
	// RefMin is the least size in bytes of a write that goes to the image before the log (default 128 KiB).
	RefMin int
	// SegmentSize of the logs in bytes (0: the default).
	SegmentSize int64
	// Cluster makes the volume a node of a cluster; nil: the store is this mount's alone.
	Cluster *cluster.Config
	// Timeout is how long an operation waits for a majority of the nodes (default 30 s).
	Timeout time.Duration
	// CheckpointEvery and CacheSize: see vde.OpenOptions.
	CheckpointEvery time.Duration
	CacheSize       int64
}

// joinTimeout is how long a node waits at its start to hear of a majority of the others.
const joinTimeout = 2 * time.Minute

// defaultRefMin: below, one flush (of the log) for a synced write is worth more than the copy that two save.
const defaultRefMin = 128 << 10

// Volume is a mounted store: it implements fs.Volume.
type Volume struct {
	dir      string
	log      logrus.FieldLogger
	readOnly bool
	eng      *vde.Engine
	mgr      *consensus.Manager
	node     *node // nil: no cluster

	groups atomic.Pointer[[]*consensus.Group] // by slot; nil while opening

	refMin   int
	promised atomic.Uint64 // log index that a Sync has made durable, with all that its records refer to

	opens  *opens
	reaper *reaper
	atimes *atimes
	watch  watchers

	stop    chan struct{}
	workers sync.WaitGroup
	closed  sync.Once
}

var _ fs.Volume = (*Volume)(nil)

// Open opens the store in dir, applies what the logs hold beyond the metadata, and frees what was unlinked but open
// when the store was last in use.
func Open(dir string, o Options) (_ *Volume, err error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = logrus.StandardLogger()
	}
	v := &Volume{dir: dir, log: o.Logger, readOnly: o.ReadOnly, opens: newOpens(), stop: make(chan struct{})}
	if v.refMin = o.RefMin; v.refMin == 0 {
		v.refMin = defaultRefMin
	}
	v.reaper = &reaper{v: v, wake: make(chan struct{}, 1)}
	v.atimes = &atimes{v: v, mode: o.Atime, new: map[meta.Ino]meta.Time{}}
	slots := map[consensus.GroupID]uint16{consensus.DefaultGroup: 0}

	v.eng, err = vde.Open(dir, vde.OpenOptions{
		FS: o.FS, Logger: o.Logger, CheckpointEvery: o.CheckpointEvery, CacheSize: o.CacheSize, OnCheckpoint: v.compact,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		close(v.stop)
		v.workers.Wait()
		v.eng.Abandon()
		if v.mgr != nil {
			err = errors.Join(err, v.mgr.Close())
		}
		if v.node != nil {
			err = errors.Join(err, v.node.transport.Close())
		}
		err = errors.Join(err, v.eng.Close())
	}()
	var connect transport.Transport
	if o.Cluster != nil {
		if v.node, err = openNode(v, o.Cluster, o.Timeout); err != nil {
			return nil, fmt.Errorf("store %s: %w", dir, err)
		}
		connect = v.node.transport
	}
	v.mgr, err = consensus.Open(consensus.Config{
		Transport: connect,
		FS:        o.FS, Dir: o.FS.PathJoin(dir, "raft"), NodeID: v.eng.Info().NodeID, Logger: o.Logger, SegmentSize: o.SegmentSize,
		OnDurable: func(group consensus.GroupID, index uint64) { v.eng.LogDurable(slots[group], index) },
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	v.eng.AttachLogs(v)
	g, err := v.openGroup(consensus.DefaultGroup, slots[consensus.DefaultGroup])
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	v.groups.Store(&[]*consensus.Group{g})
	v.eng.LogDurable(0, g.DurableIndex())
	if v.node != nil {
		ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
		defer cancel()
		if err := v.node.start(ctx); err != nil {
			return nil, fmt.Errorf("store %s: %w", dir, err)
		}
	}

	err = v.eng.Meta().Orphans(0, func(ino meta.Ino) (bool, error) {
		v.reaper.list = append(v.reaper.list, ino)
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	if n := len(v.reaper.list); n > 0 {
		v.log.WithField("files", n).Info("freeing files that were unlinked while open")
		v.reaper.wake <- struct{}{}
	}
	v.workers.Go(func() { v.reaper.run(v.stop) })
	v.workers.Go(func() { v.atimes.run(v.stop) })
	return v, nil
}

// openGroup opens a group's log, or makes it when the group has never had an entry.
func (v *Volume) openGroup(name consensus.GroupID, slot uint16) (*consensus.Group, error) {
	m := &machine{v: v, eng: v.eng, slot: slot, replaying: true}
	g, err := v.mgr.OpenGroup(name, m)
	if errors.Is(err, consensus.ErrGroupNotFound) {
		if applied := m.AppliedIndex(); applied > 0 {
			return nil, fmt.Errorf("the log of group %s is missing from %s, the metadata has applied %d of its entries: restore the log",
				name, filepath.Join(v.dir, "raft"), applied)
		}
		if v.node != nil && !v.node.cfg.Founder {
			return v.mgr.JoinGroup(name, m)
		}
		return v.mgr.CreateGroup(name, m)
	}
	return g, err
}

// bySlot returns the groups; none while the volume is being opened.
func (v *Volume) bySlot() []*consensus.Group {
	if g := v.groups.Load(); g != nil {
		return *g
	}
	return nil
}

// SyncAll implements vde.Logs. The engine learns of what is durable here once more: the sync may have found that
// another goroutine had made it so, which has not told yet.
func (v *Volume) SyncAll() error {
	if err := v.mgr.SyncAll(); err != nil {
		return err
	}
	for slot, g := range v.bySlot() {
		v.eng.LogDurable(uint16(slot), g.DurableIndex())
	}
	return nil
}

// compact forgets the log that this node does not need any more.
func (v *Volume) compact(slot uint16, applied uint64) {
	groups := v.bySlot()
	if int(slot) >= len(groups) {
		return
	}
	g := groups[slot]
	if err := g.Compact(applied); err != nil && !errors.Is(err, consensus.ErrClosed) {
		v.log.WithError(err).WithField("group", g.Name()).Warn("compacting the log failed")
	}
}

// Close puts everything on disk and closes the store. The mount must be gone.
func (v *Volume) Close() (err error) {
	err = vde.ErrClosed
	v.closed.Do(func() {
		close(v.stop)
		v.workers.Wait()
		err = nil
		if v.eng.Err() == nil && !v.readOnly {
			err = errors.Join(v.atimes.flush(context.Background()), v.reaper.drain(context.Background()))
		}
		if v.eng.Err() == nil {
			err = errors.Join(err, v.Sync(context.Background()))
		}
		if v.node != nil {
			// What the others go on with must not reach the engine any more, so the logs are closed (and durable) first.
			v.node.close()
			err = errors.Join(err, v.mgr.Close(), v.node.transport.Close(), v.eng.Close())
			return
		}
		// The engine's last checkpoint syncs the logs, so they are closed after it.
		err = errors.Join(err, v.eng.Close(), v.mgr.Close())
	})
	return err
}

// group returns the group that holds an inode.
func (v *Volume) group(ino meta.Ino) (*consensus.Group, error) {
	if g, s := v.bySlot(), ino.Group(); int(s) < len(g) {
		return g[s], nil
	}
	return nil, syscall.ESTALE
}

// propose puts a command into the log of its group and returns its result when it has been applied here.
func (v *Volume) propose(ctx context.Context, c command.Command) (posix.Result, error) {
	return v.proposeOpen(ctx, c, nil)
}

// proposeOpen is propose; the inode that the command makes is counted as in use in the same step, if open is given.
func (v *Volume) proposeOpen(ctx context.Context, c command.Command, open *opens) (posix.Result, error) {
	g := v.bySlot()[0]
	if v.node != nil {
		return v.node.proposeShared(ctx, g, c, open)
	}
	return v.proposeAlone(ctx, g, c, open)
}

// proposeAlone is proposing where this mount is the only one.
func (v *Volume) proposeAlone(ctx context.Context, g *consensus.Group, c command.Command, open *opens) (posix.Result, error) {
	p := &proposal{cmd: c, time: fs.Now(), open: open}
	r, err := g.ProposeAlone(ctx, command.Encode(c, p.time, p.tag), p)
	if err != nil {
		if errors.Is(err, consensus.ErrNotAppended) {
			err = errors.Join(syscall.ENOSPC, err)
		}
		return posix.Result{}, err
	}
	return r.(outcome).rest()
}

// change is propose for what a user asks for: refused on a read-only volume, held back while too much waits in memory.
func (v *Volume) change(ctx context.Context, c command.Command) (posix.Result, error) {
	return v.changeOpen(ctx, c, nil)
}

// changeAlone is change for a command that only this node can apply; consensus.ErrNotAlone where it is not alone.
func (v *Volume) changeAlone(ctx context.Context, c command.Command) (posix.Result, error) {
	if v.readOnly {
		return posix.Result{}, syscall.EROFS
	}
	if err := v.eng.WaitRoom(func() error { return v.Sync(ctx) }); err != nil {
		return posix.Result{}, err
	}
	return v.proposeAlone(ctx, v.bySlot()[0], c, nil)
}

// changeOpen is change, as proposeOpen is propose.
func (v *Volume) changeOpen(ctx context.Context, c command.Command, open *opens) (posix.Result, error) {
	if v.readOnly {
		return posix.Result{}, syscall.EROFS
	}
	if err := v.eng.WaitRoom(func() error { return v.Sync(ctx) }); err != nil {
		return posix.Result{}, err
	}
	return v.proposeOpen(ctx, c, open)
}

// reserve promises blocks to a change and returns the function that takes the promise back. What was unlinked is
// freed first when that helps.
func (v *Volume) reserve(ctx context.Context, blocks uint64) (func(), error) {
	err := v.eng.Reserve(blocks)
	if errors.Is(err, vde.ErrNoSpace) {
		if derr := v.reaper.drain(ctx); derr != nil {
			return nil, derr
		}
		err = v.eng.Reserve(blocks)
	}
	if err != nil {
		if errors.Is(err, vde.ErrNoSpace) {
			err = errors.Join(syscall.ENOSPC, err)
		}
		return nil, err
	}
	return func() { v.eng.Unreserve(blocks) }, nil
}

// Sync implements fs.Volume. Blocks that log records refer to are made durable before the records.
func (v *Volume) Sync(ctx context.Context) error {
	g := v.bySlot()[0]
	last := g.AppliedIndex()
	if err := v.eng.SyncPrepared(); err != nil {
		return err
	}
	if err := g.Sync(ctx); err != nil {
		return err
	}
	for {
		p := v.promised.Load()
		if p >= last || v.promised.CompareAndSwap(p, last) {
			return nil
		}
	}
}

// Checkpoint makes everything done so far durable in the metadata and gives freed space back.
func (v *Volume) Checkpoint() error { return v.eng.Checkpoint() }
