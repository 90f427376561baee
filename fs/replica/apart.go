package replica

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde/meta"
)

// A regular file lies in the group that its path hashes to when it is made, directories and all names in group default.
// Operations on both have two halves:
//
//	create, link   prepare in the file's group (pending), name in default: that decides; then the file's group is told
//	unlink, rename over a file
//	               default removes the name and notes that: that decides; then the file's group is told
//
// What a mount leaves undone when it dies is finished by the leaders (resolver): a removal always, a pending name as
// default says, once default has ended the session that may still give it.

// path is what decides where a file is placed.
func path(parent meta.Ino, name string) string {
	return strconv.FormatUint(uint64(parent), 10) + "/" + name
}

// place tells in which group a new file goes.
func (v *Volume) place(parent meta.Ino, name string) uint16 {
	if v.node == nil {
		return parent.Group()
	}
	if slot, ok := v.slots.Load(v.mgr.Route(path(parent, name))); ok && v.inSlot(slot.(uint16)) != nil {
		return slot.(uint16)
	}
	return parent.Group()
}

// apart tells whether an inode lies in another group than its directory.
func (v *Volume) apart(dir, ino meta.Ino) bool { return ino != 0 && ino.Group() != dir.Group() }

func txID(t command.Tag) command.TxID { return command.TxID{Session: t.Session, Seq: t.Seq} }

// makeApart makes a file in the group of a slot.
func (v *Volume) makeApart(ctx context.Context, n fs.NewNode, slot uint16, open *opens) (meta.Inode, error) {
	if err := posix.CheckName(n.Name); err != nil {
		return meta.Inode{}, err
	}
	// What is taken over from the directory, and the usual refusals before anything is made. The kernel has just looked the name up: what
	// this node knows is as new as that.
	if v.strict {
		if err := v.barrier(ctx, n.Parent); err != nil {
			return meta.Inode{}, err
		}
	}
	switch _, err := v.eng.Meta().Dirent(n.Parent, n.Name); {
	case err == nil:
		return meta.Inode{}, syscall.EEXIST
	case !errors.Is(err, meta.ErrNotFound):
		return meta.Inode{}, err
	}
	dir, err := v.inode(n.Parent)
	if err == nil && dir.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return meta.Inode{}, err
	}
	var acl []byte
	if dir.Flags&meta.FlagDefaultACL != 0 {
		if acl, err = v.eng.Meta().Xattr(n.Parent, posix.DefaultACL); err != nil && !errors.Is(err, meta.ErrNotFound) {
			return meta.Inode{}, err
		}
	}
	res, tag, err := v.changeIn(ctx, slot, &command.MakeApart{
		Mode: n.Mode, Umask: n.Umask, UID: n.UID, GID: n.GID, ParentMode: dir.Mode, ParentGID: dir.GID, DefaultACL: acl,
		SecurityName: n.Security.Name, SecurityValue: n.Security.Value,
	}, open)
	if errors.Is(err, posix.ErrSealed) {
		return v.makeHere(ctx, n, false, open) // the group is being removed
	}
	if err != nil {
		return res.Inode, err
	}
	if err := v.step("made"); err != nil {
		return meta.Inode{}, err
	}
	if err := v.nameApart(ctx, n.Parent, n.Name, &res.Inode, tag); err != nil {
		if open != nil {
			v.Unreference(res.Inode.Ino)
		}
		if errors.Is(err, posix.ErrTxOver) && ctx.Err() == nil {
			return v.makeApart(ctx, n, slot, open) // the mount's session ended meanwhile: all of it anew, under the next one
		}
		return meta.Inode{}, err
	}
	v.watch.named(n.Parent, n.Name, &res.Inode)
	return res.Inode, nil
}

// step is between two halves of an operation: a test may have the mount die there.
func (v *Volume) step(name string) error {
	if dies := v.node.dies.Load(); dies != nil && (*dies)(name) {
		return errors.Join(syscall.EIO, errors.New("died"))
	}
	return nil
}

