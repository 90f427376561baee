package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"vdefs/consensus/logstore"
)

// The driver of a group with several voters: it steps the replica under Group.mu
// and does the work that a step makes due on goroutines of the group, which run
// only while there is work:
//
//	appendLoop    one at most; log and hard state
//	applyLoop     one at most; the state machine
//	sendSnapshot  one per follower that needs a snapshot
//
// Group.work waits for them. Time comes from Manager.tickLoop, messages from the
// transport.
//
// With Config.manual none of them runs: the simulator calls appendOnce, applyOnce
// and sendSnapshot when it sees fit.
type driver struct {
	snapOut             []*pb.Message  // with Config.manual: snapshots to send
	appending, applying bool           // guarded by Group.mu
	newsDue             bool           // a timer runs for what is held back; guarded by Group.mu
	unfinished          *appendWork    // found the disk full; guarded by Group.mu
	stalled             atomic.Bool    // unfinished is not nil
	unapplied           *applyWork     // what errConfUnsaved or errRestoring stopped; guarded by Group.mu
	unsaved             atomic.Bool    // the former did
	work                sync.WaitGroup // Add with Group.mu held and closed false
	applyMu             sync.Mutex     // held over Apply, Snapshot and Restore; before Group.mu
	queue               proposalQueue
	incoming            incomingSnapshots
}

// startReplica makes the group one of several voters. The caller holds g.mu, and
// nothing else steps the group.
func (g *Group) startReplica(hard logstore.HardState) error {
	_, canSnapshot := g.sm.(Snapshotter)
	rep, err := newReplica(replicaConfig{
		id: g.m.cfg.NodeID, name: g.name, log: g.log, hard: hard, applied: g.applied.Load(),
		saveState:     func(s logstore.HardState) error { return logstore.WriteState(g.m.cfg.FS, g.dir, s) },
		logger:        raftLogger{g.m.cfg.Logger.WithField("group", string(g.name))},
		electionTicks: g.m.cfg.ElectionTicks, heartbeatTicks: g.m.cfg.HeartbeatTicks,
		leaseReads: g.m.cfg.LeaseReads, tickInterval: g.m.cfg.TickInterval, now: g.m.cfg.clock, sleepTicks: g.m.cfg.sleepTicks, fullTicks: g.m.cfg.fullTicks, onLeader: g.m.metrics.leaderChanges.WithLabelValues(string(g.name)).Inc,
		onElection:  g.m.metrics.elections.WithLabelValues(string(g.name)).Inc,
		canSnapshot: canSnapshot, fault: g.m.cfg.fault,
	})
	if err != nil {
		return err
	}
	if l, ok := g.log.(*logstore.FileLogStore); ok {
		l.SetCacheBytes(replicaCache, g.applied.Load())
		rep.onApplied = l.SetApplied
	}
	g.rep.Store(rep)
	return nil
}

// replicaCache is how many bytes of recent entries a replica keeps in memory, beside
// those that are not applied yet.
const replicaCache = 4 << 20

// stepReplica runs one step of the replica and starts the work it makes due.
// raft.ErrProposalDropped is passed on; any other error stops the group.
func (g *Group) stepReplica(rep *replica, step func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stepReplicaLocked(rep, step)
}

func (g *Group) stepReplicaLocked(rep *replica, step func() error) error {
	if err := g.usableLocked(); err != nil {
		return err
	}
	err := step()
	if errors.Is(err, errFull) {
		err = fullErr(g.name, rep.full)
	} else if err != nil && !errors.Is(err, raft.ErrProposalDropped) {
		return g.stopReplicaLocked(rep, err)
	}
	g.pumpLocked(rep)
	return err
}

func (g *Group) stopReplicaLocked(rep *replica, cause error) error {
	err := g.stop(cause)
	rep.abandon(err)
	return err
}

