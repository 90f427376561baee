package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// Group is one Raft group on this node. All methods may be called from any
// goroutine.
type Group struct {
	name GroupID
	m    *Manager
	dir  string
	log  LogStore // has its own locks

	last    atomic.Uint64 // last index of the log; written with mu held
	applied atomic.Uint64 // written with mu held
	failure atomic.Pointer[error]
	done    chan struct{} // closed when the group has failed or was closed
	once    sync.Once     // closes done

	compactMu sync.Mutex // one Compact at a time

	// rep is the replica, once the group has (or had) several voters; before, this
	// node alone is the group. It is set with mu held and never unset.
	rep   atomic.Pointer[replica]
	drive driver

	together together

	mu     sync.Mutex // one step at a time; guards what follows
	sm     StateMachine
	hard   logstore.HardState
	conf   *pb.ConfState
	closed bool
	// one is the entry being proposed, kept here so that it is not allocated.
	// Invariant: its Data is nil between proposals.
	one [1]logstore.Entry
}

// Status describes a group on this node at one moment.
type Status struct {
	Group  GroupID
	NodeID uint64
	State  string // "leader", "follower", ...; "stopped" after a failure
	Leader uint64 // 0: none known
	Term   uint64

	First, Last uint64 // indexes of the log
	Durable     uint64 // known to be on this node's disk up to here
	Commit      uint64
	Applied     uint64

	Voters, Learners []uint64
	Err              error // why it stopped
	Full             error // why the log takes nothing now: the disk is full

	// What waits, with several voters.
	WaitingProposals, WaitingReads, AppendQueue, ApplyQueue int
}

// Name returns the group's name.
func (g *Group) Name() GroupID { return g.name }

// Done is closed when the group has stopped or was closed.
func (g *Group) Done() <-chan struct{} { return g.done }

// Err returns why the group stopped, nil while it works.
func (g *Group) Err() error {
	if p := g.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// stop makes the group fail for good, with the first error given.
func (g *Group) stop(cause error) error {
	err := fmt.Errorf("%w: group %s: %w", ErrStopped, g.name, cause)
	if g.failure.CompareAndSwap(nil, &err) {
		g.m.cfg.Logger.WithError(cause).Errorf("raft group %s has stopped", g.name)
		g.once.Do(func() { close(g.done) })
	}
	return g.Err()
}

// usableLocked returns why the group cannot be used, if so.
func (g *Group) usableLocked() error {
	if err := g.Err(); err != nil {
		return err
	}
	if g.closed {
		return fmt.Errorf("%w: group %s", ErrClosed, g.name)
	}
	return nil
}

// Propose replicates cmd, applies it, and returns what Apply returned. local is
// handed to Apply on this node only, beside cmd. The group keeps cmd: the caller
// must not change it any more.
//
// When it returns nil, the entry is applied on this node and committed. Whether
// it is also durable here is said by Config.Sync and Sync. An error that wraps
// ErrNotAppended, ErrDiskFull or ErrTooLarge means that nothing happened; one that wraps
// ErrStopped, or ctx's, that nobody knows.
func (g *Group) Propose(ctx context.Context, cmd []byte, local any) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(cmd) > MaxCommandSize {
		return nil, fmt.Errorf("%w: the command has %d", ErrTooLarge, len(cmd))
	}
	rep := g.rep.Load()
	if rep == nil {
		result, alone, err := g.proposeSolo(cmd, local)
		if alone {
			return result, err
		}
		rep = g.rep.Load()
	}
	return g.proposeCommand(ctx, rep, cmd, local)
}

// Answer is what came of one command of ProposeAll.
type Answer struct {
	Result any   // what Apply returned
	Err    error // as of Propose
}

