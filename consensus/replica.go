package consensus

import (
	"bytes"
	cryptorand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// replica is one node's part of a group with several voters: the Raft engine, and
// what connects it to log, hard state and state machine. It is a machine that is
// stepped: it has no goroutine, no clock and no network. host.go drives it in
// production, the simulator in sim_test.go in tests.
//
// A step is any of tick, step, propose, ...; after each, out holds messages to
// send, and work may be due on the log (takeAppend) and on the state machine
// (takeApply). Both kinds of work are done outside the lock that serialises the
// steps, each in order and not overlapping itself, and handed back by a step:
//
//	takeAppend → appendWork.run  → appended
//	takeApply  → applyWork       → applied
type replica struct {
	id    uint64
	name  GroupID
	rn    *raft.RawNode
	store *raftStorage
	log   LogStore
	// saveState makes a hard state durable.
	saveState func(logstore.HardState) error

	// out are messages to be sent, in any order, as takeOut returns them. Snapshots
	// (MsgSnap) carry their metadata only: the driver adds the data.
	out   []*pb.Message
	news  news
	usage usage
	// restoring is the index of a snapshot that the engine has accepted, and with it its membership, and that is not installed yet; 0: none.
	restoring uint64
	appendQ   []*pb.Message
	applyQ    []*pb.Message

	// hard is what is in the hard-state file, apart from its Commit. Both kinds of
	// work change it.
	hardMu sync.Mutex
	hard   logstore.HardState

	onLeader, onElection func()             // called when another leader is seen, an election begun; may be nil
	onApplied            func(index uint64) // called when entries have been applied; may be nil

	ticks     uint64
	voteAfter uint64 // ticks, constant: see lease
	lease     lease
	exactRead bool // constant: this node's reads are answered by a majority, never by a lease
	// full says why the log takes nothing now, nil while it does. fullSince is the
	// tick in which that began.
	full      error
	fullSince uint64
	fullTicks uint64 // how long it may last, constant
	working   int    // pieces of work that were taken and not given back
	leader    uint64
	state     raft.StateType
	applied   uint64 // handed to the state machine and done

	sent map[uint64]sentSnapshot // by member

	seq       uint64 // of the next proposal or read of this node
	sleep     sleeper
	proposals map[uint64]*ticket // by seq, those not yet answered
	proposal  []byte             // buffer of a leader's proposals
	reads     readQueue

	fault plantedFaults
}

// plantedFaults break the replica on purpose, each in one way, so that the tests
// can show that they would notice. All are false in production.
type plantedFaults struct {
	skipStateSync   bool // a vote is sent before it is durable
	voteLate        bool // others are asked for votes before the own one is durable
	ackBeforeSync   bool // an append is acknowledged before it is durable
	applyTwice      bool // now and then an entry is applied again
	skipTruncate    bool // entries that conflict stay in the log
	staleReads      bool // reads are served without asking anybody
	forgetConfState bool // a change of membership is not saved
	longLease       bool // a lease outlives the promise that it rests on
	forgetPromise   bool // a node that was started again votes at once
}

// ticket waits for one proposal or read. done has room for the one outcome.
type ticket struct {
	cmd   []byte // of a proposal, until it is made
	local any
	// For a proposal made as the leader: where it stands, and in which term.
	index, term uint64
	done        chan outcome
}

type outcome struct {
	result any
	err    error
}

func newTicket(local any) *ticket { return &ticket{local: local, done: make(chan outcome, 1)} }

func (t *ticket) finish(result any, err error) {
	select {
	case t.done <- outcome{result, err}:
	default: // it was answered
	}
}

// tagSize is what precedes the command in a replicated entry: the proposing node
// and its sequence number, 8 bytes each.
const tagSize = 16

// replicaConfig is what newReplica needs.
type replicaConfig struct {
	id        uint64
	name      GroupID
	log       LogStore
	hard      logstore.HardState // as read from the hard-state file
	applied   uint64             // of the state machine
	saveState func(logstore.HardState) error
	logger    raft.Logger

	electionTicks, heartbeatTicks int
	sleepTicks, fullTicks         int
	leaseReads                    bool
	tickInterval                  time.Duration
	now                           func() time.Time
	onLeader, onElection          func()
	// canSnapshot: the state machine can make snapshots.
	canSnapshot bool
	fault       plantedFaults
}

func newReplica(c replicaConfig) (*replica, error) {
	conf := &pb.ConfState{}
	if err := proto.Unmarshal(c.hard.Conf, conf); err != nil {
		return nil, fmt.Errorf("%w: membership of group %s: %w", ErrCorrupt, c.name, err)
	}
	var start [8]byte
	if _, err := cryptorand.Read(start[:]); err != nil {
		return nil, fmt.Errorf("consensus: no random bytes: %w", err)
	}
	r := &replica{
		id: c.id, name: c.name, log: c.log, saveState: c.saveState, hard: c.hard, applied: c.applied,
		// Sequence numbers of an earlier run may still be on their way.
		seq:       binary.LittleEndian.Uint64(start[:]) >> 1,
		proposals: map[uint64]*ticket{},
		fault:     c.fault,
		onLeader:  c.onLeader, onElection: c.onElection,
		fullTicks: uint64(c.fullTicks),
	}
	r.sleep.after = uint64(c.sleepTicks)
	r.voteAfter, r.exactRead = uint64(c.electionTicks), !c.leaseReads
	if c.fault.forgetPromise {
		r.voteAfter = 0
	}
	r.lease = lease{length: time.Duration(c.electionTicks) * c.tickInterval / 2, now: c.now}
	if c.fault.longLease {
		r.lease.length *= 100
	}
	r.store = &raftStorage{log: c.log, conf: conf, confIndex: c.hard.ConfIndex, canSnapshot: c.canSnapshot, applied: c.applied}
	// What is committed is at least what was applied, as the membership was that was saved, and never more than we have.
	r.store.hard = &pb.HardState{
		Term: new(c.hard.Term), Vote: new(c.hard.Vote),
		Commit: new(min(max(c.hard.Commit, c.hard.ConfIndex, c.applied), c.log.LastIndex())),
	}
	err := r.guard(func() error {
		var err error
		r.rn, err = raft.NewRawNode(&raft.Config{
			ID: c.id, ElectionTick: c.electionTicks, HeartbeatTick: c.heartbeatTicks,
			Storage: r.store, Applied: c.applied, AsyncStorageWrites: true,
			MaxSizePerMsg: 1 << 20, MaxCommittedSizePerReady: 16 << 20,
			MaxUncommittedEntriesSize: 256 << 20, MaxInflightMsgs: 256, MaxInflightBytes: 32 << 20,
			CheckQuorum: true, PreVote: true, ReadOnlyOption: raft.ReadOnlySafe,
			StepDownOnRemoval: true, Logger: c.logger,
		})
		return err
	})
	return r, err
}

// guard runs f and turns a panic of the engine, which is how it reports that its
// storage failed or broke an invariant, into an error.
func (r *replica) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("consensus: the raft engine of group %s gave up: %v", r.name, p)
		}
	}()
	return f()
}