// pumpLocked sends what is to be sent and starts the work that is due.
func (g *Group) pumpLocked(rep *replica) {
	out := rep.takeOut()
	manual := g.m.cfg.manual
	for _, m := range out {
		switch {
		case m.GetType() != pb.MsgSnap:
			g.m.cfg.Transport.Send(string(g.name), m)
		case manual:
			g.drive.snapOut = append(g.drive.snapOut, m)
		default:
			g.drive.work.Add(1)
			go func() {
				defer g.drive.work.Done()
				g.sendSnapshot(rep, m)
			}()
		}
	}
	if manual {
		return
	}
	if len(rep.news.held) > 0 && !g.drive.newsDue {
		g.drive.newsDue = true
		time.AfterFunc(newsDelay, func() {
			// A failure stops the group, which is where it is reported.
			_ = g.stepReplica(rep, func() error { g.drive.newsDue = false; rep.releaseNews(); return nil })
		})
	}
	if !g.drive.appending && len(rep.appendQ) > 0 {
		g.drive.appending = true
		g.drive.work.Add(1)
		go g.appendLoop(rep)
	}
	if !g.drive.applying && (len(rep.applyQ) > 0 || g.drive.unapplied != nil) && rep.restoring == 0 {
		g.drive.applying = true
		g.drive.work.Add(1)
		go g.applyLoop(rep)
	}
}

func (g *Group) appendLoop(rep *replica) {
	defer g.drive.work.Done()
	for g.appendOnce(rep) {
		if g.drive.stalled.Load() {
			g.waitForRoom()
		}
	}
}

func (g *Group) waitForRoom() {
	select {
	case <-time.After(fullRetry):
	case <-g.done:
	}
}

func (g *Group) sayFull(full bool, err error) {
	if full {
		g.m.cfg.Logger.WithError(err).Warnf("raft group %s: the disk is full, this node waits", g.name)
		return
	}
	g.m.cfg.Logger.Infof("raft group %s: there is room on the disk again", g.name)
}

func (g *Group) applyLoop(rep *replica) {
	defer g.drive.work.Done()
	for g.applyOnce(rep) {
		if g.drive.unsaved.Load() {
			g.waitForRoom()
		}
	}
}

// appendOnce does the work that is due on the log; false if there was none.
func (g *Group) appendOnce(rep *replica) bool {
	g.mu.Lock()
	w := g.drive.unfinished
	if w == nil {
		w = rep.takeAppend()
	}
	if w == nil || g.usableLocked() != nil {
		g.drive.appending = false
		g.mu.Unlock()
		return false
	}
	g.mu.Unlock()
	g.m.syncSlots <- struct{}{}
	err := w.run(g.install)
	<-g.m.syncSlots
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last.Store(g.log.LastIndex())
	full := errors.Is(err, ErrNotAppended)
	if was := g.drive.stalled.Swap(full); was != full && (full || err == nil) {
		g.sayFull(full, err)
	}
	g.drive.unfinished = nil
	switch {
	case full:
		g.drive.unfinished = w
		err = rep.stalled(err)
	case err == nil:
		err = rep.appended(w)
	}
	if err != nil {
		_ = g.stopReplicaLocked(rep, err)
	}
	g.pumpLocked(rep)
	return true
}

// applyOnce applies one batch of committed entries; false if there was none.
func (g *Group) applyOnce(rep *replica) bool {
	g.mu.Lock()
	w := g.drive.unapplied
	if w == nil {
		w = rep.takeApply()
	}
	if w == nil || g.usableLocked() != nil {
		g.drive.applying = false
		g.mu.Unlock()
		return false
	}
	g.mu.Unlock()
	err := g.applyBatch(rep, w)
	g.mu.Lock()
	defer g.mu.Unlock()
	full := errors.Is(err, errConfUnsaved)
	g.drive.unapplied = nil
	if errors.Is(err, errRestoring) {
		g.drive.unapplied, g.drive.applying = w, false
		g.pumpLocked(rep) // it may be here by now
		return false
	}
	g.drive.unsaved.Store(full)
	switch {
	case full:
		g.drive.unapplied = w
		err = rep.stalled(err)
	case err == nil:
		err = rep.appliedAll(w.m)
	}
	if err != nil {
		err = g.stopReplicaLocked(rep, err)
		for _, t := range w.tickets {
			if t != nil {
				t.finish(nil, err)
			}
		}
	}
	g.pumpLocked(rep)
	return true
}

