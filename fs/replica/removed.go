package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"vdefs/fs/cluster"
	"vdefs/fs/posix"
)

// A node that was removed is told nothing any more: the groups have let it go, perhaps while it did not run. Without asking it could not tell that from a
// cluster that has no majority. So while it waits for the cluster at its start, and later when it has heard of no leader for a while, it asks every node that it knows
// whether it is a member. The answer "no longer" is final wherever it comes from, also from a node that is behind: no id is given twice. A node that has
// learnt it refuses everything at once, with EIO.

// The answers to askMember.
const (
	memberYes     = 1
	memberRemoved = 2
	memberUnknown = 3 // the asked node has not heard of it yet
)

const (
	askMemberEvery   = time.Second
	askMemberTimeout = 2 * time.Second
	leaderless       = 3 * time.Second // after which a node that runs asks
)

// answerMember tells a node whether it is a member, as far as this one knows.
func (n *node) answerMember(id uint64) ([]byte, error) {
	members, err := n.members()
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if m.ID == id {
			return []byte{memberYes}, nil
		}
	}
	given, err := posix.NodeGiven(facts{n.v, 0}, id)
	if err != nil {
		return nil, err
	}
	if given {
		return []byte{memberRemoved}, nil
	}
	return []byte{memberUnknown}, nil
}

// askWhetherRemoved asks the nodes that this one knows, once, and tells removed if one says that it was.
func (n *node) askWhetherRemoved(ctx context.Context, removed func(by uint64)) {
	var asked sync.WaitGroup
	for _, id := range n.peers() {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askMemberTimeout)
			defer cancel()
			answer, err := n.transport.Call(ctx, id, []byte{askMember})
			// Who does not answer, or knows no such question, says nothing.
			if err == nil && len(answer) == 1 && answer[0] == memberRemoved {
				removed(id)
			}
		})
	}
	asked.Wait()
}

// keepAsking asks until ctx ends.
func (n *node) keepAsking(ctx context.Context, removed func(by uint64)) {
	for {
		n.askWhetherRemoved(ctx, removed)
		select {
		case <-ctx.Done():
			return
		case <-time.After(askMemberEvery):
		}
	}
}

// watchMembership finds out whether this node, which runs, was removed: its own copy of the membership tells, or, when there was no leader for so long, another node.
func (n *node) watchMembership(members []posix.Member, noLeader time.Duration) {
	if !slices.ContainsFunc(members, func(m posix.Member) bool { return m.ID == n.cfg.NodeID }) {
		if given, err := posix.NodeGiven(facts{n.v, 0}, n.cfg.NodeID); err == nil && given {
			n.setRemoved(n.cfg.NodeID)
		}
		return
	}
	if noLeader < leaderless || !n.asking.CompareAndSwap(false, true) {
		return
	}
	n.begin(func() {
		defer n.asking.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), askMemberTimeout)
		defer cancel()
		n.askWhetherRemoved(ctx, n.setRemoved)
		<-ctx.Done() // not more often
	})
}

// setRemoved notes that this node was removed.
func (n *node) setRemoved(by uint64) {
	err := n.errRemoved(by)
	if n.gone.CompareAndSwap(nil, &err) {
		n.v.log.WithError(err).Error("everything is refused from now on")
	}
}

// removed is an error for everything that is asked of a node that was removed.
func (n *node) removed() error {
	if err := n.gone.Load(); err != nil {
		return errors.Join(syscall.EIO, *err)
	}
	return nil
}

// peers are the other nodes that this one knows: those of when it joined, and what its copy of the membership has.
func (n *node) peers() []uint64 {
	known := map[uint64]bool{n.cfg.NodeID: true}
	var ids []uint64
	add := func(id uint64) {
		if !known[id] {
			known[id] = true
			ids = append(ids, id)
		}
	}
	for _, p := range n.cfg.Peers {
		add(p.ID)
	}
	if members, err := n.members(); err == nil {
		for _, m := range members {
			add(m.ID)
		}
	}
	return ids
}

// errRemoved says that a node was removed, and who says so.
func (n *node) errRemoved(by uint64) error {
	if by == n.cfg.NodeID {
		return fmt.Errorf("%w: what its store has is kept, but no part of the cluster any more; to take part again, make a new store with `vde join`", cluster.ErrRemoved)
	}
	return fmt.Errorf("%w, as node %d says: what its store has is kept, but no part of the cluster any more; to take part again, make a new store with `vde join`", cluster.ErrRemoved, by)
}