// do runs a step and collects what it makes due. An error that is not one of the
// engine's refusals is fatal.
func (r *replica) do(f func() error) error {
	return r.guard(func() error {
		err := f()
		r.collect()
		return err
	})
}

func (r *replica) collect() {
	for r.rn.HasReady() {
		rd := r.rn.Ready()
		if s := rd.SoftState; s != nil {
			if s.RaftState != r.state {
				r.news.reset()
				r.usage = usage{led: r.ticks}
			}
			if s.Lead != r.leader {
				r.leaderChanged()
				if s.Lead != 0 && r.onLeader != nil {
					r.onLeader()
				}
			}
			if r.onElection != nil && electing(s.RaftState) && !electing(r.state) {
				r.onElection()
			}
			r.leader, r.state = s.Lead, s.RaftState
		}
		for _, m := range r.voteFirst(rd.Messages) {
			if m.GetType() == pb.MsgTimeoutNow {
				r.lease.forbid(m.GetTerm())
			}
			switch m.GetTo() {
			case raft.LocalAppendThread:
				if es := m.GetEntries(); len(es) > 0 {
					r.news.appended = es[len(es)-1].GetIndex()
				}
				if m.Snapshot != nil {
					r.restoring = m.GetSnapshot().GetMetadata().GetIndex()
				}
				r.appendQ = append(r.appendQ, m)
			case raft.LocalApplyThread:
				r.applyQ = append(r.applyQ, m)
			default:
				r.out = append(r.out, m)
			}
		}
		if len(rd.ReadStates) > 0 {
			r.reads.confirmed(rd.ReadStates)
			st := r.rn.BasicStatus()
			r.lease.confirmed(rd.ReadStates, st.RaftState == raft.StateLeader, st.HardState.GetTerm())
		}
	}
	r.reads.release(r.applied)
}