// errRestoring is why applying waits for a snapshot: the engine has its membership already, so it cannot be told of a change before
// it, nor may the state machine pass over that.
var errRestoring = errors.New("a snapshot is about to be installed")

// applyBatch applies committed entries. After errConfUnsaved and errRestoring it can be called again
// and goes on from there.
func (g *Group) applyBatch(rep *replica, w *applyWork) error {
	g.drive.applyMu.Lock()
	defer g.drive.applyMu.Unlock()
	if w.conf != nil && w.confIndex <= g.applied.Load() {
		// A snapshot came in between and has a later one.
		if w.confTicket != nil {
			w.confTicket.finish(nil, fmt.Errorf("%w: group %s: entry %d came with a snapshot", ErrUnknownOutcome, g.name, w.confIndex))
		}
		w.conf, w.confTicket = nil, nil
	}
	if w.conf != nil {
		if err := g.saveConf(rep, w); err != nil {
			return err
		}
	}
	tickets := w.tickets
	for i, e := range w.m.GetEntries() {
		index := e.GetIndex()
		if index <= g.applied.Load() {
			// A snapshot came in between and holds it.
			if tickets[i] != nil {
				tickets[i].finish(nil, fmt.Errorf("%w: group %s: entry %d came with a snapshot", ErrUnknownOutcome, g.name, index))
			}
			continue
		}
		switch d := e.GetData(); {
		case e.GetType() != pb.EntryNormal:
			if err := g.applyConf(rep, w, e); err != nil {
				return err
			}
		case len(d) >= tagSize:
			var local any
			if tickets[i] != nil {
				local = tickets[i].local
			}
			result, err := g.sm.Apply(index, e.GetTerm(), d[tagSize:len(d):len(d)], local)
			if err != nil {
				return fmt.Errorf("applying entry %d: %w", index, err)
			}
			if rep.fault.applyTwice && index%7 == 0 {
				if _, err := g.sm.Apply(index, e.GetTerm(), d[tagSize:len(d):len(d)], nil); err != nil {
					return err
				}
			}
			g.applied.Store(index)
			if tickets[i] != nil {
				tickets[i].finish(result, nil)
			}
		}
		g.applied.Store(index)
	}
	return nil
}

func (g *Group) applyConf(rep *replica, w *applyWork, e *pb.Entry) error {
	g.mu.Lock()
	conf, t, err := rep.applyConf(e)
	g.mu.Unlock()
	if err == nil && conf != nil {
		w.conf, w.confIndex, w.confTicket = conf, e.GetIndex(), t
		return g.saveConf(rep, w)
	}
	if t != nil {
		t.finish(nil, err)
	}
	return err
}

// saveConf makes the membership durable that w has come to.
func (g *Group) saveConf(rep *replica, w *applyWork) error {
	err := rep.saveConf(w.conf, w.confIndex)
	if errors.Is(err, ErrNotAppended) {
		return fmt.Errorf("%w: %v", errConfUnsaved, err)
	}
	if err == nil {
		g.applied.Store(w.confIndex)
	}
	if w.confTicket != nil {
		w.confTicket.finish(nil, err)
	}
	w.conf, w.confTicket = nil, nil
	return err
}

// proposalQueue holds the proposals that wait for Group.mu: who has it next makes all
// of them.
type proposalQueue struct {
	mu      sync.Mutex // after Group.mu
	waiting []*ticket
	leading bool // somebody is on the way to make what waits
}

