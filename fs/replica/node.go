package replica

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
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
	"vdefs/vde/meta"
)

// Times of a cluster.
const (
	defaultTimeout = 30 * time.Second
	tryTimeout     = 3 * time.Second // after which a command that was not answered is proposed again
	// sessionLease is how long a mount may be unheard of before its locks and open files count as given up. Together
	// with the time that it takes to notice that is less than ten seconds. It says that it lives four times as often.
	sessionLease = 8 * time.Second
	memberEvery  = 250 * time.Millisecond
)

// node is a volume's part in a cluster.
type node struct {
	v         *Volume
	cfg       *cluster.Config
	transport *transport.TCP
	timeout   time.Duration

	session atomic.Pointer[session]
	levels  levels
	renew   sync.Mutex // one renewal of the session at a time

	kernel  kernelQueue
	locks   lockWaits
	loose   *looseEnds
	freezes freezes

	lease   time.Duration                          // sessionLease, less in tests
	resolve time.Duration                          // resolveAfter, less in tests
	dies    atomic.Pointer[func(step string) bool] // set by tests: see Volume.step
	dead    atomic.Bool                            // set by tests: Close leaves everything as a crash would

	jobsMu sync.Mutex
	jobs   sync.WaitGroup // what applying has begun; Add with jobsMu held and over false
	over   bool           // guarded by jobsMu

	repaired atomic.Uint64 // blocks that were replaced by what another node has

	changed chan struct{} // a token: the membership may have changed

	gone   atomic.Pointer[error] // set once: this node was removed while it ran
	asking atomic.Bool           // the others are being asked whether it was

	fs        vfs.FS // of the store
	diskMu    sync.Mutex
	diskAsked time.Time // guarded by diskMu
	diskFree  uint64    // blocks, then; guarded by diskMu

	seenMu sync.Mutex
	seen   map[uint64]seen // by session; guarded by seenMu
}

// seen is what this node has heard of a session.
type seen struct {
	at   time.Time
	free uint64 // blocks; 0: not told yet
	// mute is when it was last asked in vain, and waited for, whether its kernel knows of a change (told.go).
	mute time.Time
}

// session is this mount as the groups know it.
type session struct {
	id uint64
	mu sync.Mutex
	in map[uint16]*sequence // by slot; guarded by mu
}

// sequence numbers the commands of a session in one group.
type sequence struct {
	next uint64
	open []uint64 // those not answered yet, ascending
}

// begin numbers a command; end has it answered.
func (s *session) begin(slot uint16) command.Tag {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.in[slot]
	if q == nil {
		q = &sequence{}
		s.in[slot] = q
	}
	q.next++
	q.open = append(q.open, q.next)
	return command.Tag{Session: s.id, Seq: q.next, Acked: q.open[0]}
}

func (s *session) end(slot uint16, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.in[slot]
	if i, ok := slices.BinarySearch(q.open, seq); ok {
		q.open = slices.Delete(q.open, i, i+1)
	}
}

// openNode makes the volume a node: its transport listens when this returns.
func openNode(v *Volume, o Options) (*node, error) {
	cfg, timeout, lease, resolve := o.Cluster, o.Timeout, o.lease, o.resolve
	if lease == 0 {
		lease = sessionLease
	}
	if resolve == 0 {
		resolve = resolveAfter
	}
	if timeout == 0 {
		timeout = defaultTimeout
	}
	n := &node{levels: levels{known: command.Level}, v: v, fs: o.FS, cfg: cfg, timeout: timeout, lease: lease, resolve: resolve, changed: make(chan struct{}, 1), seen: map[uint64]seen{}, loose: newLooseEnds()}
	if o.old {
		n.levels.known = 0
	}
	n.kernel = newKernelQueue()
	n.freezes.held, n.freezes.waits = map[meta.Ino]bool{}, map[meta.Ino]chan struct{}{}
	n.locks.waiting, n.locks.owed, n.locks.owing = map[meta.Ino][]chan struct{}{}, map[meta.Ino][]*command.Lock{}, make(chan struct{}, 1)
	n.locks.held = map[meta.Ino][]heldLock{}
	var err error
	n.transport, err = transport.ListenTCP(transport.TCPConfig{
		ID: cfg.NodeID, Cluster: cfg.ClusterID, Listen: cfg.Listen, TLS: cfg.TLS, Join: cfg.OnJoin, Answer: n.answer, Logger: v.log,
	})
	if err != nil {
		return nil, fmt.Errorf("listening for the other nodes: %w", err)
	}
	for _, p := range cfg.Peers {
		n.transport.SetPeer(p.ID, p.Addr)
	}
	return n, nil
}