// linkApart gives a file of another group one more name.
func (v *Volume) linkApart(ctx context.Context, ino, parent meta.Ino, name string) (meta.Inode, error) {
	res, tag, err := v.changeTx(ctx, &command.LinkApart{Ino: ino})
	if err != nil {
		return res.Inode, err
	}
	if err := v.step("linked"); err != nil {
		return meta.Inode{}, err
	}
	if err := v.nameApart(ctx, parent, name, &res.Inode, tag); err != nil {
		return meta.Inode{}, err
	}
	v.watch.named(parent, name, &res.Inode)
	return res.Inode, nil
}

// nameApart is the second half of making and linking.
func (v *Volume) nameApart(ctx context.Context, parent meta.Ino, name string, in *meta.Inode, tag command.Tag) error {
	_, err := v.change(ctx, &command.Name{Parent: parent, Name: name, Ino: in.Ino, Mode: in.Mode, Tx: txID(tag)})
	if err := v.step("named"); err != nil {
		return err
	}
	var errno syscall.Errno
	switch {
	case err == nil:
		v.node.loose.settled(in.Ino, txID(tag), true)
	case errors.As(err, &errno) && errno != syscall.EIO:
		v.node.loose.settled(in.Ino, txID(tag), false) // certainly not named
	default:
		v.node.loose.ask(in.Ino, txID(tag)) // nobody knows yet
	}
	return err
}

// finishDrop is the second half of a removal. It returns the file as it is then. If it cannot be done now, the resolver
// does it: the name is gone in any case.
func (v *Volume) finishDrop(ctx context.Context, tag command.Tag, ino meta.Ino) meta.Inode {
	if err := v.step("dropped"); err != nil {
		return meta.Inode{Ino: ino}
	}
	res, err := v.propose(ctx, &command.Unname{Tx: txID(tag), Ino: ino})
	if err == nil {
		err = v.step("told")
	}
	if err != nil {
		v.log.WithError(err).WithField("ino", uint64(ino)).Warn("a removed name is still counted; the leaders see to it")
		return meta.Inode{Ino: ino, Nlink: 1}
	}
	v.node.loose.dropped(ino.Group(), txID(tag))
	return res.Inode
}

// dropLater is finishDrop for a file that nobody will miss: its only name is gone. It tells whether it is one, and is done beside
// the caller then. Where another mount gives the file a name at this moment, that mount sees the old count for a moment.
func (v *Volume) dropLater(tag command.Tag, ino meta.Ino) bool {
	if v.strict || !v.mayUse(command.OpFinish) {
		return false
	}
	if in, err := v.inode(ino); err != nil || in.Nlink != 1 {
		return false
	}
	if v.step("dropped") == nil {
		v.later.unname(ino, txID(tag))
	}
	return true
}

// moved gives a file of another group that was renamed its change time, and fills in what it is.
func (v *Volume) moved(ctx context.Context, in *meta.Inode) {
	c := &command.SetAttr{Ino: in.Ino, Set: command.SetCtime, Ctime: fs.Now()}
	if v.strict || !v.mayUse(command.OpFinish) {
		if res, err := v.change(ctx, c); err == nil {
			*in = res.Inode
		}
		return
	}
	if here, err := v.inode(in.Ino); err == nil {
		*in = here
	}
	v.later.changed(in.Ino, c.Ctime)
}

// looseEnds are records of operations that are over, or of which this mount does not know whether they are.
type looseEnds struct {
	mu      sync.Mutex
	settle  map[uint16][]command.Settlement // by the file's slot; guarded by mu
	placed  map[uint16][]command.Placement  // likewise: to be forgotten in default after the settlement
	unknown map[command.Placement]bool      // guarded by mu
	drops   map[uint16][]command.TxID       // by the file's slot; guarded by mu
	wake    chan struct{}
}

func newLooseEnds() *looseEnds {
	l := &looseEnds{unknown: map[command.Placement]bool{}, wake: make(chan struct{}, 1)}
	l.clearLocked()
	return l
}

func (l *looseEnds) clearLocked() {
	l.settle, l.placed, l.drops = map[uint16][]command.Settlement{}, map[uint16][]command.Placement{}, map[uint16][]command.TxID{}
}

func (l *looseEnds) settled(ino meta.Ino, tx command.TxID, named bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slot := ino.Group()
	l.settle[slot] = append(l.settle[slot], command.Settlement{Tx: tx, Named: named})
	if named {
		l.placed[slot] = append(l.placed[slot], command.Placement{Ino: ino, Tx: tx})
	}
	poke(l.wake)
}