// add queues proposals; lead: it is the caller's to make what waits.
func (q *proposalQueue) add(ts ...*ticket) (lead bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, ts...)
	lead = !q.leading
	q.leading = true
	return lead
}

// take empties the queue.
func (q *proposalQueue) take() []*ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	ts := q.waiting
	q.waiting, q.leading = nil, false
	return ts
}

// forget takes a proposal out of the queue, if it is there.
func (q *proposalQueue) forget(t *ticket) (was bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, t)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	return true
}

// proposeQueued makes proposals, together with those that others are about to make. A
// ticket is answered with an error where it is refused; raft.ErrProposalDropped means: not now.
func (g *Group) proposeQueued(rep *replica, ts ...*ticket) {
	if !g.drive.queue.add(ts...) {
		return
	}
	runtime.Gosched() // who was answered at the same time comes along
	g.mu.Lock()
	defer g.mu.Unlock()
	for ts := g.drive.queue.take(); len(ts) > 0; {
		n, size := 1, len(ts[0].cmd)
		for ; n < len(ts) && size+len(ts[n].cmd) <= maxJoinedBytes; n++ {
			size += len(ts[n].cmd)
		}
		if err := g.stepReplicaLocked(rep, func() error { return rep.proposeTogether(ts[:n]) }); err != nil {
			for _, t := range ts {
				t.finish(nil, err)
			}
			return
		}
		ts = ts[n:]
	}
}

// proposeCommand is Propose where there are several voters.
func (g *Group) proposeCommand(ctx context.Context, rep *replica, cmd []byte, local any) (any, error) {
	return g.proposeReplicated(ctx, rep, local, func(t *ticket) error {
		t.cmd = cmd
		g.proposeQueued(rep, t)
		return nil
	})
}

// proposeAllReplicated is ProposeAll where there are several voters.
func (g *Group) proposeAllReplicated(ctx context.Context, rep *replica, cmds [][]byte, locals []any, answers []Answer) {
	ts := make([]*ticket, len(cmds))
	for i := range ts {
		ts[i] = newTicket(locals[i])
		ts[i].cmd = cmds[i]
	}
	g.proposeQueued(rep, ts...)
	for i, t := range ts {
		result, err := g.await(ctx, rep, t)
		if errors.Is(err, raft.ErrProposalDropped) || errors.Is(err, ErrDropped) && ctx.Err() == nil {
			result, err = g.proposeCommand(ctx, rep, cmds[i], locals[i]) // certainly not applied
		}
		answers[i] = Answer{result, err}
	}
}

// proposeReplicated is a proposal where there are several voters.
func (g *Group) proposeReplicated(ctx context.Context, rep *replica, local any, propose func(*ticket) error) (any, error) {
	for {
		t := newTicket(local)
		var result any
		err := propose(t)
		if err == nil {
			result, err = g.await(ctx, rep, t)
		}
		if errors.Is(err, raft.ErrProposalDropped) {
			// No leader, one that is handing over, or too much under way: not now.
			if err := g.pause(ctx); err != nil {
				return nil, fmt.Errorf("group %s has no leader that takes proposals: %w", g.name, err)
			}
			continue
		}
		if errors.Is(err, ErrDropped) && ctx.Err() == nil {
			continue // certainly not applied
		}
		return result, err
	}
}

// pause waits a little for the group to change its mind.
func (g *Group) pause(ctx context.Context) error {
	timer := time.NewTimer(g.m.cfg.TickInterval)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-g.done:
		return g.closedErr()
	}
}

// await waits for a ticket's outcome.
func (g *Group) await(ctx context.Context, rep *replica, t *ticket) (any, error) {
	select {
	case o := <-t.done:
		return o.result, o.err
	case <-ctx.Done():
		return g.giveUp(rep, t, ctx.Err())
	case <-g.done:
		return g.giveUp(rep, t, g.closedErr())
	}
}

