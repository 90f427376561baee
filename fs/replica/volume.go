package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"

	"vdefs/consensus"
	"vdefs/consensus/logstore"
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
	// Strict makes every read of contents wait until it is current, too. Otherwise the open(2) before it has.
	Strict bool
	// Timeout is how long an operation waits for a majority of the nodes (default 30 s).
	Timeout time.Duration
	// CheckpointEvery, Memory and Held: see vde.OpenOptions.
	CheckpointEvery time.Duration
	Memory          int64
	Held            bool

	lease   time.Duration // of the mount's session; 0: sessionLease
	resolve time.Duration // 0: resolveAfter
	old     bool          // knows operations of level 0 only
	alone   *Survivor     // not nil: see GoOnAlone
	pretend bool          // with alone: see Rehearse
}

// joinTimeout is how long a node waits at its start to hear of a majority of the others.
const joinTimeout = 2 * time.Minute

// defaultRefMin: below, one flush (of the log) for a synced write is worth more than the copy that two save.
const defaultRefMin = 128 << 10

// Volume is a mounted store: it implements fs.Volume.
type Volume struct {
	dir      string
	fs       vfs.FS
	log      logrus.FieldLogger
	readOnly atomic.Bool
	strict   bool
	eng      *vde.Engine
	mgr      *consensus.Manager
	node     *node   // nil: no cluster
	behind   *behind // nil: no cluster
	later    *later  // likewise

	groups  atomic.Pointer[[]*group] // by slot, nil where there is none; nil while opening
	groupMu sync.Mutex               // held by who changes it
	slots   sync.Map                 // of group name: its slot

	refMin int

	opens  *opens
	reaper *reaper
	atimes *atimes
	watch  watchers

	stop    chan struct{}
	workers sync.WaitGroup
	closed  sync.Once
}

var (
	_ fs.Volume       = (*Volume)(nil)
	_ fs.SharedVolume = (*Volume)(nil)
)

