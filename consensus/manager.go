package consensus

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/errors/oserror"

	"vdefs/consensus/logstore"
)

// Manager owns the groups of a node. All methods may be called from any
// goroutine.
type Manager struct {
	cfg     Config
	lock    io.Closer     // on the directory
	wake    chan struct{} // asks syncLoop not to wait for its timer
	quit    chan struct{}
	loops   sync.WaitGroup // syncLoop and tickLoop
	routes  atomic.Pointer[RoutingTable]
	metrics *metrics

	// syncSlots bounds how many replicas write and sync at once.
	syncSlots chan struct{}

	strayMessages atomic.Uint64 // for groups that are not open here
	badMessages   atomic.Uint64 // refused by checkMessage

	saidMu sync.Mutex
	said   map[string]bool // what sayOnce has said

	mu     sync.RWMutex
	groups map[GroupID]*Group // the open ones
	// busy are the groups being created, opened or removed.
	busy   map[GroupID]bool
	closed bool
}

// Open takes possession of cfg.Dir. It opens no group: see OpenGroup.
func Open(cfg Config) (*Manager, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	if err := logstore.SyncDir(cfg.FS, cfg.FS.PathDir(cfg.Dir)); err != nil {
		return nil, fmt.Errorf("consensus: making %s durable: %w", cfg.Dir, err)
	}
	lockName := cfg.FS.PathJoin(cfg.Dir, "LOCK")
	lock, err := cfg.FS.Lock(lockName)
	if err != nil {
		return nil, fmt.Errorf("consensus: %s is locked: is another process using this store? %w", lockName, err)
	}
	m := &Manager{
		cfg: cfg, lock: lock, wake: make(chan struct{}, 1), quit: make(chan struct{}),
		syncSlots: make(chan struct{}, 64),
		groups:    map[GroupID]*Group{}, busy: map[GroupID]bool{}, metrics: newMetrics(), said: map[string]bool{},
	}
	m.routes.Store(&RoutingTable{slots: []GroupID{DefaultGroup}})
	if err := m.removeLeftovers(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if !cfg.manual {
		m.loops.Add(1)
		go m.syncLoop()
	}
	if cfg.Transport != nil {
		if !cfg.manual {
			m.loops.Add(1)
			go m.tickLoop()
		}
		if err := cfg.Transport.Start(receiver{m}); err != nil {
			return nil, errors.Join(fmt.Errorf("consensus: %w", err), m.Close())
		}
	}
	return m, nil
}

// removeLeftovers removes directories of groups whose creation or removal was
// interrupted: those without a hard state.
func (m *Manager) removeLeftovers() error {
	names, err := m.cfg.FS.List(m.cfg.Dir)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	for _, name := range names {
		dir := m.cfg.FS.PathJoin(m.cfg.Dir, name)
		st, err := m.cfg.FS.Stat(dir)
		if err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
		if !st.IsDir() || GroupID(name).Validate() != nil {
			continue
		}
		if _, err := logstore.ReadState(m.cfg.FS, dir); errors.Is(err, logstore.ErrNoState) {
			if GroupID(name) == DefaultGroup {
				// It is never removed, and before its hard state is there its log has only what bootstrap writes.
				left, err := logstore.Look(m.cfg.FS, dir, math.MaxUint64)
				if err != nil {
					return fmt.Errorf("consensus: %w", err)
				}
				if left.Term > bootstrapTerm {
					return fmt.Errorf("consensus: group %s: %w: the hard state is missing from %s, though its log has entries up to %d", name, ErrCorrupt, dir, left.Last)
				}
			}
			m.cfg.Logger.Warnf("raft: removing %s, what an interrupted creation or removal of a group left", dir)
			if err := m.cfg.FS.RemoveAll(dir); err != nil {
				return fmt.Errorf("consensus: %w", err)
			}
		}
	}
	return nil
}

// reserve makes sure that nobody else creates, opens or removes the group; the
// caller calls release when it has.
func (m *Manager) reserve(name GroupID) error {
	if err := name.Validate(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return fmt.Errorf("%w: the manager", ErrClosed)
	case m.groups[name] != nil:
		return fmt.Errorf("%w: %s", ErrGroupOpen, name)
	case m.busy[name]:
		return fmt.Errorf("%w: %s (by another call under way)", ErrGroupOpen, name)
	}
	m.busy[name] = true
	return nil
}

// release ends a reservation; g is the group if it is open now.
func (m *Manager) release(name GroupID, g *Group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.busy, name)
	if g != nil {
		m.groups[name] = g
	}
}

