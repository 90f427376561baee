package posix

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// A regular file may lie in another group than the directories that name it. Its operations have two halves, one entry in
// each group; the entry in the group of the name decides, and the records below tell what a crash has left between the two
// (docs/design.md):
//
//	pend session8 seq8          ino8     group of the file: it was made, or gets a name, and nobody has said yet that the name is there
//	placed ino8 session8 seq8   -        group of the name: the name is there
//	drop session8 seq8          ino8     group of the name: a name of the file is gone, which the file's group may not know
//	did session8 seq8           -        group of the file: it knows
//
// And group default knows the groups:
//
//	group slot8                 Group as JSON
//	route                       slot8 ...   the routing table
//	next-slot                   slot8       what the next group gets; never given twice
const (
	factPend     = "pend"
	factPlaced   = "placed"
	factDrop     = "drop"
	factDid      = "did"
	factGroup    = "group"
	factRoute    = "route"
	factNextSlot = "next-slot"
	factSealed   = "sealed" // of a group that nothing is made in any more
)

// ErrSealed refuses to make a file in a group that is about to be removed.
const ErrSealed = syscall.EAGAIN

var isThere = []byte{1}

// maxSlots bounds how many groups there ever are: the number is part of an inode number, and some are taken.
const maxSlots = 0xFF00

func (a *applier) tx() command.TxID { return command.TxID{Session: a.tag.Session, Seq: a.tag.Seq} }

func txFact(kind string, tx command.TxID) string { return numbered(kind, tx.Session, tx.Seq) }

func placedFact(ino meta.Ino, tx command.TxID) string {
	return numbered(factPlaced, uint64(ino), tx.Session, tx.Seq)
}

// apart tells whether an inode lies in another group than the one that the command is of.
func (a *applier) apart(ino meta.Ino) bool { return ino.Group() != a.Slot() }

func (a *applier) makeApart(c *command.MakeApart) error {
	if c.Mode&unix.S_IFMT != unix.S_IFREG || a.tag.Session == 0 {
		return syscall.EINVAL
	}
	if sealed, err := a.fact(factSealed); err != nil || sealed != nil {
		return errors.Join(ErrSealed, err)
	}
	in := a.NewInode()
	in.Mode, in.UID, in.GID, in.Nlink = unix.S_IFREG|c.Mode&0o7777, c.UID, c.GID, 1
	if c.ParentMode&unix.S_ISGID != 0 {
		in.GID = c.ParentGID
	}
	in.Atime, in.Mtime, in.Ctime, in.Btime = a.now, a.now, a.now, a.now
	a.inheritFrom(c.DefaultACL, in, c.Umask)
	if c.SecurityName != "" {
		a.SetXattr(in.Ino, c.SecurityName, c.SecurityValue)
		in.Flags |= meta.FlagXattr
	}
	a.setNumbers(txFact(factPend, a.tx()), []uint64{uint64(in.Ino)})
	a.res.Inode = *in
	return nil
}

func (a *applier) linkApart(c *command.LinkApart) error {
	in, err := a.inode(c.Ino)
	if err != nil {
		return err
	}
	if a.tag.Session == 0 {
		return syscall.EINVAL
	}
	if err := a.linked(in); err != nil {
		return err
	}
	a.setNumbers(txFact(factPend, a.tx()), []uint64{uint64(in.Ino)})
	return nil
}

// ErrTxOver refuses a name for a file that was made or linked under a session that has ended since: whoever sees to what it
// left behind counts on no name coming any more.
const ErrTxOver = syscall.EOWNERDEAD

func (a *applier) name(c *command.Name) error {
	if alive, err := a.hasSession(c.Tx.Session); err != nil || !alive {
		return errors.Join(ErrTxOver, err)
	}
	parent, err := a.dir(c.Parent)
	if err != nil {
		return err
	}
	if err := a.vacant(parent, c.Name); err != nil {
		return err
	}
	a.AddDirent(parent, c.Name, c.Ino, c.Mode)
	a.changed(parent)
	a.setFact(placedFact(c.Ino, c.Tx), isThere)
	a.res.Inode = meta.Inode{Ino: c.Ino}
	return nil
}

// drop notes that a file of another group has lost a name by this command. One command drops one name at most.
func (a *applier) drop(ino meta.Ino) {
	a.setNumbers(txFact(factDrop, a.tx()), []uint64{uint64(ino)})
}