// start waits until this node has what the cluster has, and makes the mount known to it.
func (n *node) start(ctx context.Context) error {
	v := n.v
	v.workers.Go(func() { n.keepMembers(v.stop) })
	v.workers.Go(func() { n.kernel.run(v.stop, v) })
	g := v.first()
	ctx, removed := context.WithCancelCause(ctx)
	defer removed(nil)
	asking, enough := context.WithCancel(ctx)
	var asks sync.WaitGroup
	asks.Go(func() { n.keepAsking(asking, func(by uint64) { removed(n.errRemoved(by)) }) })
	answered := func() { enough(); asks.Wait() }
	defer answered()
	for said := time.Now(); ; {
		var err error
		if st := g.Status(); st.Leader != 0 && slices.Contains(slices.Concat(st.Voters, st.Learners), n.cfg.NodeID) {
			try, cancel := context.WithTimeout(ctx, 2*time.Second)
			err = g.ReadBarrier(try)
			cancel()
			if err == nil {
				break
			}
		}
		if err := context.Cause(ctx); errors.Is(err, cluster.ErrRemoved) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: node %d, %s, does not hear of enough of the others: do they run, can they be reached at their addresses, and is it still one of them?",
				cluster.ErrQuorum, n.cfg.NodeID, n.cfg.Name)
		}
		if err := g.Err(); err != nil {
			return err
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			st := g.Status()
			v.log.WithFields(logrus.Fields{"applied": st.Applied, "commit": st.Commit, "leader": st.Leader, "term": st.Term}).Info("waiting for the cluster")
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	answered()
	n.readLevel()
	if err := n.beginSession(ctx); err != nil {
		return err
	}
	if n.cfg.Founder {
		// Others were made known when they were admitted.
		if err := (state{n}).PutSelf(ctx, n.cfg.Self()); err != nil {
			return err
		}
		if err := n.raiseAlone(ctx); err != nil {
			return err
		}
	}
	if err := n.openGroups(ctx); err != nil {
		return err
	}
	v.workers.Go(func() { n.keepAlive(v.stop) })
	v.workers.Go(func() { n.payLocksLater(v.stop) })
	v.workers.Go(func() { n.loose.run(v.stop, n) })
	v.workers.Go(func() { v.later.run(v.stop) })
	return nil
}

// beginSession makes this mount known under a new session.
func (n *node) beginSession(ctx context.Context) error {
	var b [8]byte
	if _, err := cryptorand.Read(b[:]); err != nil {
		return fmt.Errorf("no random bytes: %w", err)
	}
	s := &session{id: binary.LittleEndian.Uint64(b[:]) | 1, in: map[uint16]*sequence{}}
	if err := n.beginIn(ctx, n.v.first(), s); err != nil {
		return err
	}
	n.session.Store(s)
	return nil
}

// beginIn makes a session known to a group: to default first, which says what sessions there are.
func (n *node) beginIn(ctx context.Context, g *group, s *session) error {
	if _, err := n.v.proposeTagged(ctx, g, &command.BeginSession{Session: s.id, Node: n.cfg.NodeID}, nil, nil); err != nil {
		return fmt.Errorf("beginning a session in group %s: %w", g.Name(), err)
	}
	g.begun.Store(s.id)
	return nil
}

// renewSession replaces a session that has ended behind this mount's back.
func (n *node) renewSession(ctx context.Context, old *session) error {
	n.renew.Lock()
	defer n.renew.Unlock()
	if n.session.Load() != old {
		return nil
	}
	n.v.log.Warn("this node was away for so long that its locks and its hold on removed files are gone")
	return n.beginSession(ctx)
}