func (m *Manager) groupDir(name GroupID) string {
	return m.cfg.FS.PathJoin(m.cfg.Dir, string(name))
}

// exists reports whether the group is on this node's disk.
func (m *Manager) exists(name GroupID) (bool, error) {
	_, err := m.cfg.FS.Stat(m.cfg.FS.PathJoin(m.groupDir(name), "state"))
	if oserror.IsNotExist(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("consensus: %w", err)
	}
	return true, nil
}

// CreateGroup makes a new group, of which this node is the only voter, and opens
// it. It is durable when CreateGroup returns: a crash before leaves nothing. sm
// must not have applied anything.
func (m *Manager) CreateGroup(name GroupID, sm StateMachine) (*Group, error) {
	return m.createGroup(name, sm, []uint64{m.cfg.NodeID})
}

// CreateReplicatedGroup makes a new group on several nodes: it is called with the
// same voters on each of them.
func (m *Manager) CreateReplicatedGroup(name GroupID, sm StateMachine, voters ...uint64) (*Group, error) {
	if len(voters) == 0 || slices.Contains(voters, 0) {
		return nil, fmt.Errorf("consensus: group %s cannot have the voters %d", name, voters)
	}
	voters = slices.Clone(voters)
	slices.Sort(voters)
	return m.createGroup(name, sm, slices.Compact(voters))
}

// JoinGroup makes this node ready to become a member of a group that exists on
// others: one of them then calls ChangeMembers.
func (m *Manager) JoinGroup(name GroupID, sm StateMachine) (*Group, error) {
	return m.createGroup(name, sm, nil)
}

func (m *Manager) createGroup(name GroupID, sm StateMachine, voters []uint64) (g *Group, err error) {
	if err := m.reserve(name); err != nil {
		if errors.Is(err, ErrGroupOpen) {
			return nil, fmt.Errorf("%w: %s", ErrGroupExists, name)
		}
		return nil, err
	}
	defer func() { m.release(name, g) }()
	if there, err := m.exists(name); err != nil {
		return nil, err
	} else if there {
		return nil, fmt.Errorf("%w: %s", ErrGroupExists, name)
	}
	if at := sm.AppliedIndex(); at != 0 {
		return nil, fmt.Errorf("%w: group %s is new, but its state has applied entry %d: if the log was lost, restore it or take a snapshot of another node",
			ErrLogGap, name, at)
	}
	dir := m.groupDir(name)
	if err := m.cfg.FS.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("consensus: creating group %s: %w", name, err)
	}
	if err := logstore.SyncDir(m.cfg.FS, m.cfg.Dir); err != nil {
		return nil, fmt.Errorf("consensus: creating group %s: %w", name, err)
	}
	if err := m.bootstrap(dir, voters); err != nil {
		return nil, fmt.Errorf("creating group %s: %w", name, err)
	}
	return m.load(name, sm)
}

// OpenGroup opens a group that is on this node's disk. It returns when sm has
// applied everything in the log, which was made durable before.
func (m *Manager) OpenGroup(name GroupID, sm StateMachine) (g *Group, err error) {
	if err := m.reserve(name); err != nil {
		return nil, err
	}
	defer func() { m.release(name, g) }()
	if there, err := m.exists(name); err != nil {
		return nil, err
	} else if !there {
		return nil, fmt.Errorf("%w: %s", ErrGroupNotFound, name)
	}
	return m.load(name, sm)
}

// OpenOrCreateGroup opens the group if it is on this node's disk and creates it
// if not. A state machine that has applied something is never given a new log.
func (m *Manager) OpenOrCreateGroup(name GroupID, sm StateMachine) (*Group, error) {
	g, err := m.OpenGroup(name, sm)
	if errors.Is(err, ErrGroupNotFound) {
		g, err = m.CreateGroup(name, sm)
	}
	return g, err
}