// Open opens the store in dir, applies what the logs hold beyond the metadata, and frees what was unlinked but open
// when the store was last in use.
func Open(dir string, o Options) (_ *Volume, err error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = logrus.StandardLogger()
	}
	v := &Volume{dir: dir, fs: o.FS, log: o.Logger, strict: o.Strict, opens: newOpens(), stop: make(chan struct{})}
	if v.refMin = o.RefMin; v.refMin == 0 {
		v.refMin = defaultRefMin
	}
	v.reaper = &reaper{v: v, wake: make(chan struct{}, 1)}
	v.atimes = &atimes{v: v, new: map[meta.Ino]meta.Time{}}
	v.readOnly.Store(o.ReadOnly)
	v.SetAtime(o.Atime)
	v.slots.Store(consensus.DefaultGroup, uint16(0))
	v.eng, err = vde.Open(dir, vde.OpenOptions{
		FS: o.FS, Logger: o.Logger, CheckpointEvery: o.CheckpointEvery, Memory: o.Memory, PushOut: o.Cluster != nil,
		Held: o.Held, OnCheckpoint: v.compact,
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
			v.node.finish()
		}
		err = errors.Join(markDamage(err), v.eng.Close())
	}()
	if o.alone != nil {
		o.alone.Node = v.eng.Info().NodeID
		force := consensus.ForceAlone
		if o.pretend {
			force = consensus.PretendAlone
		}
		o.alone.Groups, err = force(o.FS, o.FS.PathJoin(dir, "raft"), o.alone.Node, o.SegmentSize, o.Logger)
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", dir, err)
		}
	}
	var connect transport.Transport
	if o.Cluster != nil {
		if v.node, err = openNode(v, o); err != nil {
			return nil, fmt.Errorf("store %s: %w", dir, err)
		}
		connect = v.node.transport
		v.behind, v.later = newBehind(v, o.Memory, v.node.timeout), newLater(v)
	}
	v.mgr, err = consensus.Open(consensus.Config{
		Transport:  connect,
		LeaseReads: !o.Strict,
		FS:         o.FS, Dir: o.FS.PathJoin(dir, "raft"), NodeID: v.eng.Info().NodeID, Logger: o.Logger, SegmentSize: o.SegmentSize,
		OnDurable: func(name consensus.GroupID, index uint64) {
			if slot, ok := v.slots.Load(name); ok {
				v.eng.LogDurable(slot.(uint16), index)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	v.eng.AttachLogs(v)
	if err := v.openGroup(consensus.DefaultGroup, 0, v.makeDefault); err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	if v.node != nil {
		ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
		defer cancel()
		err = v.node.start(ctx)
	} else {
		err = v.openFormerGroups()
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}

	// In a cluster the reaper may have heard of some already: what others do is applied.
	found := 0
	err = v.eng.Meta().Orphans(0, func(ino meta.Ino) (bool, error) {
		v.reaper.add(ino)
		found++
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	if found > 0 {
		v.log.WithField("files", found).Info("freeing files that were unlinked while open")
	}
	v.workers.Go(func() { v.reaper.run(v.stop) })
	v.workers.Go(func() { v.atimes.run(v.stop) })
	return v, nil
}

// markDamage makes an error of opening that says that a file of the store is damaged or missing a vde.ErrDamaged.
func markDamage(err error) error {
	if errors.Is(err, vde.ErrDamaged) || !errors.Is(err, consensus.ErrCorrupt) && !errors.Is(err, consensus.ErrLogGap) && !meta.IsDamage(err) {
		return err
	}
	return fmt.Errorf("%w: %w", vde.ErrDamaged, err)
}

// SyncAll implements vde.Logs. The engine learns of what is durable here once more: the sync may have found that
// another goroutine had made it so, which has not told yet.
func (v *Volume) SyncAll() error {
	if err := v.mgr.SyncAll(); err != nil {
		return err
	}
	for _, g := range v.all() {
		v.eng.LogDurable(g.slot, g.DurableIndex())
	}
	return nil
}

// compact forgets the log that this node does not need any more.
func (v *Volume) compact(slot uint16, applied uint64) {
	g := v.inSlot(slot)
	if g == nil {
		return
	}
	if err := g.Compact(applied); err != nil && !errors.Is(err, consensus.ErrClosed) {
		v.log.WithError(err).WithField("group", g.Name()).Warn("compacting the log failed")
	}
}

// SetReadOnly has the volume refuse changes with EROFS from now on, or take them again. When it has become read-only, everything is on
// disk; on an error it stays as it was. What must not be refused has to be through before: a mount is made read-only first.
func (v *Volume) SetReadOnly(ctx context.Context, readOnly bool) error {
	if !readOnly || v.readOnly.Load() {
		v.readOnly.Store(readOnly)
		return nil
	}
	if v.behind != nil {
		v.behind.waitAll()
		v.later.waitAll()
	}
	if err := v.atimes.flush(ctx); err != nil {
		return fmt.Errorf("access times: %w", err)
	}
	v.readOnly.Store(true)
	if err := v.Sync(ctx); err != nil {
		v.readOnly.Store(false)
		return err
	}
	return nil
}

// Close puts everything on disk and closes the store. The mount must be gone.
func (v *Volume) Close() (err error) {
	err = vde.ErrClosed
	v.closed.Do(func() {
		if v.behind != nil {
			v.behind.waitAll()
			v.later.waitAll()
		}
		close(v.stop)
		v.workers.Wait()
		err = nil
		if v.eng.Err() == nil && !v.readOnly.Load() && (v.node == nil || !v.node.dead.Load()) {
			ctx, cancel := context.Background(), func() {}
			if v.node != nil {
				ctx, cancel = context.WithTimeout(ctx, tryTimeout) // what is not done now is done by the others
			}
			ferr := errors.Join(v.atimes.flush(ctx), v.reaper.drain(ctx))
			cancel()
			if ferr != nil && v.node != nil {
				v.log.WithError(ferr).Warn("access times may be lost")
				ferr = nil
			}
			err = ferr
		}
		if v.eng.Err() == nil {
			err = errors.Join(err, v.Sync(context.Background()))
		}
		if v.node != nil {
			// What the others go on with must not reach the engine any more, so the logs are closed (and durable) first.
			v.node.close()
			err = errors.Join(err, v.mgr.Close(), v.node.transport.Close())
			v.node.finish()
			err = errors.Join(err, v.eng.Close())
			return
		}
		// The engine's last checkpoint syncs the logs, so they are closed after it.
		err = errors.Join(err, v.eng.Close(), v.mgr.Close())
	})
	return err
}

// propose puts a command into the log of its group and returns its result when it has been applied here.
func (v *Volume) propose(ctx context.Context, c command.Command) (posix.Result, error) {
	return v.proposeOpen(ctx, c, nil)
}

// proposeOpen is propose; the inode that the command makes is counted as in use in the same step, if open is given.
func (v *Volume) proposeOpen(ctx context.Context, c command.Command, open *opens) (posix.Result, error) {
	res, _, err := v.proposeTx(ctx, slotOf(c), c, open)
	return res, err
}

// proposeTx is proposeOpen into the group of a slot, and tells the tag under which the command was done.
func (v *Volume) proposeTx(ctx context.Context, slot uint16, c command.Command, open *opens) (posix.Result, command.Tag, error) {
	g := v.inSlot(slot)
	if g == nil {
		return posix.Result{}, command.Tag{}, syscall.ESTALE
	}
	if v.node != nil {
		return v.node.proposeShared(ctx, g, c, open)
	}
	res, err := v.proposeAlone(ctx, g, c, open)
	return res, command.Tag{}, err
}

// proposeAlone is proposing where this mount is the only one.
func (v *Volume) proposeAlone(ctx context.Context, g *group, c command.Command, open *opens) (posix.Result, error) {
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
	if v.readOnly.Load() {
		return posix.Result{}, syscall.EROFS
	}
	if err := v.eng.WaitRoom(func() error { return v.Sync(ctx) }); err != nil {
		return posix.Result{}, err
	}
	g := v.inSlot(slotOf(c))
	if g == nil {
		return posix.Result{}, syscall.ESTALE
	}
	return v.proposeAlone(ctx, g, c, nil)
}

// changeOpen is change, as proposeOpen is propose.
func (v *Volume) changeOpen(ctx context.Context, c command.Command, open *opens) (posix.Result, error) {
	res, _, err := v.changeIn(ctx, slotOf(c), c, open)
	return res, err
}

// changeTx is change, and tells the tag under which it was done.
func (v *Volume) changeTx(ctx context.Context, c command.Command) (posix.Result, command.Tag, error) {
	return v.changeIn(ctx, slotOf(c), c, nil)
}

// changeIn is change, as proposeTx is propose.
func (v *Volume) changeIn(ctx context.Context, slot uint16, c command.Command, open *opens) (posix.Result, command.Tag, error) {
	if v.readOnly.Load() {
		return posix.Result{}, command.Tag{}, syscall.EROFS
	}
	if err := v.eng.WaitRoom(func() error { return v.Sync(ctx) }); err != nil {
		return posix.Result{}, command.Tag{}, err
	}
	return v.proposeTx(ctx, slot, c, open)
}

// reserve promises blocks to a change and returns the function that takes the promise back. What was unlinked is
// freed first when that helps.
func (v *Volume) reserve(ctx context.Context, blocks uint64) (func(), error) {
	if v.node != nil && blocks > 0 {
		if err := v.node.room(blocks); err != nil {
			return nil, err
		}
	}
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
	groups := v.all()
	last := make([]uint64, len(groups))
	for i, g := range groups {
		last[i] = g.AppliedIndex()
	}
	if err := v.eng.SyncPrepared(); err != nil {
		return err
	}
	for i, g := range groups {
		if err := g.Sync(ctx); err != nil {
			return err
		}
		g.promise(last[i])
	}
	return nil
}

// Checkpoint makes everything done so far durable in the metadata and gives freed space back.
func (v *Volume) Checkpoint() error { return v.eng.Checkpoint() }

// NewLog is what vde/check needs to put a new log in the place of a damaged one: see consensus.NewLog.
func NewLog(f vfs.FS, dir string, node, applied, appliedTerm, term uint64, next []logstore.Entry) error {
	return consensus.NewLog(f, dir, node, applied, appliedTerm, term, next)
}

// OnlyVoter is what vde/check needs to know before it does so to a node of a cluster: see consensus.OnlyVoter.
func OnlyVoter(f vfs.FS, dir string, node uint64) bool { return consensus.OnlyVoter(f, dir, node) }