// ProposeAll is Propose for several commands at once, which share writes, syncs and messages: a caller that has many under way needs
// no goroutine for each. They are applied in their order, with those of others in between, unless the leader changes meanwhile. locals is
// nil, or has what is local to each. Each command has an answer of its own.
func (g *Group) ProposeAll(ctx context.Context, cmds [][]byte, locals []any) []Answer {
	answers := make([]Answer, len(cmds))
	err := ctx.Err()
	for i := range cmds {
		if err == nil && len(cmds[i]) > MaxCommandSize {
			err = fmt.Errorf("%w: command %d of %d has %d, none is proposed", ErrTooLarge, i, len(cmds), len(cmds[i]))
		}
	}
	if err != nil {
		for i := range answers {
			answers[i].Err = err
		}
		return answers
	}
	if locals == nil {
		locals = make([]any, len(cmds))
	}
	done := 0
	if g.rep.Load() == nil {
		done = g.proposeAllSolo(cmds, locals, answers)
	}
	if done < len(cmds) {
		g.proposeAllReplicated(ctx, g.rep.Load(), cmds[done:], locals[done:], answers[done:])
	}
	return answers
}

// ProposeAlone is Propose for a command that only this node can apply: it fails
// with ErrNotAlone, and nothing happened, once the group may have other members.
func (g *Group) ProposeAlone(ctx context.Context, cmd []byte, local any) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(cmd) > MaxCommandSize {
		return nil, fmt.Errorf("%w: the command has %d", ErrTooLarge, len(cmd))
	}
	result, alone, err := g.proposeSolo(cmd, local)
	if !alone {
		return nil, fmt.Errorf("%w: group %s", ErrNotAlone, g.name)
	}
	return result, err
}

// Replicated reports whether the group has, or may get, other members. It never
// becomes false again while the group is open.
func (g *Group) Replicated() bool { return g.rep.Load() != nil }

// proposeSolo is the whole way of a proposal where this node alone is the group:
// what is in the log is committed. alone is false, and nothing was done, where it
// is not.
func (g *Group) proposeSolo(cmd []byte, local any) (result any, alone bool, err error) {
	if g.m.cfg.Sync == SyncAlways {
		return g.proposeTogether(cmd, local)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rep.Load() != nil {
		return nil, false, nil
	}
	result, err = g.appendAndApplyLocked(cmd, local)
	return result, true, err
}

// proposeAllSolo is proposeSolo for several commands. It returns how many it has answered: all, unless the group is not alone any more.
func (g *Group) proposeAllSolo(cmds [][]byte, locals []any, answers []Answer) (done int) {
	for done < len(cmds) {
		var b *batch
		var from, n int
		if g.m.cfg.Sync == SyncAlways {
			if b, from, n = g.together.join(cmds[done:], locals[done:]); from == 0 {
				g.carryOut(b)
			} else {
				<-b.done
			}
		} else {
			b = newBatch(len(cmds) - done)
			n = b.add(cmds[done:], locals[done:])
			g.mu.Lock()
			if b.refused = g.rep.Load() != nil; !b.refused {
				b.err = g.writeBatchLocked(b)
			}
			g.mu.Unlock()
		}
		if b.refused {
			return done
		}
		for i := range n {
			answers[done+i] = Answer{b.joined[from+i].result, b.err}
		}
		done += n
	}
	return done
}

func (g *Group) appendAndApplyLocked(cmd []byte, local any) (any, error) {
	if err := g.usableLocked(); err != nil {
		return nil, err
	}
	e := &g.one[0]
	*e = logstore.Entry{Index: g.last.Load() + 1, Term: g.hard.Term, Type: logstore.EntryCommand, Data: cmd}
	err := g.appendLocked(g.one[:])
	e.Data = nil
	if err != nil {
		return nil, err
	}
	return g.applyLocked(e.Index, e.Term, cmd, local)
}

// appendLocked appends entries to the log: all of them or, with an error, none.
func (g *Group) appendLocked(entries []logstore.Entry) error {
	if err := g.log.Append(entries); err != nil {
		if errors.Is(err, ErrNotAppended) || errors.Is(err, ErrTooLarge) {
			return fmt.Errorf("group %s: %w", g.name, err)
		}
		return g.stop(err)
	}
	g.last.Store(entries[len(entries)-1].Index)
	return nil
}

func (g *Group) applyLocked(index, term uint64, cmd []byte, local any) (any, error) {
	result, err := g.sm.Apply(index, term, cmd, local)
	if err != nil {
		return nil, g.stop(fmt.Errorf("applying entry %d: %w", index, err))
	}
	g.applied.Store(index)
	return result, nil
}

// Sync returns when everything that was appended before the call is durable, on
// a majority. Callers that come together share one flush, which runs beside
// appending and applying.
func (g *Group) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if g.rep.Load() != nil {
		// What was acknowledged was durable on a majority before.
		return g.Err()
	}
	return g.syncLog()
}