// close ends the session, if the cluster answers soon.
func (n *node) close() {
	s := n.session.Load()
	if s == nil || n.dead.Load() || n.removed() != nil {
		return // it was ended with the node
	}
	ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
	defer cancel()
	if _, err := n.v.proposeTagged(ctx, n.v.first(), &command.EndSession{Session: s.id}, nil, nil); err != nil {
		n.v.log.WithError(err).Warn("the session could not be ended; the others end it when its lease is over")
	}
}

// keepAlive tells the others that this mount lives, and ends sessions that have not been heard of where this node leads.
func (n *node) keepAlive(stop <-chan struct{}) {
	every := n.lease / 4
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if gap := time.Since(last); gap > 2*every {
			n.forgiveSilence() // it was this process that did not run
		}
		last = time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), every)
		_, free := n.usage()
		if _, err := n.v.propose(ctx, &command.KeepAlive{Session: n.session.Load().id, Free: max(free, 1)}); err != nil && ctx.Err() == nil {
			n.v.log.WithError(err).Debug("keep-alive")
		}
		n.expireSessions(ctx)
		cancel()
	}
}

func (n *node) forgiveSilence() {
	n.seenMu.Lock()
	defer n.seenMu.Unlock()
	clear(n.seen)
}

func (n *node) expireSessions(ctx context.Context) {
	g := n.v.first()
	for _, other := range n.v.all() {
		if other.slot != 0 && other.Leads() {
			n.endStraySessions(ctx, other)
		}
	}
	if !g.Leads() || !g.Replicated() {
		return
	}
	sessions, err := posix.Sessions(n.v.factReader(0))
	if err != nil {
		n.v.log.WithError(err).Warn("reading the sessions")
		return
	}
	for _, s := range sessions {
		n.seenMu.Lock()
		known, ok := n.seen[s.ID]
		if !ok {
			n.seen[s.ID] = seen{at: time.Now()}
		}
		n.seenMu.Unlock()
		if !ok || time.Since(known.at) < n.lease || s.ID == n.session.Load().id {
			continue
		}
		n.v.log.WithField("node", s.Node).Warn("a mount has not been heard of: its locks are released")
		if _, err := n.v.proposeTagged(ctx, g, &command.EndSession{Session: s.ID}, nil, nil); err != nil {
			n.v.log.WithError(err).Warn("ending its session")
			return
		}
	}
}

// endStraySessions ends the sessions in a group that group default knows no more: there they began first.
func (n *node) endStraySessions(ctx context.Context, g *group) {
	here, err := posix.Sessions(n.v.factReader(g.slot))
	if err != nil || len(here) == 0 || n.v.barrier(ctx, 0) != nil {
		return
	}
	known, err := posix.Sessions(n.v.factReader(0))
	if err != nil {
		return
	}
	for _, s := range here {
		if slices.Contains(known, s) {
			continue
		}
		if _, err := n.v.proposeTagged(ctx, g, &command.EndSession{Session: s.ID}, nil, nil); err != nil {
			n.v.log.WithError(err).WithField("group", g.Name()).Warn("ending a session")
			return
		}
	}
}

// heard notes a sign of life. It is called while applying.
func (n *node) heard(session, free uint64) {
	n.seenMu.Lock()
	defer n.seenMu.Unlock()
	s := n.seen[session]
	s.at = time.Now()
	if free != 0 {
		s.free = free
	}
	n.seen[session] = s
}

// maxMargin bounds the room, in blocks, that is left free on the nodes of a cluster: what other mounts may be about to write
// is not reserved here, and no replica may run out of space over what the others have agreed on.
const maxMargin = 128 << 20 / blockSize

// diskEvery is how often the disk is asked for its room.
const diskEvery = 100 * time.Millisecond