// voteFirst has the requests for votes among the messages of one Ready wait until this node's own vote is durable. The engine counts
// that vote only then, but asks the others at once, and their votes can be enough: a leader that crashes before it has saved in which
// term it leads could be elected in that term once more, and give its entries' places to others.
func (r *replica) voteFirst(msgs []*pb.Message) []*pb.Message {
	save := slices.IndexFunc(msgs, func(m *pb.Message) bool { return m.GetTo() == raft.LocalAppendThread })
	if save < 0 || r.fault.voteLate {
		return msgs
	}
	now := make([]*pb.Message, 0, len(msgs))
	for _, m := range msgs {
		if m.GetType() == pb.MsgVote {
			msgs[save].Responses = append(msgs[save].Responses, m)
		} else {
			now = append(now, m)
		}
	}
	return now
}

func electing(s raft.StateType) bool { return s == raft.StatePreCandidate || s == raft.StateCandidate }

// leaderChanged answers the proposals that went to the old leader by message:
// nobody can say what became of them.
func (r *replica) leaderChanged() {
	for seq, t := range r.proposals {
		if t.index == 0 {
			delete(r.proposals, seq)
			t.finish(nil, fmt.Errorf("%w: group %s changed its leader", ErrUnknownOutcome, r.name))
		}
	}
}

func (r *replica) tick() error {
	if r.sleep.asleep.Load() {
		return nil
	}
	return r.do(func() error {
		r.rn.Tick()
		if r.reads.retryDue() {
			r.issueRead()
		}
		if r.ticks++; r.ticks%leaveJointTicks == 0 && r.state == raft.StateLeader && r.store.inJoint() {
			// The engine leaves a joint membership by itself, but tries again only when
			// something is applied.
			if err := r.rn.ProposeConfChange(&pb.ConfChangeV2{}); err != nil && !errors.Is(err, raft.ErrProposalDropped) {
				return err
			}
		}
		r.forgetSnapshots()
		r.releaseNews()
		if r.full != nil {
			r.giveWay()
		}
		r.maybeSleep()
		return nil
	})
}

// leaveJointTicks is how often a leader tries to get out of a joint membership.
const leaveJointTicks = 20

// step takes a message from another node.
func (r *replica) step(m *pb.Message) error {
	return r.do(func() error {
		r.wakeFor(m)
		sleep := isLullaby(m)
		if sleep {
			m.Context = nil
		}
		if r.full != nil && (m.GetType() == pb.MsgProp || m.GetType() == pb.MsgTimeoutNow) {
			return nil // somebody else should lead
		}
		if m.GetType() == pb.MsgTransferLeader && r.state != raft.StateLeader {
			return nil // it would be passed on with the term that it has, which the engine takes for a fault
		}
		if m.GetType() == pb.MsgReadIndex {
			r.used(m.GetFrom(), 1)
		}
		if isTidings(m) {
			return r.hearTidings(m)
		}
		if r.refusesVote(m) || r.answerLeased(m) {
			return nil
		}
		r.refuteWithTidings(m)
		if n := len(m.GetContext()); n != 0 && n != 8 && (m.GetType() == pb.MsgHeartbeat || m.GetType() == pb.MsgHeartbeatResp) {
			return nil // the engine would read it as a number
		}
		if err := r.stepRaft(m); err != nil {
			return err
		}
		if m.GetType() == pb.MsgProp && r.state == raft.StateLeader {
			r.collect()
			r.news.proposed(m.GetFrom())
			r.used(m.GetFrom(), uint64(len(m.GetEntries())))
		}
		if !sleep {
			return nil
		}
		r.collect()
		r.followToSleep(m)
		return nil
	})
}

// stepRaft gives the engine a message. One that it has no use for (from a node
// that is no member any more, which can be this one) counts as lost.
func (r *replica) stepRaft(m *pb.Message) error {
	err := r.rn.Step(m)
	if errors.Is(err, raft.ErrProposalDropped) || errors.Is(err, raft.ErrStepPeerNotFound) || errors.Is(err, raft.ErrStepLocalMsg) {
		return nil
	}
	return err
}