// syncLog makes this node's log durable. It takes no lock of the group.
func (g *Group) syncLog() error {
	if err := g.Err(); err != nil {
		return err
	}
	switch err := g.log.Sync(); {
	case err == nil:
		return nil
	case errors.Is(err, logstore.ErrClosed):
		return fmt.Errorf("%w: group %s", ErrClosed, g.name)
	default:
		return g.stop(err)
	}
}

// DurableIndex is the index up to which log entries are known to be on this
// node's disk.
func (g *Group) DurableIndex() uint64 { return g.log.DurableIndex() }

// LastIndex is the index of the log's last entry.
func (g *Group) LastIndex() uint64 { return g.last.Load() }

// AppliedIndex is the index of the last applied entry.
func (g *Group) AppliedIndex() uint64 { return g.applied.Load() }

// ReadBarrier returns when a read of this node's state machine sees everything
// that was acknowledged, on any node, before the call.
func (g *Group) ReadBarrier(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	rep := g.rep.Load()
	if rep == nil {
		// What was acknowledged was applied here.
		return g.Err()
	}
	t := newTicket(nil)
	if err := g.stepReplica(rep, func() error { return rep.read(t) }); err != nil {
		return err
	}
	_, err := g.await(ctx, rep, t)
	if err != nil {
		return fmt.Errorf("group %s cannot tell whether a read would be current: %w", g.name, err)
	}
	return nil
}

// Compact tells the group that this node's state machine needs no entries up to
// index any more: its own durable state holds them. The log gives them up when
// it sees fit, and where others may need them keeps some (Config.LogTail). An index
// beyond what is applied and durable is cut down to that.
func (g *Group) Compact(index uint64) error {
	if err := g.Err(); err != nil {
		return err
	}
	g.compactMu.Lock()
	defer g.compactMu.Unlock()
	index = min(index, g.applied.Load(), g.log.DurableIndex())
	if rep := g.rep.Load(); rep != nil {
		index = min(index, g.spare(rep))
	}
	switch err := g.log.CompactTo(index); {
	case err == nil:
		return nil
	case errors.Is(err, logstore.ErrClosed):
		return fmt.Errorf("%w: group %s", ErrClosed, g.name)
	default:
		return g.stop(err)
	}
}

// Status describes the group.
func (g *Group) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Status{
		Group: g.name, NodeID: g.m.cfg.NodeID, State: "leader", Leader: g.m.cfg.NodeID, Term: g.hard.Term,
		First: g.log.FirstIndex(), Last: g.last.Load(), Durable: g.log.DurableIndex(),
		Commit: g.last.Load(), Applied: g.applied.Load(),
		Voters: append([]uint64(nil), g.conf.GetVoters()...), Learners: append([]uint64(nil), g.conf.GetLearners()...),
		Err: g.Err(),
	}
	if rep := g.rep.Load(); rep != nil {
		rep.describe(&s)
	}
	if s.Err != nil {
		s.State, s.Leader = "stopped", 0
	}
	return s
}

// Close makes the log durable and closes the group. Proposals that are being
// applied are finished first, later calls fail with ErrClosed.
func (g *Group) Close() error {
	g.m.forget(g)
	return g.close()
}