func (l *looseEnds) ask(ino meta.Ino, tx command.TxID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unknown[command.Placement{Ino: ino, Tx: tx}] = true
	poke(l.wake)
}

// dropped notes a removal of which the file's group has been told.
func (l *looseEnds) dropped(slot uint16, tx command.TxID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drops[slot] = append(l.drops[slot], tx)
	poke(l.wake)
}

const (
	looseDelay = 100 * time.Millisecond // how long the first of a batch waits for others
	looseBatch = 1000
	// A record that a live mount may be about to see to is left to it for so long.
	resolveAfter = 5 * time.Second
	forgetAfter  = time.Minute // of removals that another node may have done
)

// run ties up the loose ends of this mount, and those of others where this node leads, until stop is closed.
func (l *looseEnds) run(stop <-chan struct{}, n *node) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	r := &resolver{n: n, since: map[any]time.Time{}}
	for {
		select {
		case <-stop:
			return
		case <-l.wake:
			select {
			case <-stop:
				return
			case <-time.After(looseDelay):
			}
			l.flush(n)
		case <-tick.C:
			r.resolve()
		}
	}
}

// flush proposes what is noted. What fails is found by the resolver.
func (l *looseEnds) flush(n *node) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*tryTimeout)
	defer cancel()
	l.mu.Lock()
	settle, placed, drops, unknown := l.settle, l.placed, l.drops, l.unknown
	l.unknown = map[command.Placement]bool{}
	l.clearLocked()
	l.mu.Unlock()
	for p := range unknown {
		// This mount has given up proposing the name, but a copy may still come: only the end of the session makes it certain
		// that none does. Meanwhile it may be there already.
		if there, err := n.wasPlaced(ctx, p.Ino, p.Tx); err == nil && there {
			slot := p.Ino.Group()
			settle[slot] = append(settle[slot], command.Settlement{Tx: p.Tx, Named: true})
			placed[slot] = append(placed[slot], p)
		}
	}
	for slot, items := range settle {
		for len(items) > 0 {
			batch := items[:min(len(items), looseBatch)]
			items = items[len(batch):]
			if !n.proposeQuietly(ctx, slot, &command.Settle{Items: batch}) {
				delete(placed, slot)
				break
			}
		}
	}
	for _, list := range placed {
		for len(list) > 0 {
			batch := list[:min(len(list), looseBatch)]
			list = list[len(batch):]
			n.proposeQuietly(ctx, 0, &command.Forget{Placed: batch})
		}
	}
	for slot, list := range drops {
		for len(list) > 0 {
			batch := list[:min(len(list), looseBatch)]
			list = list[len(batch):]
			// First where it is asked for, then where it was answered.
			if n.proposeQuietly(ctx, 0, &command.Forget{Dropped: batch}) {
				n.proposeQuietly(ctx, slot, &command.Forget{Done: batch})
			}
		}
	}
}

func (n *node) proposeQuietly(ctx context.Context, slot uint16, c command.Command) bool {
	_, _, err := n.v.proposeTx(ctx, slot, c, nil)
	if err != nil {
		n.v.log.WithError(err).Debug("an operation on two groups is tied up later")
	}
	return err == nil
}

// wasPlaced asks group default whether it has given a pending file its name.
func (n *node) wasPlaced(ctx context.Context, ino meta.Ino, tx command.TxID) (bool, error) {
	if err := n.v.barrier(ctx, 0); err != nil {
		return false, err
	}
	return posix.WasPlaced(facts{n.v, 0}, ino, tx)
}

// facts reads the facts of a group as this node knows them; it is a posix.FactReader.
type facts struct {
	v    *Volume
	slot uint16
}

func (f facts) Get(name string) ([]byte, error) { return f.v.factReader(f.slot)(name) }
func (f facts) List(prefix string, yield func(string, []byte) (bool, error)) error {
	return f.v.eng.Meta().GroupFacts(f.slot, prefix, yield)
}

// record names a record of an operation on two groups.
type record struct {
	kind string
	slot uint16
	tx   command.TxID
}