// proposeTogether proposes the commands of several tickets, which then stand behind each other in the log: all of them, or with an
// error none. Each ticket is answered when its command is applied here, or when it is certain that it never will be, or that nobody
// knows. An error that is raft.ErrProposalDropped means: not now.
func (r *replica) proposeTogether(ts []*ticket) error {
	leading, seq := r.state == raft.StateLeader, r.seq
	size := 0
	for _, t := range ts {
		size += tagSize + len(t.cmd)
	}
	// The engine of a leader makes a copy for the log (TestEngineCopies), that of a
	// follower sends what it gets.
	var data []byte
	if leading {
		data = r.proposal[:0]
	}
	data = slices.Grow(data, size)
	entries := make([]*pb.Entry, len(ts))
	for i, t := range ts {
		at := len(data)
		data = append(r.tag(data, seq+uint64(i)), t.cmd...)
		entries[i] = &pb.Entry{Data: data[at:len(data):len(data)]}
	}
	if leading && cap(data) <= maxProposal {
		r.proposal = data
	}
	return r.do(func() error {
		r.wake()
		if r.full != nil {
			return errFull
		}
		if r.leader == 0 {
			return raft.ErrProposalDropped
		}
		before := len(r.appendQ)
		if err := r.rn.Step(&pb.Message{Type: pb.MsgProp.Enum(), From: new(r.id), Entries: entries}); err != nil {
			return err
		}
		r.seq += uint64(len(ts))
		for i, t := range ts {
			t.cmd = nil
			r.proposals[seq+uint64(i)] = t
		}
		r.used(r.id, uint64(len(ts)))
		if leading {
			r.collect()
			r.locate(ts, data[:tagSize], r.appendQ[before:])
		}
		return nil
	})
}

// maxProposal bounds the buffer that is kept for proposals, in bytes.
const maxProposal = 2 << 20

// locate finds the indexes that the engine gave to the proposals of ts: they stand behind
// each other, and first is the tag of the first.
func (r *replica) locate(ts []*ticket, first []byte, msgs []*pb.Message) {
	for _, m := range msgs {
		for _, e := range m.GetEntries() {
			if d := e.GetData(); len(d) >= tagSize && bytes.Equal(d[:tagSize], first) {
				for i, t := range ts {
					t.index, t.term = e.GetIndex()+uint64(i), e.GetTerm()
				}
				return
			}
		}
	}
}

// proposeConf proposes a change of membership. The ticket is answered as propose's.
func (r *replica) proposeConf(cc *pb.ConfChangeV2, t *ticket) error {
	seq := r.seq
	cc.Context = r.tag(nil, seq)
	return r.do(func() error {
		r.wake()
		if r.full != nil {
			return errFull
		}
		if r.leader == 0 {
			return raft.ErrProposalDropped
		}
		if err := r.rn.ProposeConfChange(cc); err != nil {
			return err
		}
		r.seq++
		r.proposals[seq] = t
		return nil
	})
}

// tag appends the tag of a proposal of this node to b.
func (r *replica) tag(b []byte, seq uint64) []byte {
	b = binary.LittleEndian.AppendUint64(b, r.id)
	return binary.LittleEndian.AppendUint64(b, seq)
}

func (r *replica) campaign() error {
	r.wake()
	return r.do(r.rn.Campaign)
}

func (r *replica) transfer(to uint64) error {
	r.wake()
	return r.do(func() error { r.rn.TransferLeader(to); return nil })
}

func (r *replica) unreachable(peer uint64) error {
	if peer == r.leader {
		r.wake() // somebody has to take over
	}
	return r.do(func() error { r.rn.ReportUnreachable(peer); return nil })
}

func (r *replica) snapshotSent(peer uint64, ok bool) error {
	status := raft.SnapshotFinish
	if !ok {
		delete(r.sent, peer)
		status = raft.SnapshotFailure
	}
	return r.do(func() error { r.rn.ReportSnapshot(peer, status); return nil })
}

// read answers t as soon as this node's state machine holds everything that was
// acknowledged before.
func (r *replica) read(t *ticket) error {
	if r.fault.staleReads {
		t.finish(nil, nil)
		return nil
	}
	r.wake()
	r.used(r.id, 1)
	return r.do(func() error {
		if !r.exactRead {
			if commit, ok := r.leased(); ok {
				r.reads.confirmedReads = append(r.reads.confirmedReads, confirmedRead{commit, t})
				return nil
			}
		}
		if r.reads.add(t) {
			r.issueRead()
		}
		return nil
	})
}