func (g *Group) close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	if rep := g.rep.Load(); rep != nil {
		rep.abandon(fmt.Errorf("%w: group %s", ErrClosed, g.name))
	}
	g.mu.Unlock()
	g.once.Do(func() { close(g.done) })
	g.drive.work.Wait()
	g.compactMu.Lock()
	defer g.compactMu.Unlock()
	err := g.log.Close()
	if err != nil {
		return fmt.Errorf("closing group %s: %w", g.name, err)
	}
	return nil
}

// open loads the group from its directory and brings the state machine up
// to the end of the log. Nothing else uses the group yet.
func (g *Group) open() error {
	hard, err := logstore.ReadState(g.m.cfg.FS, g.dir)
	if err != nil {
		return err
	}
	if hard.NodeID != g.m.cfg.NodeID {
		return fmt.Errorf("%w: %s is of node %d, this is node %d: was the store copied?", ErrWrongNode, g.dir, hard.NodeID, g.m.cfg.NodeID)
	}
	g.conf = &pb.ConfState{}
	if err := proto.Unmarshal(hard.Conf, g.conf); err != nil {
		return fmt.Errorf("%w: the membership in the hard state of %s: %w", ErrCorrupt, g.dir, err)
	}
	if err := g.removeParts(); err != nil {
		return fmt.Errorf("removing what snapshots left in %s: %w", g.dir, err)
	}
	log, err := logstore.OpenFile(logstore.FileOptions{
		FS: g.m.cfg.FS, Dir: g.dir, SegmentSize: g.m.cfg.SegmentSize, Logger: g.m.cfg.Logger.WithField("group", string(g.name)),
		NeedSync:  g.m.kick,
		OnDurable: g.onDurable,
		OnSync:    func(d time.Duration) { g.m.metrics.syncSeconds.Observe(d.Seconds()) },
	})
	if err != nil {
		return err
	}
	g.log = log
	if err := g.start(hard); err != nil {
		return errors.Join(err, log.Close())
	}
	return nil
}

// lostFromStart tells, of the hard state of a log without a single entry, whether there were some: the membership came with an entry, which is
// durable before the hard state says so, unless it came with a snapshot.
func lostFromStart(hard logstore.HardState) bool { return hard.ConfIndex > 0 && hard.SnapIndex == 0 }

// start checks that hard state, log and state machine fit together, and replays.
func (g *Group) start(hard logstore.HardState) error {
	last, applied := g.log.LastIndex(), g.sm.AppliedIndex()
	if applied > last && applied == hard.SnapIndex {
		// A crash came between the two halves of installing a snapshot.
		if err := g.log.Reset(applied, hard.SnapTerm); err != nil {
			return err
		}
		last = applied
	}
	if last == 0 && lostFromStart(hard) {
		return fmt.Errorf("%w: the hard state knows of entry %d, the log in %s is empty: it was lost; restore it, or take a snapshot of another node",
			ErrLogGap, hard.ConfIndex, g.dir)
	}
	if term := g.log.LastTerm(); term > hard.Term {
		return fmt.Errorf("%w: the log's last entry has term %d, the hard state says %d: the hard-state file in %s is older than the log, restore it",
			ErrLogGap, term, hard.Term, g.dir)
	}
	if first := g.log.FirstIndex(); first > applied+1 {
		return fmt.Errorf("%w: the state has applied entry %d, the log starts at %d: the entries between are lost; "+
			"restore the state that belongs to %s, or take a snapshot of another node", ErrLogGap, applied, first, g.dir)
	}
	if applied > last {
		return fmt.Errorf("%w: the state has applied entry %d, the log ends at %d: the log in %s was lost or replaced; "+
			"restore the log that belongs to this state, or take a snapshot of another node", ErrLogGap, applied, last, g.dir)
	}
	if !slices.Equal(g.conf.GetVoters(), []uint64{g.m.cfg.NodeID}) || len(g.conf.GetLearners())+len(g.conf.GetVotersOutgoing()) > 0 {
		if g.m.cfg.Transport == nil {
			return fmt.Errorf("consensus: group %s has the voters %d, but Config.Transport is not set", g.name, g.conf.GetVoters())
		}
		g.hard = hard
		g.last.Store(last)
		g.applied.Store(applied)
		// Which of them are committed, only the others can say.
		if err := g.prepare(applied+1, last); err != nil {
			return err
		}
		g.replayDone()
		return g.startReplica(hard)
	}
	// A term of its own for each run: should the last one have lost entries that
	// were never synced, their indexes are not used twice in one term.
	hard.Term++
	hard.Vote, hard.Commit = g.m.cfg.NodeID, last
	if err := logstore.WriteState(g.m.cfg.FS, g.dir, hard); err != nil {
		return err
	}
	g.hard = hard
	g.last.Store(last)
	g.applied.Store(applied)
	err := g.replay(applied+1, last)
	if errors.Is(err, errConfInLog) {
		// The group was about to take in others. Up to here this node decided alone.
		if g.m.cfg.Transport == nil {
			return fmt.Errorf("consensus: group %s is about to get other members, but Config.Transport is not set", g.name)
		}
		hard.Commit = g.applied.Load()
		g.replayDone()
		return g.startReplica(hard)
	}
	g.replayDone()
	return err
}