// resolver finishes what mounts that have died have left between two groups.
type resolver struct {
	n     *node
	since map[any]time.Time // of what was seen unsettled: when first
}

// old tells whether something has been seen for long enough, and notes that it is seen now.
func (r *resolver) old(what any, now time.Time, seen map[any]time.Time, after time.Duration) bool {
	first, ok := r.since[what]
	if !ok {
		first = now
	}
	seen[what] = first
	return now.Sub(first) >= after
}

func (r *resolver) resolve() {
	ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
	defer cancel()
	now, seen := time.Now(), map[any]time.Time{}
	for _, g := range r.n.v.all() {
		if !g.Leads() {
			continue
		}
		u, err := posix.ReadUnsettled(facts{r.n.v, g.slot}, looseBatch)
		if err != nil {
			r.n.v.log.WithError(err).WithField("group", g.Name()).Error("records of operations on two groups cannot be read")
			continue
		}
		r.resolveDrops(ctx, u.Dropped, now, seen)
		r.resolvePending(ctx, g.slot, u.Pending, now, seen)
		r.resolvePlaced(ctx, u.Placed, now, seen)
		r.resolveDone(ctx, g.slot, u.Done, now, seen)
	}
	r.since = seen
}

// resolveDrops tells the files' groups of removals.
func (r *resolver) resolveDrops(ctx context.Context, dropped map[command.TxID]meta.Ino, now time.Time, seen map[any]time.Time) {
	for tx, ino := range dropped {
		if !r.old(record{"drop", 0, tx}, now, seen, r.n.resolve) {
			continue
		}
		if r.n.proposeQuietly(ctx, ino.Group(), &command.Unname{Tx: tx, Ino: ino}) {
			// That it was done is remembered for longer: the mount that began it may have a copy of its own under way.
			r.n.proposeQuietly(ctx, 0, &command.Forget{Dropped: []command.TxID{tx}})
		}
	}
}

// resolvePending has default say what became of names, where the session that may still give them is over.
func (r *resolver) resolvePending(ctx context.Context, slot uint16, pending map[command.TxID]meta.Ino, now time.Time, seen map[any]time.Time) {
	var alive map[uint64]bool
	for tx, ino := range pending {
		if !r.old(record{"pend", slot, tx}, now, seen, r.n.resolve) {
			continue
		}
		if alive == nil {
			if r.n.v.barrier(ctx, 0) != nil {
				return
			}
			sessions, err := posix.Sessions(r.n.v.factReader(0))
			if err != nil {
				return
			}
			alive = map[uint64]bool{}
			for _, s := range sessions {
				alive[s.ID] = true
			}
		}
		placed, err := posix.WasPlaced(facts{r.n.v, 0}, ino, tx)
		if err != nil || !placed && alive[tx.Session] {
			continue
		}
		r.n.loose.settled(ino, tx, placed)
	}
}

// resolvePlaced forgets names of which the file's group has been told.
func (r *resolver) resolvePlaced(ctx context.Context, placed []command.Placement, now time.Time, seen map[any]time.Time) {
	var over []command.Placement
	for _, p := range placed {
		if !r.old(p, now, seen, r.n.resolve) || r.n.v.barrier(ctx, p.Ino) != nil {
			continue
		}
		if waits, err := posix.IsPending(facts{r.n.v, p.Ino.Group()}, p.Tx); err == nil && !waits {
			over = append(over, p)
		}
	}
	if len(over) > 0 {
		r.n.proposeQuietly(ctx, 0, &command.Forget{Placed: over})
	}
}

// resolveDone forgets removals that are done and that nobody asks for any more.
func (r *resolver) resolveDone(ctx context.Context, slot uint16, done []command.TxID, now time.Time, seen map[any]time.Time) {
	var over []command.TxID
	for _, tx := range done {
		if !r.old(record{"did", slot, tx}, now, seen, forgetAfter) || r.n.v.barrier(ctx, 0) != nil {
			continue
		}
		if asks, err := posix.IsDropped(facts{r.n.v, 0}, tx); err == nil && !asks {
			over = append(over, tx)
		}
	}
	if len(over) > 0 {
		r.n.proposeQuietly(ctx, slot, &command.Forget{Done: over})
	}
}