func (r *replica) issueRead() { r.requestRead(&r.reads) }

// requestRead asks for a read index, for the readers of a queue, or for a lease only.
func (r *replica) requestRead(q *readQueue) {
	r.seq++
	seq := r.seq
	if r.exactRead {
		seq |= exact
	}
	st := r.rn.BasicStatus()
	r.lease.requested(seq, st.RaftState == raft.StateLeader, st.HardState.GetTerm())
	ctx := binary.LittleEndian.AppendUint64(nil, seq)
	if q != nil {
		q.issue(seq)
	}
	r.rn.ReadIndex(ctx)
}

// appended takes finished work back: what waited for it is sent.
func (r *replica) appended(w *appendWork) error {
	r.working--
	r.full = nil
	return r.do(func() error {
		if s := w.installed; s != nil {
			meta := s.GetMetadata()
			if r.restoring == meta.GetIndex() {
				r.restoring = 0
			}
			r.applied = max(r.applied, meta.GetIndex())
			r.store.setConf(meta.GetConfState(), meta.GetIndex())
			r.store.setApplied(r.applied)
			// Whether it holds what was proposed here, or what took its place, nobody can say.
			for seq, t := range r.proposals {
				if t.index != 0 && t.index <= meta.GetIndex() {
					delete(r.proposals, seq)
					t.finish(nil, fmt.Errorf("%w: group %s: entry %d came with a snapshot", ErrUnknownOutcome, r.name, t.index))
				}
			}
		}
		return r.deliver(w.responses)
	})
}

// deliver hands the engine the responses that are for it and sends the others.
func (r *replica) deliver(msgs []*pb.Message) error {
	for _, m := range msgs {
		if m.GetTo() != r.id {
			r.out = append(r.out, m)
		} else if err := r.stepRaft(m); err != nil {
			return err
		}
	}
	return nil
}

// applyWork is a batch of committed entries for the state machine.
type applyWork struct {
	m       *pb.Message
	tickets []*ticket // beside each entry, see takeTickets
	// The membership that the last entry brought, where it could not be saved yet.
	conf       []byte
	confIndex  uint64
	confTicket *ticket
}

// takeApply returns the committed entries that are to be applied, nil if none.
func (r *replica) takeApply() *applyWork {
	if len(r.applyQ) == 0 {
		return nil
	}
	r.working++
	m := r.applyQ[0]
	r.applyQ[0] = nil
	r.applyQ = r.applyQ[1:]
	return &applyWork{m: m, tickets: r.takeTickets(m.GetEntries())}
}

// takeTickets returns, beside each entry, the ticket of the proposal that it is,
// nil where it was not proposed here.
func (r *replica) takeTickets(es []*pb.Entry) []*ticket {
	tickets := make([]*ticket, len(es))
	for i, e := range es {
		d := e.GetData()
		if e.GetType() == pb.EntryNormal && len(d) >= tagSize && binary.LittleEndian.Uint64(d) == r.id {
			seq := binary.LittleEndian.Uint64(d[8:])
			tickets[i] = r.proposals[seq]
			delete(r.proposals, seq)
		}
	}
	return tickets
}

// applyConf makes the engine use the membership that e brings. It returns what has
// to be saved (saveConf) before the entry counts as applied, nil for nothing.
func (r *replica) applyConf(e *pb.Entry) (conf []byte, t *ticket, err error) {
	if e.GetIndex() <= r.restoring {
		return nil, nil, errRestoring
	}
	var refused error
	err = r.do(func() error {
		cc, err := decodeConfChange(e)
		if err != nil {
			return fmt.Errorf("group %s: %w", r.name, err)
		}
		if ctx := cc.AsV2().GetContext(); len(ctx) == tagSize && binary.LittleEndian.Uint64(ctx) == r.id {
			seq := binary.LittleEndian.Uint64(ctx[8:])
			t = r.proposals[seq]
			delete(r.proposals, seq)
		}
		if e.GetIndex() <= r.store.confIndex {
			return nil // the saved membership has it already
		}
		if err := checkConfChange(r.store.membership(), cc.AsV2()); err != nil {
			// Refused on every node alike, as all have the same membership here.
			refused = fmt.Errorf("group %s: %w", r.name, err)
			return nil
		}
		r.lease.end()
		state := r.rn.ApplyConfChange(cc)
		r.store.setConf(state, e.GetIndex())
		if conf, err = proto.Marshal(state); err != nil {
			return fmt.Errorf("encoding the membership: %w", err)
		}
		return nil
	})
	if refused != nil && t != nil {
		t.finish(nil, refused)
	}
	return conf, t, err
}