// giveUp takes a ticket back. One that is being applied at this moment is waited
// for: its result may have to be looked after.
func (g *Group) giveUp(rep *replica, t *ticket, cause error) (any, error) {
	g.mu.Lock()
	waiting := g.drive.queue.forget(t) || rep.forget(t)
	g.mu.Unlock()
	if !waiting {
		o := <-t.done
		return o.result, o.err
	}
	return nil, fmt.Errorf("%w: group %s: %w", ErrUnknownOutcome, g.name, cause)
}

func (g *Group) closedErr() error {
	if err := g.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: group %s", ErrClosed, g.name)
}

// MemberChange is one change of a group's membership.
type MemberChange struct {
	Node uint64
	// Kind is what the node becomes.
	Kind MemberKind
}

// MemberKind is what a node is in a group.
type MemberKind int

const (
	// Voter counts for elections and commits.
	Voter MemberKind = iota
	// Learner gets everything and counts for nothing: what a new node is until it
	// has caught up.
	Learner
	// Removed is no member.
	Removed
)

// ChangeMembers changes the membership, with joint consensus where several
// changes are made at once, and returns when the change is applied here. A group
// that was alone on this node replicates from then on; the transport must be set.
func (g *Group) ChangeMembers(ctx context.Context, changes ...MemberChange) error {
	if len(changes) == 0 {
		return nil
	}
	if g.m.cfg.Transport == nil {
		return fmt.Errorf("consensus: group %s cannot have other members: Config.Transport is not set", g.name)
	}
	rep, err := g.ensureReplica()
	if err != nil {
		return err
	}
	cc := &pb.ConfChangeV2{}
	for _, c := range changes {
		s := &pb.ConfChangeSingle{NodeId: new(c.Node)}
		switch c.Kind {
		case Voter:
			s.Type = pb.ConfChangeAddNode.Enum()
		case Learner:
			s.Type = pb.ConfChangeAddLearnerNode.Enum()
		case Removed:
			s.Type = pb.ConfChangeRemoveNode.Enum()
		default:
			return fmt.Errorf("consensus: %d is not a kind of member", c.Kind)
		}
		if c.Node == 0 {
			return errors.New("consensus: 0 is no node")
		}
		cc.Changes = append(cc.Changes, s)
	}
	_, err = g.proposeReplicated(ctx, rep, nil, func(t *ticket) error {
		return g.stepReplica(rep, func() error { return rep.proposeConf(cc, t) })
	})
	return err
}

// ensureReplica turns a group that is alone into one that can replicate.
func (g *Group) ensureReplica() (*replica, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if rep := g.rep.Load(); rep != nil {
		return rep, nil
	}
	if err := g.usableLocked(); err != nil {
		return nil, err
	}
	// From here on everything is durable before it is acknowledged, so what was
	// acknowledged before has to be.
	if err := g.log.Sync(); err != nil {
		return nil, g.stop(err)
	}
	if c, ok := g.sm.(Consolidator); ok && g.last.Load() > 0 {
		if err := c.Consolidate(); err != nil {
			return nil, g.stop(err)
		}
		switch err := g.log.Reset(g.last.Load(), g.log.LastTerm()); {
		case errors.Is(err, ErrNotAppended):
			return nil, fullErr(g.name, err)
		case err != nil:
			return nil, g.stop(err)
		}
	}
	hard := g.hard
	hard.Commit = g.last.Load()
	if err := g.startReplica(hard); err != nil {
		return nil, g.stop(err)
	}
	rep := g.rep.Load()
	if err := rep.campaign(); err != nil {
		return nil, g.stopReplicaLocked(rep, err)
	}
	g.pumpLocked(rep)
	return rep, nil
}

