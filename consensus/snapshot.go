package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
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
	data, err := sm.Snapshot()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	rep.snapshotBegun(m.GetTo(), index)
	g.mu.Unlock()
	m.Snapshot = &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: rep.store.membership()}}
	return data, nil
}

// incomingSnapshots are files with what other nodes sent, until they are installed.
type incomingSnapshots struct {
	mu       sync.Mutex
	files    map[uint64]string // by index of the snapshot
	arriving int
	made     int // files, for their names
}

const (
	partPrefix = "snapshot-"
	partSuffix = ".part"
	// maxArriving bounds the snapshots of one group that arrive at once: the second is
	// there because the sender has given the first one up.
	maxArriving = 2
)

// receiveSnapshot keeps a snapshot's data in a file and hands its message to the
// engine, which says later whether to install it. Nothing is locked while the data
// arrives.
func (g *Group) receiveSnapshot(rep *replica, m *pb.Message, data io.Reader) error {
	index := m.GetSnapshot().GetMetadata().GetIndex()
	if index <= g.applied.Load() {
		return g.stepReplica(rep, func() error { return rep.step(m) }) // the engine answers
	}
	path, err := g.beginReceive(index)
	if err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	err = g.writePart(path, data)
	if err = g.endReceive(index, path, err); err != nil {
		return fmt.Errorf("receiving a snapshot: %w", err)
	}
	return g.stepReplica(rep, func() error { return rep.step(m) })
}

func (g *Group) beginReceive(index uint64) (path string, err error) {
	in := &g.drive.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.arriving == maxArriving {
		return "", fmt.Errorf("%d snapshots of group %s are arriving already", in.arriving, g.name)
	}
	in.arriving++
	in.made++
	return g.m.cfg.FS.PathJoin(g.dir, fmt.Sprintf("%s%016x-%d%s", partPrefix, index, in.made, partSuffix)), nil
}

func (g *Group) writePart(path string, data io.Reader) error {
	f, err := g.m.cfg.FS.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, data)
	g.m.metrics.snapshotBytes.WithLabelValues(string(g.name)).Add(float64(n))
	return errors.Join(err, f.Close())
}

// endReceive takes note of a file that is complete, and removes one that is not or that
// nobody needs.
func (g *Group) endReceive(index uint64, path string, err error) error {
	in := &g.drive.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	in.arriving--
	if _, have := in.files[index]; err != nil || have {
		_ = g.m.cfg.FS.Remove(path)
		return err
	}
	if in.files == nil {
		in.files = map[uint64]string{}
	}
	in.files[index] = path
	// Those that the engine did not want.
	g.dropPartsLocked(g.applied.Load())
	return nil
}

// dropPartsLocked removes the files of snapshots up to index. The caller holds
// g.drive.incoming.mu.
func (g *Group) dropPartsLocked(index uint64) {
	for i, path := range g.drive.incoming.files {
		if i <= index {
			delete(g.drive.incoming.files, i)
			_ = g.m.cfg.FS.Remove(path)
		}
	}
}

// removeParts removes what snapshots left that were not installed before the process
// ended. It is called before the group is opened.
func (g *Group) removeParts() error {
	names, err := g.m.cfg.FS.List(g.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, partPrefix) && strings.HasSuffix(name, partSuffix) {
			if err := g.m.cfg.FS.Remove(g.m.cfg.FS.PathJoin(g.dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
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
	path, ok := in.files[index]
	in.mu.Unlock()
	if !ok {
		return fmt.Errorf("the data of snapshot %d is not here", index)
	}
	f, err := g.m.cfg.FS.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	g.drive.applyMu.Lock()
	defer g.drive.applyMu.Unlock()
	if err := sm.Restore(index, term, f); err != nil {
		return err
	}
	g.applied.Store(index)
	g.m.metrics.snapshotsReceived.WithLabelValues(string(g.name)).Inc()
	in.mu.Lock()
	defer in.mu.Unlock()
	g.dropPartsLocked(index)
	return nil
}