func (a *applier) unname(c *command.Unname) error {
	did := txFact(factDid, c.Tx)
	known, err := a.fact(did)
	if err != nil {
		return err
	}
	in, err := a.inode(c.Ino)
	if known != nil || errors.Is(err, syscall.ESTALE) {
		if err == nil {
			a.res.Inode = *in
		}
		return nil
	}
	if err != nil {
		return err
	}
	a.setFact(did, isThere)
	if in.Nlink == 0 {
		return nil // damage; it is an orphan already
	}
	return a.unnamed(in)
}

func (a *applier) finish(c *command.Finish) error {
	for i := range c.Unnamed {
		if err := a.unname(&c.Unnamed[i]); err != nil {
			return err
		}
	}
	for _, t := range c.Changed {
		in, err := a.inode(t.Ino)
		if errors.Is(err, syscall.ESTALE) {
			continue
		}
		if err != nil {
			return err
		}
		if in.Ctime.Before(t.Ctime) {
			in.Ctime = t.Ctime
			a.SetInode(in)
		}
	}
	a.res.Inode = meta.Inode{}
	return nil
}

func (a *applier) settle(c *command.Settle) error {
	for _, item := range c.Items {
		name := txFact(factPend, item.Tx)
		inos, err := a.numbers(name, 1)
		if err != nil {
			return err
		}
		if len(inos) == 0 {
			continue // settled before
		}
		a.DeleteFact(name)
		if item.Named {
			continue
		}
		in, err := a.inode(meta.Ino(inos[0]))
		if errors.Is(err, syscall.ESTALE) {
			continue
		}
		if err != nil {
			return err
		}
		if in.Nlink > 0 {
			if err := a.unnamed(in); err != nil {
				return err
			}
		}
	}
	a.res.Inode = meta.Inode{}
	return nil
}

func (a *applier) forget(c *command.Forget) error {
	for _, p := range c.Placed {
		a.DeleteFact(placedFact(p.Ino, p.Tx))
	}
	for _, tx := range c.Dropped {
		a.DeleteFact(txFact(factDrop, tx))
	}
	for _, tx := range c.Done {
		a.DeleteFact(txFact(factDid, tx))
	}
	return nil
}

// FactReader reads facts of a group: Get gives nil for one that is not there, List those that begin with a prefix.
type FactReader interface {
	Get(name string) ([]byte, error)
	List(prefix string, yield func(name string, value []byte) (bool, error)) error
}

// Unsettled is what operations on two groups have left in one of them.
type Unsettled struct {
	Pending, Dropped map[command.TxID]meta.Ino
	Placed           []command.Placement
	Done             []command.TxID
}

// ReadUnsettled lists the records of a group, at most limit of each kind.
func ReadUnsettled(r FactReader, limit int) (Unsettled, error) {
	u := Unsettled{Pending: map[command.TxID]meta.Ino{}, Dropped: map[command.TxID]meta.Ino{}}
	collect := func(kind string, numbers int, take func(n []uint64, value []byte) bool) error {
		return r.List(kind, func(name string, value []byte) (bool, error) {
			if len(name) != len(kind)+8*numbers {
				return false, fmt.Errorf("%w: fact %q", meta.ErrDecode, name)
			}
			n := make([]uint64, numbers)
			for i := range n {
				n[i] = binary.BigEndian.Uint64([]byte(name[len(kind)+8*i:]))
			}
			return take(n, value), nil
		})
	}
	inos := func(m map[command.TxID]meta.Ino) func([]uint64, []byte) bool {
		return func(n []uint64, value []byte) bool {
			if v := decodeNumbers(value); len(v) == 1 {
				m[command.TxID{Session: n[0], Seq: n[1]}] = meta.Ino(v[0])
			}
			return len(m) < limit
		}
	}
	return u, errors.Join(
		collect(factPend, 2, inos(u.Pending)),
		collect(factDrop, 2, inos(u.Dropped)),
		collect(factPlaced, 3, func(n []uint64, _ []byte) bool {
			u.Placed = append(u.Placed, command.Placement{Ino: meta.Ino(n[0]), Tx: command.TxID{Session: n[1], Seq: n[2]}})
			return len(u.Placed) < limit
		}),
		collect(factDid, 2, func(n []uint64, _ []byte) bool {
			u.Done = append(u.Done, command.TxID{Session: n[0], Seq: n[1]})
			return len(u.Done) < limit
		}))
}