// TransferLeader hands the leadership to node and returns when this node sees it
// lead.
func (g *Group) TransferLeader(ctx context.Context, node uint64) error {
	rep := g.rep.Load()
	if rep == nil {
		if node == g.m.cfg.NodeID {
			return nil
		}
		return fmt.Errorf("consensus: group %s has no other member", g.name)
	}
	for {
		leader := uint64(0)
		if err := g.stepReplica(rep, func() error {
			leader = rep.leader
			if leader == node || leader == 0 {
				return nil
			}
			return rep.transfer(node)
		}); err != nil {
			return err
		}
		if leader == node {
			return nil
		}
		if err := g.pause(ctx); err != nil {
			return fmt.Errorf("handing group %s to node %d: %w", g.name, node, err)
		}
	}
}

// tickLoop gives the groups with several voters their time.
func (m *Manager) tickLoop() {
	defer m.loops.Done()
	timer := time.NewTicker(m.cfg.TickInterval)
	defer timer.Stop()
	for ticks := 1; ; ticks++ {
		select {
		case <-m.quit:
			return
		case <-timer.C:
		}
		if ticks%localityTicks == 0 {
			m.moveToUsers()
		}
		if ticks%balanceTicks == 0 {
			m.balance()
		}
		for _, g := range m.opened() {
			if rep := g.rep.Load(); rep != nil && !rep.sleep.asleep.Load() {
				// A failure stops the group, which is where it is reported.
				_ = g.stepReplica(rep, rep.tick)
			}
		}
	}
}

// receiver is the manager as the transport's handler.
type receiver struct{ m *Manager }

// Receive implements transport.Handler.
func (h receiver) Receive(group string, m *pb.Message) {
	g, rep := h.find(group, m.GetFrom())
	if rep == nil {
		return
	}
	err := checkMessage(m)
	if err == nil && m.GetType() == pb.MsgSnap {
		err = errors.New("a snapshot without its data")
	}
	if err != nil {
		h.m.badMessages.Add(1)
		h.m.sayOnce(fmt.Sprintf("bad %d %s", m.GetFrom(), group), "raft group %s: a message of node %d is refused: %v", group, m.GetFrom(), err)
		return
	}
	_ = g.stepReplica(rep, func() error { return rep.step(m) })
}

// find returns the replica that a message is for; where there is none the message
// is counted, and logged for the first time.
func (h receiver) find(group string, from uint64) (*Group, *replica) {
	if g, ok := h.m.GetGroup(GroupID(group)); ok {
		return g, g.rep.Load()
	}
	h.m.strayMessages.Add(1)
	h.m.sayOnce("stray "+group, "raft: node %d sends messages for group %.40q, which is not open here", from, group)
	return nil, nil
}

// sayOnce logs a warning the first time that key comes up. Other nodes choose the
// keys: after maxSaid of them nothing more is logged or remembered.
func (m *Manager) sayOnce(key, format string, args ...any) {
	m.saidMu.Lock()
	defer m.saidMu.Unlock()
	if m.said[key] || len(m.said) >= maxSaid {
		return
	}
	m.said[key] = true
	m.cfg.Logger.Warnf(format, args...)
}

const maxSaid = 1000

// ReceiveSnapshot implements transport.Handler.
func (h receiver) ReceiveSnapshot(group string, m *pb.Message, data io.Reader) error {
	g, rep := h.find(group, m.GetFrom())
	if rep == nil {
		return fmt.Errorf("%w: %.40q", ErrGroupNotFound, group)
	}
	if err := checkMessage(m); err != nil {
		h.m.badMessages.Add(1)
		return fmt.Errorf("consensus: group %s: %w", group, err)
	}
	return g.receiveSnapshot(rep, m, data)
}

// Unreachable implements transport.Handler.
func (h receiver) Unreachable(peer uint64) {
	for _, g := range h.m.opened() {
		if rep := g.rep.Load(); rep != nil {
			_ = g.stepReplica(rep, func() error { return rep.unreachable(peer) })
		}
	}
}
