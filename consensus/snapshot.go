package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"vdefs/consensus/logstore"
	"vdefs/consensus/transport"
)

// sendSnapshot sends the state machine's state to the follower that m is for.
func (g *Group) sendSnapshot(rep *replica, m *pb.Message) {
	err := g.trySendSnapshot(rep, m)
	if err != nil {
		g.m.metrics.snapshotsFailed.WithLabelValues(string(g.name)).Inc()
		g.m.cfg.Logger.WithError(err).Warnf("raft group %s: sending a snapshot to node %d failed", g.name, m.GetTo())
	}
	if err == nil {
		g.m.metrics.snapshotsSent.WithLabelValues(string(g.name)).Inc()
	}
	_ = g.stepReplica(rep, func() error { return rep.snapshotSent(m.GetTo(), err == nil) })
}

func (g *Group) trySendSnapshot(rep *replica, m *pb.Message) error {
	data, err := g.openSnapshot(rep, m)
	if err != nil {
		return err
	}
	defer data.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-g.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return g.m.cfg.Transport.SendSnapshot(ctx, string(g.name), m, data)
}

// openSnapshot takes a snapshot and makes m describe it.
func (g *Group) openSnapshot(rep *replica, m *pb.Message) (io.ReadCloser, error) {
	g.drive.applyMu.Lock()
	defer g.drive.applyMu.Unlock()
	sm, ok := g.sm.(Snapshotter)
	if !ok {
		return nil, errors.New("the state machine makes no snapshots")
	}
	index := g.applied.Load()
	term, err := g.log.Term(index)
	if err != nil {
		return nil, err
	}
	conf, ok := rep.store.membershipAt(index)
	if !ok {
		return nil, fmt.Errorf("entry %d is applied, and the membership is that of a later one", index)
	}
	data, err := sm.Snapshot()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	rep.snapshotBegun(m.GetTo(), index)
	g.mu.Unlock()
	m.Snapshot = &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: conf}}
	return data, nil
}

// incomingSnapshots are what other nodes sent, until it is installed. Files are made,
// changed and removed in Group.whileOpen only.
type incomingSnapshots struct {
	mu       sync.Mutex
	whole    map[uint64]*part // by index of the snapshot
	kept     *part            // what an earlier run left and its sender may go on with, nil for none
	arriving int
	made     int // files, for their names
}

const (
	partPrefix = "snapshot-"
	partSuffix = ".part"
	// maxArriving bounds the snapshots of one group that arrive at once: the second is
	// there because the sender has given the first one up.
	maxArriving = 2
	// keptFor is how long what an earlier run left is kept for a sender to come back. One
	// that is there tries for a quarter of that.
	keptFor = 2 * time.Minute
)

func (g *Group) partPath(index uint64, made int) string {
	return g.m.cfg.FS.PathJoin(g.dir, fmt.Sprintf("%s%016x-%d%s", partPrefix, index, made, partSuffix))
}

// whileOpen runs f, which works on the group's files. It fails when the group is closed;
// closing waits for f.
func (g *Group) whileOpen(f func() error) error {
	g.mu.Lock()
	if err := g.usableLocked(); err != nil {
		g.mu.Unlock()
		return err
	}
	g.drive.work.Add(1)
	g.mu.Unlock()
	defer g.drive.work.Done()
	return f()
}

// usable returns why the group cannot be used, if so.
func (g *Group) usable() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.usableLocked()
}

// receiveSnapshot keeps a snapshot's data in a file and hands its message to the
// engine, which says later whether to install it. Nothing is locked while the data
// arrives.
func (g *Group) receiveSnapshot(rep *replica, m *pb.Message, data io.Reader) error {
	meta := m.GetSnapshot().GetMetadata()
	if meta.GetIndex() <= g.applied.Load() {
		return g.stepReplica(rep, func() error { return rep.step(m) }) // the engine answers
	}
	id := partID{index: meta.GetIndex(), term: meta.GetTerm()}
	resumable, ok := data.(transport.Resumable)
	if ok {
		id.identity = resumable.Identity()
	}
	p, err := g.beginReceive(id)
	if err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	err = g.receivePart(p, data, resumable)
	if err = g.endReceive(p, err); err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	return g.stepReplica(rep, func() error { return rep.step(m) })
}

// beginReceive returns the part that a snapshot goes into: that of an earlier run, if it
// is of the same snapshot, or a new one. Of another snapshot it is removed.
func (g *Group) beginReceive(id partID) (p *part, err error) {
	in := &g.drive.incoming
	err = g.whileOpen(func() error {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.arriving == maxArriving {
			return fmt.Errorf("%d snapshots of group %s are arriving already", in.arriving, g.name)
		}
		if in.kept != nil && in.kept.id == id {
			p, in.kept = in.kept, nil
		} else {
			g.dropKeptLocked()
			in.made++
			p = &part{id: id, path: g.partPath(id.index, in.made)}
		}
		in.arriving++
		return nil
	})
	return p, err
}