// usage tells how many blocks the store has, and how many can still be written: a sparse image finds no more room than the disk below it has.
func (n *node) usage() (total, free uint64) {
	total, free = n.v.eng.Usage()
	n.diskMu.Lock()
	defer n.diskMu.Unlock()
	if now := time.Now(); now.Sub(n.diskAsked) >= diskEvery {
		n.diskAsked, n.diskFree = now, math.MaxUint64
		// What a disk does not tell does not count.
		if u, err := n.fs.GetDiskUsage(n.v.dir); err == nil {
			n.diskFree = u.AvailBytes / blockSize
		}
	}
	if n.v.eng.Info().BlockDevice != "" && n.diskFree >= maxMargin {
		return total, free // only metadata and logs are on the disk that was asked
	}
	return total, min(free, n.diskFree)
}

// spare tells how many blocks the store has free on a majority of the nodes, this one among them, and how many of these are kept for what other mounts
// are about to write.
func (n *node) spare() (free, kept uint64) {
	total, free := n.usage()
	have := []uint64{free}
	own := n.session.Load()
	n.seenMu.Lock()
	for id, s := range n.seen {
		if (own == nil || id != own.id) && s.free > 0 && time.Since(s.at) < n.lease {
			have = append(have, s.free)
		}
	}
	n.seenMu.Unlock()
	slices.Sort(have)
	// Of three the middle one, of four the second lowest: one that is fuller than that stops, and the others go on.
	return min(free, have[(len(have)-1)/2]), min(maxMargin, total/16)
}

// room refuses a change for which a majority of the nodes has no room.
func (n *node) room(blocks uint64) error {
	if !n.v.replicated(0) {
		return nil
	}
	if free, kept := n.spare(); free < blocks+kept {
		return errors.Join(syscall.ENOSPC, fmt.Errorf("%d blocks asked for, a majority of the nodes has %d free and keeps %d for the others", blocks, free, kept))
	}
	return nil
}

// applied is told of every command that has changed the state of a group on this node, in the order of its log. It must be
// quick.
func (n *node) applied(slot uint16, p *proposal, res *posix.Result, mine bool) {
	if p.tag.Session != 0 {
		n.heard(p.tag.Session, 0)
	}
	if res.Err != nil {
		return
	}
	for _, ino := range res.Orphans {
		n.v.unnamed(ino)
	}
	switch c := p.cmd.(type) {
	case *command.KeepAlive:
		n.heard(c.Session, c.Free)
	case *command.BeginSession:
		n.heard(c.Session, 0)
		n.locks.wakeAll()
		n.thawed(slot)
	case *command.EndSession:
		n.seenMu.Lock()
		delete(n.seen, c.Session)
		n.seenMu.Unlock()
		n.locks.wakeAll()
		n.thawed(slot)
	case *command.Freeze:
		if s := n.session.Load(); s != nil && s.id != c.Session {
			n.asked(c.Ino)
		}
	case *command.FreezeVote, *command.Unfreeze:
		n.thawed(slot)
	case *command.Replace:
		n.replaced(&res.Inode)
		n.thawed(slot)
	case *command.RemoveNode:
		n.locks.wakeAll()
		n.thawed(slot)
		poke(n.changed)
	case *command.PutNode, *command.Join, *command.PutGroup, *command.DropGroup, *command.Route:
		poke(n.changed)
	case *command.SetLevel:
		n.levels.common.Store(max(c.Level, n.levels.common.Load()))
	case *command.Lock:
		if res.Bytes == 1 {
			n.locks.wake(c.Ino)
		}
	}
	if !mine {
		n.kernel.changed(p.cmd, res)
	}
}

// begin runs something that applying must not wait for, unless the volume is being closed.
func (n *node) begin(job func()) {
	n.jobsMu.Lock()
	defer n.jobsMu.Unlock()
	if !n.over {
		n.jobs.Go(job)
	}
}

// finish waits for what has begun; nothing more is begun. Nothing may be proposed any more.
func (n *node) finish() {
	n.jobsMu.Lock()
	n.over = true
	n.jobsMu.Unlock()
	n.jobs.Wait()
}

