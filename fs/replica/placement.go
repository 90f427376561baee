package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"vdefs/consensus"
	"vdefs/fs/cluster"
	"vdefs/fs/command"
	"vdefs/fs/posix"
)

// openGroups makes the groups and the routing table of this node what group default says.
func (n *node) openGroups(ctx context.Context) error {
	v := n.v
	groups, route, err := posix.ReadGroups(facts{v, 0})
	if err != nil {
		return err
	}
	names := map[uint16]consensus.GroupID{0: consensus.DefaultGroup}
	for _, g := range groups {
		name := consensus.GroupID(g.Name)
		if err := name.Validate(); err != nil {
			return err
		}
		names[g.Slot] = name
		if v.inSlot(g.Slot) != nil {
			continue
		}
		if !slices.Contains(v.eng.Groups(), g.Slot) {
			if err := v.eng.CreateGroup(g.Slot); err != nil {
				return err
			}
		}
		err := v.openGroup(name, g.Slot, func(name consensus.GroupID, m consensus.StateMachine) (*consensus.Group, error) {
			if slices.Contains(g.Voters, n.cfg.NodeID) {
				return v.mgr.CreateReplicatedGroup(name, m, g.Voters...)
			}
			return v.mgr.JoinGroup(name, m)
		})
		if err != nil {
			return fmt.Errorf("group %s: %w", name, err)
		}
		v.log.WithField("group", string(name)).Info("a group is open")
	}
	for _, g := range v.all() {
		if _, ok := names[g.slot]; !ok {
			if err := v.removeGroup(g); err != nil {
				return err
			}
		}
	}
	slots := []consensus.GroupID{consensus.DefaultGroup}
	if len(route) > 0 {
		slots = slots[:0]
		for _, slot := range route {
			slots = append(slots, names[slot])
		}
	}
	table, err := consensus.NewRoutingTable(slots...)
	if err != nil {
		return fmt.Errorf("the routing table: %w", err)
	}
	v.mgr.SetRoutes(table)
	return nil
}

// removeGroup closes a group that is no more and deletes what this node has of it.
func (v *Volume) removeGroup(g *group) error {
	v.groupMu.Lock()
	defer v.groupMu.Unlock()
	groups := append([]*group(nil), v.bySlot()...)
	groups[g.slot] = nil
	v.groups.Store(&groups)
	v.slots.Delete(g.Name())
	if err := v.mgr.RemoveGroup(g.Name()); err != nil {
		return fmt.Errorf("group %s: %w", g.Name(), err)
	}
	if err := v.eng.RemoveGroup(g.slot); err != nil {
		return fmt.Errorf("group %s: %w", g.Name(), err)
	}
	v.log.WithField("group", string(g.Name())).Info("a group is gone")
	return nil
}

// groupNamed returns an open group.
func (v *Volume) groupNamed(name string) (*group, error) {
	for _, g := range v.all() {
		if string(g.Name()) == name {
			return g, nil
		}
	}
	return nil, fmt.Errorf("%w: %q", cluster.ErrUnknownGroup, name)
}

// AddGroup implements cluster.State.
func (s state) AddGroup(ctx context.Context, name string) error {
	if err := consensus.GroupID(name).Validate(); err != nil {
		return err
	}
	n := s.n
	voters := n.v.first().Status().Voters
	res, err := n.v.propose(ctx, &command.PutGroup{Name: name, Voters: voters})
	if errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("%w: %q", cluster.ErrGroupExists, name)
	}
	if err != nil {
		return err
	}
	slot := uint16(res.Bytes)
	// Nothing is placed there before it works.
	for {
		if g := n.v.inSlot(slot); g != nil {
			try, cancel := context.WithTimeout(ctx, tryTimeout)
			err = g.ReadBarrier(try)
			cancel()
			if err == nil {
				break
			}
		}
		poke(n.changed)
		select {
		case <-ctx.Done():
			return fmt.Errorf("group %s is made, but its nodes do not agree on a leader: %w", name, errors.Join(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
	_, err = n.v.propose(ctx, &command.Route{Slot: slot})
	poke(n.changed)
	return err
}

// RemoveGroup implements cluster.State.
func (s state) RemoveGroup(ctx context.Context, name string) error {
	if name == string(consensus.DefaultGroup) {
		return fmt.Errorf("%w: group default holds all names", cluster.ErrGroupInUse)
	}
	v := s.n.v
	g, err := v.groupNamed(name)
	if err != nil {
		return err
	}
	// From now on nothing new goes there.
	if _, err := v.propose(ctx, &command.Route{Slot: g.slot, Replace: true}); err != nil {
		return err
	}
	poke(s.n.changed)
	switch _, _, err := v.proposeTx(ctx, g.slot, &command.Seal{}, nil); {
	case errors.Is(err, syscall.ENOTEMPTY):
		state, _ := v.eng.Group(g.slot)
		return fmt.Errorf("%w: group %s still holds %d files: nothing new is placed there; remove or copy them, and try again", cluster.ErrGroupInUse, name, state.Inodes)
	case err != nil:
		return err
	}
	_, err = v.propose(ctx, &command.DropGroup{Slot: g.slot})
	poke(s.n.changed)
	return err
}