// receivePart writes what arrives into a part, behind what is there.
func (g *Group) receivePart(p *part, data io.Reader, resumable transport.Resumable) (err error) {
	var f vfs.File
	if err := g.whileOpen(func() error {
		f, err = g.m.cfg.FS.OpenReadWrite(p.path, vfs.WriteCategoryUnspecified)
		return err
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if p.end > 0 {
		if err := p.scan(f, g.usable); err != nil {
			return err
		}
	}
	if p.size > 0 {
		g.m.cfg.Logger.Infof("raft group %s: of the snapshot of entry %d %d bytes are here from before the start: it goes on behind them", g.name, p.id.index, p.size)
		resumable.GoOn(p.size, p.crc)
	} else if err := g.whileOpen(func() error { return p.begin(f) }); err != nil {
		return err
	}
	arrived := g.m.metrics.snapshotBytes.WithLabelValues(string(g.name))
	rec := make([]byte, partRecord+transport.SnapshotChunk)
	for {
		n, err := data.Read(rec[partRecord:])
		if n > 0 {
			arrived.Add(float64(n))
			if err := g.whileOpen(func() error { return p.add(f, rec[:partRecord+n]) }); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// endReceive takes note of a part that is complete, and removes one that is not or that
// nobody needs. Once the group is closed it leaves it to the next run.
func (g *Group) endReceive(p *part, err error) error {
	in := &g.drive.incoming
	in.mu.Lock()
	in.arriving--
	in.mu.Unlock()
	return g.whileOpen(func() error {
		in.mu.Lock()
		defer in.mu.Unlock()
		if _, have := in.whole[p.id.index]; err != nil || have {
			_ = g.m.cfg.FS.Remove(p.path)
			return err
		}
		if in.whole == nil {
			in.whole = map[uint64]*part{}
		}
		in.whole[p.id.index] = p
		// Those that the engine did not want.
		g.dropPartsLocked(g.applied.Load())
		return nil
	})
}

// dropPartsLocked removes the parts of snapshots up to index. The caller holds
// g.drive.incoming.mu.
func (g *Group) dropPartsLocked(index uint64) {
	in := &g.drive.incoming
	for i, p := range in.whole {
		if i <= index {
			delete(in.whole, i)
			_ = g.m.cfg.FS.Remove(p.path)
		}
	}
	if in.kept != nil && in.kept.id.index <= index {
		g.dropKeptLocked()
	}
}

// dropKeptLocked removes what an earlier run left. The caller holds
// g.drive.incoming.mu.
func (g *Group) dropKeptLocked() {
	in := &g.drive.incoming
	if in.kept != nil {
		_ = g.m.cfg.FS.Remove(in.kept.path)
		in.kept = nil
	}
}

// removeParts removes what snapshots left that were not installed before the process
// ended, but for the newest that a sender may go on with. It is called before the group
// is opened.
func (g *Group) removeParts() error {
	fs := g.m.cfg.FS
	names, err := fs.List(g.dir)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return !strings.HasPrefix(name, partPrefix) || !strings.HasSuffix(name, partSuffix)
	})
	if len(names) == 0 {
		return nil
	}
	hard, err := logstore.ReadState(fs, g.dir)
	if err != nil {
		return err
	}
	in := &g.drive.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, name := range names {
		var index uint64
		var made int
		_, _ = fmt.Sscanf(name, partPrefix+"%x-%d"+partSuffix, &index, &made)
		in.made = max(in.made, made) // no name is used twice
		p := &part{path: fs.PathJoin(g.dir, name), end: partHeader}
		// What cannot be read is of no use. Of what was begun to be installed everything was here, and
		// its sender knows.
		if p.id, err = readPartID(fs, p.path); err != nil || !p.id.resumable() || p.id.index <= hard.SnapIndex {
			if err := fs.Remove(p.path); err != nil {
				return err
			}
			continue
		}
		if in.kept != nil && in.kept.id.index > p.id.index {
			in.kept, p = p, in.kept
		}
		g.dropKeptLocked()
		in.kept = p
	}
	if in.kept != nil && !g.m.cfg.manual {
		time.AfterFunc(keptFor, g.forgetKept)
	}
	return nil
}

// forgetKept removes what an earlier run left, if its sender has not come back.
func (g *Group) forgetKept() {
	_ = g.whileOpen(func() error { // closed, it is the next run's business
		g.drive.incoming.mu.Lock()
		defer g.drive.incoming.mu.Unlock()
		g.dropKeptLocked()
		return nil
	})
}

// install makes the state machine what a received snapshot says.
func (g *Group) install(s *pb.Snapshot) error {
	index, term := s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	sm, ok := g.sm.(Snapshotter)
	if !ok {
		return errors.New("the state machine takes no snapshots")
	}
	in := &g.drive.incoming
	in.mu.Lock()
	p, ok := in.whole[index]
	in.mu.Unlock()
	if !ok {
		return fmt.Errorf("the data of snapshot %d is not here", index)
	}
	f, err := g.m.cfg.FS.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	g.drive.applyMu.Lock()
	defer g.drive.applyMu.Unlock()
	if err := sm.Restore(index, term, p.reader(f)); err != nil {
		return err
	}
	g.applied.Store(index)
	g.m.metrics.snapshotsReceived.WithLabelValues(string(g.name)).Inc()
	in.mu.Lock()
	defer in.mu.Unlock()
	g.dropPartsLocked(index)
	return nil
}