func (g *Group) replayDone() {
	if p, ok := g.sm.(ReplayPreparer); ok {
		p.ReplayDone()
	}
}

// errConfInLog ends a replay before a change of membership that was not applied.
var errConfInLog = errors.New("a change of membership")

const (
	replayChunk    = 4 << 20 // bytes of log read at once
	replayProgress = 5 * time.Second
)

// prepare shows the commands of the entries lo..hi to a state machine that wants
// to see them before they are replayed.
func (g *Group) prepare(lo, hi uint64) error {
	p, ok := g.sm.(ReplayPreparer)
	if !ok {
		return nil
	}
	return g.scan(lo, hi, "preparing", func(e logstore.Entry) error {
		if cmd, ok := command(&e); ok {
			return p.PrepareReplay(e.Index, cmd)
		}
		return nil
	})
}

// replay applies the entries lo..hi, all of which are durable.
func (g *Group) replay(lo, hi uint64) error {
	if err := g.prepare(lo, hi); err != nil {
		return err
	}
	begin := time.Now()
	err := g.scan(lo, hi, "replaying", func(e logstore.Entry) error {
		if e.Type.IsConfChange() && e.Index > g.hard.ConfIndex {
			return errConfInLog
		}
		if cmd, ok := command(&e); ok {
			if _, err := g.sm.Apply(e.Index, e.Term, cmd, nil); err != nil {
				return err
			}
		}
		g.applied.Store(e.Index)
		return nil
	})
	if err == nil && hi >= lo {
		g.m.cfg.Logger.Infof("raft group %s: replayed entries %d to %d in %v", g.name, lo, hi, time.Since(begin).Round(time.Millisecond))
	}
	return err
}

// scan gives the entries lo..hi of the log to visit. what is for errors and for the progress that it logs.
func (g *Group) scan(lo, hi uint64, what string, visit func(logstore.Entry) error) error {
	from, said := lo, time.Now()
	var entries []logstore.Entry
	for lo <= hi {
		var err error
		entries, err = g.log.Entries(entries[:0], lo, hi+1, replayChunk)
		if err != nil {
			return fmt.Errorf("%s the log of group %s: %w", what, g.name, err)
		}
		for _, e := range entries {
			if err := visit(e); err != nil {
				return fmt.Errorf("%s entry %d of group %s: %w", what, e.Index, g.name, err)
			}
		}
		lo += uint64(len(entries))
		if time.Since(said) > replayProgress {
			said = time.Now()
			g.m.cfg.Logger.Infof("raft group %s: %s, %d of %d entries done", g.name, what, lo-from, hi+1-from)
		}
	}
	return nil
}

func (g *Group) onDurable(index uint64) {
	if f := g.m.cfg.OnDurable; f != nil {
		f(g.name, index)
	}
}
