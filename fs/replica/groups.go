package replica

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"vdefs/consensus"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// group is a Raft group on this node, and the slot of inode numbers that is its.
type group struct {
	*consensus.Group
	slot     uint16
	promised atomic.Uint64 // index that a Sync has made durable, with all that its records refer to
	begun    atomic.Uint64 // the session that this mount has begun in it
}

// promise notes that everything up to index was promised to be durable.
func (g *group) promise(index uint64) {
	for {
		p := g.promised.Load()
		if p >= index || g.promised.CompareAndSwap(p, index) {
			return
		}
	}
}

// bySlot returns the groups by slot, nil where there is none; none while the volume is being opened.
func (v *Volume) bySlot() []*group {
	if g := v.groups.Load(); g != nil {
		return *g
	}
	return nil
}

// all returns the groups.
func (v *Volume) all() []*group {
	var list []*group
	for _, g := range v.bySlot() {
		if g != nil {
			list = append(list, g)
		}
	}
	return list
}

// inSlot returns the group of a slot, nil if there is none.
func (v *Volume) inSlot(slot uint16) *group {
	if g := v.bySlot(); int(slot) < len(g) {
		return g[slot]
	}
	return nil
}

// first returns group default.
func (v *Volume) first() *group { return v.bySlot()[0] }

// group returns the group that holds an inode.
func (v *Volume) group(ino meta.Ino) (*group, error) {
	if g := v.inSlot(ino.Group()); g != nil {
		return g, nil
	}
	return nil, syscall.ESTALE
}

// openGroup opens a group, or makes it with create when it has never had an entry here.
func (v *Volume) openGroup(name consensus.GroupID, slot uint16, create func(consensus.GroupID, consensus.StateMachine) (*consensus.Group, error)) error {
	v.groupMu.Lock()
	defer v.groupMu.Unlock()
	if v.inSlot(slot) != nil {
		return nil
	}
	v.slots.Store(name, slot)
	m := &machine{v: v, eng: v.eng, slot: slot, replaying: true}
	raft, err := v.mgr.OpenGroup(name, m)
	if errors.Is(err, consensus.ErrGroupNotFound) {
		dir := filepath.Join(v.dir, "raft")
		if applied := m.AppliedIndex(); applied > 0 {
			return fmt.Errorf("%w: the log of group %s is missing from %s, the metadata has applied %d of its entries", vde.ErrDamaged, name, dir, applied)
		}
		// Before the first checkpoint the metadata knows of nothing, but who has applied an entry has said that the store is in use.
		if slot == 0 && v.eng.InUse() {
			return fmt.Errorf("%w: the log of group %s is missing from %s, though the store was in use: what was in it is nowhere else", vde.ErrDamaged, name, dir)
		}
		raft, err = create(name, m)
	}
	if err != nil {
		return err
	}
	groups := append([]*group(nil), v.bySlot()...)
	for len(groups) <= int(slot) {
		groups = append(groups, nil)
	}
	groups[slot] = &group{Group: raft, slot: slot}
	v.groups.Store(&groups)
	v.eng.LogDurable(slot, raft.DurableIndex())
	return nil
}

// openFormerGroups opens the groups, beside default, of a store that was a member of a cluster and stands alone now.
func (v *Volume) openFormerGroups() error {
	groups, _, err := posix.ReadGroups(facts{v, 0})
	if err != nil {
		return err
	}
	for _, g := range groups {
		err := v.openGroup(consensus.GroupID(g.Name), g.Slot, func(name consensus.GroupID, _ consensus.StateMachine) (*consensus.Group, error) {
			return nil, fmt.Errorf("%w: %s", consensus.ErrGroupNotFound, name)
		})
		if err != nil {
			return fmt.Errorf("group %s: %w", g.Name, err)
		}
	}
	return nil
}

// makeDefault makes group default, or waits to be taken into that of the cluster.
func (v *Volume) makeDefault(name consensus.GroupID, m consensus.StateMachine) (*consensus.Group, error) {
	if v.node != nil && !v.node.cfg.Founder {
		return v.mgr.JoinGroup(name, m)
	}
	return v.mgr.CreateGroup(name, m)
}

// slotOf tells which group a command is for: that of its inode, or of the directory whose entries it changes.
func slotOf(c command.Command) uint16 {
	var ino meta.Ino
	switch c := c.(type) {
	case *command.SetAttr:
		ino = c.Ino
	case *command.Make:
		ino = c.Parent
	case *command.Link:
		ino = c.Parent
	case *command.Remove:
		ino = c.Parent
	case *command.Rename:
		ino = c.OldParent
	case *command.Write:
		ino = c.Ino
	case *command.Fill:
		ino = c.Ino
	case *command.WriteRef:
		ino = c.Ino
	case *command.Fallocate:
		ino = c.Ino
	case *command.Share:
		ino = c.Dst
	case *command.SetXattr:
		ino = c.Ino
	case *command.RemoveXattr:
		ino = c.Ino
	case *command.Reap:
		ino = c.Inos[0]
	case *command.Atimes:
		ino = c.Times[0].Ino
	case *command.Replace:
		ino = c.Ino
	case *command.Release:
		ino = c.Inos[0]
	case *command.Lock:
		ino = c.Ino
	case *command.Freeze:
		ino = c.Ino
	case *command.FreezeVote:
		ino = c.Ino
	case *command.Unfreeze:
		ino = c.Ino
	case *command.Name:
		ino = c.Parent
	case *command.Unname:
		ino = c.Ino
	case *command.LinkApart:
		ino = c.Ino
	}
	return ino.Group() // of the others: default
}