func (m *Manager) load(name GroupID, sm StateMachine) (*Group, error) {
	g := &Group{name: name, m: m, dir: m.groupDir(name), sm: sm, done: make(chan struct{})}
	if err := g.open(); err != nil {
		return nil, fmt.Errorf("opening group %s: %w", name, err)
	}
	return g, nil
}

// GetGroup returns an open group.
func (m *Manager) GetGroup(name GroupID) (*Group, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	g, ok := m.groups[name]
	return g, ok
}

// RemoveGroup closes the group, if it is open, and deletes it from this node. It
// is gone for good when RemoveGroup returns. DefaultGroup cannot be removed.
func (m *Manager) RemoveGroup(name GroupID) error {
	if name == DefaultGroup {
		return fmt.Errorf("consensus: group %s cannot be removed", name)
	}
	if g, ok := m.GetGroup(name); ok {
		if err := g.Close(); err != nil {
			m.cfg.Logger.WithError(err).Warnf("raft group %s is removed, though it did not close well", name)
		}
	}
	if err := m.reserve(name); err != nil {
		return err
	}
	defer m.release(name, nil)
	if there, err := m.exists(name); err != nil {
		return err
	} else if !there {
		return fmt.Errorf("%w: %s", ErrGroupNotFound, name)
	}
	dir := m.groupDir(name)
	if err := logstore.RemoveState(m.cfg.FS, dir); err != nil {
		return err
	}
	if err := m.cfg.FS.RemoveAll(dir); err != nil {
		return fmt.Errorf("consensus: removing group %s: %w", name, err)
	}
	return nil
}

// Groups returns the names of all groups on this node, open or not, sorted.
func (m *Manager) Groups() ([]GroupID, error) {
	names, err := m.cfg.FS.List(m.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	var groups []GroupID
	for _, name := range names {
		id := GroupID(name)
		if id.Validate() != nil {
			continue
		}
		if there, err := m.exists(id); err != nil {
			return nil, err
		} else if there {
			groups = append(groups, id)
		}
	}
	slices.Sort(groups)
	return groups, nil
}

// SetRoutes makes t the table that Route uses. Until then it has one slot, for
// DefaultGroup.
func (m *Manager) SetRoutes(t *RoutingTable) { m.routes.Store(t) }

// Routes returns the table that Route uses.
func (m *Manager) Routes() *RoutingTable { return m.routes.Load() }

// Route returns the group that path is placed in.
func (m *Manager) Route(path string) GroupID { return m.routes.Load().Route(path) }

// opened returns the open groups.
func (m *Manager) opened() []*Group {
	m.mu.RLock()
	defer m.mu.RUnlock()
	groups := make([]*Group, 0, len(m.groups))
	for _, g := range m.groups {
		groups = append(groups, g)
	}
	return groups
}

// SyncAll makes everything durable, on this node, that was appended to any group
// before the call. It takes no group's lock: it may be called from inside Apply
// and from whatever Apply waits for.
func (m *Manager) SyncAll() error {
	var errs []error
	for _, g := range m.opened() {
		if err := g.syncLog(); err != nil && !errors.Is(err, ErrClosed) {
			// A group that was closed meanwhile was synced by that.
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// kick asks the syncer to run soon. It does not block.
func (m *Manager) kick() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// syncLoop makes durable what nobody asked to be.
func (m *Manager) syncLoop() {
	defer m.loops.Done()
	timer := time.NewTicker(m.cfg.SyncInterval)
	defer timer.Stop()
	for {
		select {
		case <-m.quit:
			return
		case <-timer.C:
		case <-m.wake:
		}
		for _, g := range m.opened() {
			if g.LastIndex() > g.DurableIndex() {
				// A failure stops the group, which is where it is reported.
				_ = g.syncLog()
			}
		}
	}
}

// forget takes a group out of the table of open ones.
func (m *Manager) forget(g *Group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.groups[g.name] == g {
		delete(m.groups, g.name)
	}
}

// Close closes all groups and gives the directory back.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	close(m.quit)
	m.loops.Wait()
	var errs []error
	for _, g := range m.opened() {
		errs = append(errs, g.Close())
	}
	return errors.Join(append(errs, m.lock.Close())...)
}