func decodeConfChange(e *pb.Entry) (pb.ConfChangeI, error) {
	if e.GetType() == pb.EntryConfChange {
		c := &pb.ConfChange{}
		if err := proto.Unmarshal(e.GetData(), c); err != nil {
			return nil, fmt.Errorf("%w: entry %d, a change of membership: %w", ErrCorrupt, e.GetIndex(), err)
		}
		return c, nil
	}
	c := &pb.ConfChangeV2{}
	if err := proto.Unmarshal(e.GetData(), c); err != nil {
		return nil, fmt.Errorf("%w: entry %d, a change of membership: %w", ErrCorrupt, e.GetIndex(), err)
	}
	return c, nil
}

// saveConf makes the membership of entry index durable. It is part of the apply
// work.
func (r *replica) saveConf(conf []byte, index uint64) error {
	if r.fault.forgetConfState {
		return nil
	}
	return r.updateHard(func(hard *logstore.HardState) bool {
		hard.Conf, hard.ConfIndex = conf, index
		return true
	})
}

// appliedAll takes a batch of applied entries back.
func (r *replica) appliedAll(m *pb.Message) error {
	r.working--
	return r.do(func() error {
		es := m.GetEntries()
		last := es[len(es)-1]
		r.applied = max(r.applied, last.GetIndex())
		r.store.setApplied(r.applied)
		if r.onApplied != nil {
			r.onApplied(r.applied)
		}
		// A proposal whose place was taken by an entry of a later term is lost, and so is
		// one that would stand behind such an entry: terms do not decrease along a log.
		for seq, t := range r.proposals {
			if t.index != 0 && (t.index <= r.applied || t.term < last.GetTerm()) {
				delete(r.proposals, seq)
				t.finish(nil, fmt.Errorf("%w: group %s: another leader took its place", ErrDropped, r.name))
			}
		}
		return r.deliver(m.GetResponses())
	})
}

// describe fills in what the replica knows.
func (r *replica) describe(s *Status) {
	st := r.rn.BasicStatus()
	s.State, s.Leader, s.Term = stateNames[st.RaftState], st.Lead, st.HardState.GetTerm()
	s.Commit = st.HardState.GetCommit()
	conf := r.store.membership()
	s.WaitingProposals, s.AppendQueue, s.ApplyQueue = len(r.proposals), len(r.appendQ), len(r.applyQ)
	s.Full, s.WaitingReads = r.full, r.reads.len()
	s.Voters, s.Learners = conf.GetVoters(), conf.GetLearners()
}

var stateNames = map[raft.StateType]string{
	raft.StateFollower: "follower", raft.StateCandidate: "candidate",
	raft.StateLeader: "leader", raft.StatePreCandidate: "candidate",
}

// abandon answers everything that waits.
func (r *replica) abandon(err error) {
	for seq, t := range r.proposals {
		delete(r.proposals, seq)
		t.finish(nil, err)
	}
	r.reads.abandon(err)
}

// forget drops a proposal or read whose caller no longer waits. false: it was
// answered, or is being applied and will be.
func (r *replica) forget(t *ticket) (waiting bool) {
	for seq, p := range r.proposals {
		if p == t {
			delete(r.proposals, seq)
			return true
		}
	}
	return r.reads.forget(t)
}

// Snapshotter is what a StateMachine implements whose group has several voters:
// a follower that is too far behind gets a snapshot.
type Snapshotter interface {
	// Snapshot returns the state as of the last applied entry. It is called between
	// two calls of Apply; what it returns is read while Apply goes on, and closed.
	Snapshot() (io.ReadCloser, error)
	// Restore replaces the state by what a Snapshot of another node returned, taken
	// when entry index was the last applied one. When it returns nil that is durable,
	// and AppliedIndex is index; when it is interrupted, the old or the new state is
	// there.
	Restore(index, term uint64, data io.Reader) error
}