// WasPlaced tells whether the name that a pending file waits for is there, Pending whether a file still waits, and Dropped
// whether a removal is not known to be done.
func WasPlaced(r FactReader, ino meta.Ino, tx command.TxID) (bool, error) {
	return has(r, placedFact(ino, tx))
}

// IsPending tells whether a file still waits to hear of its name.
func IsPending(r FactReader, tx command.TxID) (bool, error) { return has(r, txFact(factPend, tx)) }

// IsDropped tells whether a removal is not known to be done.
func IsDropped(r FactReader, tx command.TxID) (bool, error) { return has(r, txFact(factDrop, tx)) }

func has(r FactReader, name string) (bool, error) {
	b, err := r.Get(name)
	return b != nil, err
}

// Group is a group as group default keeps it.
type Group struct {
	Slot   uint16   `json:"slot"`
	Name   string   `json:"name"`
	Voters []uint64 `json:"voters"` // who made it
}

// ReadGroups lists the groups but default, and the routing table: slots in order, empty for default alone.
func ReadGroups(r FactReader) (groups []Group, route []uint16, err error) {
	err = r.List(factGroup, func(name string, value []byte) (bool, error) {
		var g Group
		if err := json.Unmarshal(value, &g); err != nil {
			return false, fmt.Errorf("%w: fact %q: %w", meta.ErrDecode, name, err)
		}
		groups = append(groups, g)
		return true, nil
	})
	if err != nil {
		return nil, nil, err
	}
	b, err := r.Get(factRoute)
	for _, n := range decodeNumbers(b) {
		route = append(route, uint16(n))
	}
	return groups, route, err
}

func (a *applier) putGroup(c *command.PutGroup) error {
	if c.Name == "" || len(c.Voters) == 0 {
		return syscall.EINVAL
	}
	groups, _, err := ReadGroups(txFacts{a})
	if err != nil {
		return err
	}
	if c.Name == "default" || slices.ContainsFunc(groups, func(g Group) bool { return g.Name == c.Name }) {
		return syscall.EEXIST
	}
	next, err := a.numbers(factNextSlot, 1)
	if err != nil {
		return err
	}
	slot := uint64(1)
	if len(next) > 0 {
		slot = next[0]
	}
	if slot >= maxSlots {
		return syscall.ENOSPC
	}
	a.setNumbers(factNextSlot, []uint64{slot + 1})
	a.res.Bytes = slot
	return a.setFactJSON(numbered(factGroup, slot), Group{Slot: uint16(slot), Name: c.Name, Voters: c.Voters})
}

func (a *applier) dropGroup(c *command.DropGroup) error {
	groups, route, err := ReadGroups(txFacts{a})
	switch {
	case err != nil:
		return err
	case slices.Contains(route, c.Slot):
		return syscall.EBUSY
	case !slices.ContainsFunc(groups, func(g Group) bool { return g.Slot == c.Slot }):
		return syscall.ENOENT
	}
	a.DeleteFact(numbered(factGroup, uint64(c.Slot)))
	return nil
}

func (a *applier) seal() error {
	if a.Slot() == 0 {
		return syscall.EINVAL
	}
	if a.GroupInodes() > 0 {
		return syscall.ENOTEMPTY
	}
	a.setFact(factSealed, isThere)
	return nil
}

func (a *applier) route(c *command.Route) error {
	groups, route, err := ReadGroups(txFacts{a})
	if err != nil {
		return err
	}
	known := func(slot uint16) bool {
		return slot == 0 || slices.ContainsFunc(groups, func(g Group) bool { return g.Slot == slot })
	}
	if !known(c.Slot) || c.Replace && !known(c.Instead) {
		return syscall.ENOENT
	}
	if len(route) == 0 {
		route = []uint16{0}
	}
	if c.Replace {
		for i := range route {
			if route[i] == c.Slot {
				route[i] = c.Instead
			}
		}
	} else if !slices.Contains(route, c.Slot) {
		route = append(route, c.Slot)
	}
	list := make([]uint64, len(route))
	for i := range route {
		list[i] = uint64(route[i])
	}
	a.setNumbers(factRoute, list)
	return nil
}

// txFacts are the facts as a transaction sees them.
type txFacts struct{ a *applier }

func (f txFacts) Get(name string) ([]byte, error) { return f.a.fact(name) }
func (f txFacts) List(prefix string, yield func(string, []byte) (bool, error)) error {
	return f.a.Facts(prefix, yield)
}