// restored is told that the state of a group was replaced by a snapshot.
func (n *node) restored() {
	n.readLevel()
	n.kernel.lose()
	n.locks.wakeAll()
	poke(n.changed)
	for _, g := range n.v.all() {
		n.thawed(g.slot)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// barrier waits until this node has applied everything that was acknowledged, by whomever, before the call.
func (v *Volume) barrier(ctx context.Context, ino meta.Ino) error {
	if v.node == nil {
		return nil
	}
	if err := v.node.removed(); err != nil {
		return err
	}
	g, err := v.group(ino)
	if err != nil || !g.Replicated() {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, v.node.timeout)
	defer cancel()
	if err := g.ReadBarrier(ctx); err != nil {
		return errors.Join(syscall.EIO, err)
	}
	return nil
}

// replicated tells whether a group has, or may get, other members.
func (v *Volume) replicated(slot uint16) bool {
	g := v.inSlot(slot)
	return g != nil && g.Replicated()
}

// factReader reads facts of a group; nil for one that is not there.
func (v *Volume) factReader(slot uint16) func(name string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		b, err := v.eng.Meta().GroupFact(slot, name)
		if errors.Is(err, meta.ErrNotFound) {
			return nil, nil
		}
		return b, err
	}
}

// proposeShared is proposing where others share the group: the command is proposed until it has been answered or the time
// is over, and done once. It tells under which tag.
func (n *node) proposeShared(ctx context.Context, g *group, c command.Command, open *opens) (posix.Result, command.Tag, error) {
	if err := n.removed(); err != nil {
		return posix.Result{}, command.Tag{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.timeout)
	defer cancel()
	for {
		s := n.session.Load()
		if s == nil {
			return posix.Result{}, command.Tag{}, errors.Join(syscall.EIO, errors.New("the mount has no session yet"))
		}
		if err := n.mayPropose(c, s.id); err != nil {
			return posix.Result{}, command.Tag{}, err
		}
		if g.begun.Load() != s.id {
			if err := n.beginIn(ctx, g, s); err != nil {
				return posix.Result{}, command.Tag{}, err
			}
		}
		tag := s.begin(g.slot)
		res, err := n.v.proposeTagged(ctx, g, c, &tag, open)
		s.end(g.slot, tag.Seq)
		if !errors.Is(err, posix.ErrNoSession) {
			return res, tag, err
		}
		if err := n.renewSession(ctx, s); err != nil {
			return res, tag, errors.Join(syscall.EIO, err)
		}
		if tag.Retry {
			// A copy may have been done before the session ended.
			return res, tag, errors.Join(syscall.EIO, errors.New("the outcome is not known: the mount's session ended meanwhile"))
		}
	}
}

// proposeTagged proposes a command, again if need be. Without a tag it must be one that can be done twice. The tag says
// afterwards whether it was proposed more than once.
func (v *Volume) proposeTagged(ctx context.Context, g *group, c command.Command, tag *command.Tag, open *opens) (posix.Result, error) {
	p := &proposal{cmd: c, time: fs.Now(), open: open}
	for {
		if tag != nil {
			p.tag = *tag
		}
		try, cancel := context.WithTimeout(ctx, tryTimeout)
		r, err := g.Propose(try, command.Encode(c, p.time, p.tag), p)
		cancel()
		switch {
		case err == nil:
			return r.(outcome).rest()
		case errors.Is(err, consensus.ErrNotAppended), errors.Is(err, consensus.ErrDiskFull) && (tag == nil || !tag.Retry):
			return posix.Result{}, errors.Join(syscall.ENOSPC, err)
		case ctx.Err() != nil:
			return posix.Result{}, errors.Join(syscall.EIO, fmt.Errorf("no majority of the nodes answers: %w", err))
		case errors.Is(err, consensus.ErrUnknownOutcome), errors.Is(err, context.DeadlineExceeded):
			if tag != nil {
				tag.Retry = true
			}
			// What the proposal points to may be in use still: the next one gets its own.
			p = &proposal{cmd: c, time: p.time, open: open}
		default:
			return posix.Result{}, errors.Join(syscall.EIO, err)
		}
	}
}

// rest does what applying has left to the proposer.
func (o outcome) rest() (posix.Result, error) {
	if o.tx != nil {
		if err := o.tx.Rest(); err != nil {
			return o.res, err
		}
	}
	return o.res, o.err
}
