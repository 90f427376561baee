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

// Cluster returns the replicated membership, nil where the store is no member of a cluster.
func (v *Volume) Cluster() cluster.State {
	if v.node == nil {
		return nil
	}
	return state{v.node}
}

// state implements cluster.State.
type state struct{ n *node }

// members lists the nodes as this one knows them.
func (n *node) members() ([]posix.Member, error) {
	return posix.Members(func(prefix string, yield func(string, []byte) (bool, error)) error {
		return n.v.eng.Meta().GroupFacts(0, prefix, yield)
	})
}

func fromMember(m posix.Member) cluster.Node {
	return cluster.Node{ID: m.ID, Name: m.Name, Addr: m.Addr, Joined: time.Unix(m.Joined, 0).UTC()}
}

// Nodes implements cluster.State.
func (s state) Nodes(ctx context.Context) ([]cluster.Node, error) {
	if err := s.n.removed(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.n.timeout)
	defer cancel()
	if err := s.n.v.first().ReadBarrier(ctx); err != nil {
		return nil, err
	}
	members, err := s.n.members()
	nodes := make([]cluster.Node, len(members))
	for i, m := range members {
		nodes[i] = fromMember(m)
	}
	return nodes, err
}

// explain turns the errno of a refused command into the error that it stands for.
func explain(err error, meanings map[syscall.Errno]error, about string) error {
	for errno, meaning := range meanings {
		if errors.Is(err, errno) {
			return fmt.Errorf("%s: %w", about, meaning)
		}
	}
	return err
}

// PutSelf implements cluster.State.
func (s state) PutSelf(ctx context.Context, node cluster.Node) error {
	members, err := s.n.members()
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.ID == node.ID && m.Name == node.Name && m.Addr == node.Addr {
			return nil
		}
	}
	_, err = s.n.v.propose(ctx, &command.PutNode{ID: node.ID, Name: node.Name, Addr: node.Addr})
	return explain(err, map[syscall.Errno]error{
		syscall.EEXIST: cluster.ErrNameTaken, syscall.EADDRINUSE: cluster.ErrAddrTaken, syscall.ENOENT: cluster.ErrUnknownNode,
	}, fmt.Sprintf("node %q at %s", node.Name, node.Addr))
}

// PutInvite implements cluster.State.
func (s state) PutInvite(ctx context.Context, i cluster.Invite) error {
	_, err := s.n.v.propose(ctx, &command.PutInvite{ID: i.ID, Hash: i.SecretHash, Expires: i.Expires.Unix()})
	return err
}

// Join implements cluster.State.
func (s state) Join(ctx context.Context, invite [16]byte, secret [32]byte, now time.Time, node cluster.Node) (cluster.Node, error) {
	c := &command.Join{Invite: invite, Hash: cluster.HashSecret(secret), Now: now.Unix(), Name: node.Name, Addr: node.Addr}
	res, err := s.n.v.propose(ctx, c)
	if err != nil {
		return cluster.Node{}, explain(err, map[syscall.Errno]error{
			posix.ErrInviteUnknown: cluster.ErrInviteUnknown, posix.ErrInviteUsed: cluster.ErrInviteUsed, posix.ErrInviteExpired: cluster.ErrInviteExpired,
			posix.ErrWrongSecret: cluster.ErrWrongSecret, syscall.EEXIST: cluster.ErrNameTaken, syscall.EADDRINUSE: cluster.ErrAddrTaken,
		}, fmt.Sprintf("node %q at %s", node.Name, node.Addr))
	}
	members, err := s.n.members()
	if err != nil {
		return cluster.Node{}, err
	}
	for _, m := range members {
		if m.ID == res.Bytes {
			return fromMember(m), nil
		}
	}
	return cluster.Node{}, fmt.Errorf("node %d was admitted and is gone again: %w", res.Bytes, cluster.ErrUnknownNode)
}

// Need implements cluster.State.
func (s state) Need(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.n.timeout)
	defer cancel()
	if err := s.n.v.first().ReadBarrier(ctx); err != nil {
		return 0, err
	}
	total, free := s.n.v.eng.Usage()
	return need(total-free) * blockSize, nil
}

// need is how many data blocks a node has to have for used ones, so that room does not refuse everything.
func need(used uint64) uint64 {
	return used + min(maxMargin, (used+14)/15) // a sixteenth of the whole
}

// answers tells which nodes have been heard of lately.
func (n *node) answers() map[uint64]bool {
	alive := map[uint64]bool{n.cfg.NodeID: true}
	sessions, err := posix.Sessions(n.v.factReader(0))
	if err != nil {
		n.v.log.WithError(err).Warn("reading the sessions")
		return alive
	}
	n.seenMu.Lock()
	defer n.seenMu.Unlock()
	for _, s := range sessions {
		if seen, ok := n.seen[s.ID]; ok && time.Since(seen.at) < n.lease*5/8 { // two signs of life and a little
			alive[s.Node] = true
		}
	}
	return alive
}

// quorumWithout tells whether the voters but one that answer are a majority of each group; nil if they are.
func (n *node) quorumWithout(id uint64) error {
	up := n.answers()
	for _, g := range n.v.all() {
		var rest, alive []uint64
		for _, v := range g.Status().Voters {
			if v == id {
				continue
			}
			if rest = append(rest, v); up[v] {
				alive = append(alive, v)
			}
		}
		switch {
		case len(rest) == 0:
			return fmt.Errorf("%w: node %d is the only one that has group %s: without it the filesystem is gone", errLast, id, g.Name())
		case len(alive) <= len(rest)/2:
			return fmt.Errorf("%w: without node %d group %s has the voters %d, of which only %d answer: every write would wait until one comes back",
				cluster.ErrQuorum, id, g.Name(), rest, alive)
		}
	}
	return nil
}

// errLast is the cluster.ErrQuorum that no force overcomes.
var errLast = fmt.Errorf("%w at all", cluster.ErrQuorum)

// Remove implements cluster.State.
func (s state) Remove(ctx context.Context, id uint64, force bool) error {
	n := s.n
	err := n.quorumWithout(id)
	for wait := time.Now().Add(n.lease / 2); err != nil && time.Now().Before(wait) && ctx.Err() == nil; {
		time.Sleep(50 * time.Millisecond) // a node that has just started has not heard of all others yet
		err = n.quorumWithout(id)
	}
	if err != nil && (!force || errors.Is(err, errLast)) {
		return err
	}
	if _, err := n.v.propose(ctx, &command.RemoveNode{ID: id}); err != nil {
		return explain(err, map[syscall.Errno]error{syscall.ENOENT: cluster.ErrUnknownNode}, fmt.Sprintf("node %d", id))
	}
	// The groups' leaders do the rest: see keepMembers.
	for {
		left := false
		for _, g := range n.v.all() {
			st := g.Status()
			left = left || slices.Contains(st.Voters, id) || slices.Contains(st.Learners, id)
		}
		if !left || id == n.cfg.NodeID {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %d is removed, but still takes part in elections until a majority has agreed: %w", id, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Groups implements cluster.State.
func (s state) Groups(context.Context) ([]cluster.Group, error) {
	var list []cluster.Group
	for _, g := range s.n.v.all() {
		st := g.Status()
		group := cluster.Group{Name: string(st.Group), Slot: g.slot, Leader: st.Leader, Voters: st.Voters, Learners: st.Learners}
		if progress := g.Progress(); progress != nil {
			for _, id := range slices.Concat(st.Voters, st.Learners) {
				p := progress[id]
				node := cluster.GroupNode{Node: id, Match: p.Match, State: "follower"}
				switch {
				case id == s.n.cfg.NodeID:
					node.State, node.Applied = "leader", st.Applied
				case !p.Active:
					node.State = "unreachable"
				case p.Learner:
					node.State = "learner"
				}
				group.Nodes = append(group.Nodes, node)
			}
		} else {
			group.Nodes = []cluster.GroupNode{{Node: st.NodeID, State: st.State, Match: st.Durable, Applied: st.Applied}}
		}
		list = append(list, group)
	}
	return list, nil
}

// MoveLeader implements cluster.State.
func (s state) MoveLeader(ctx context.Context, group string, id uint64) error {
	for _, g := range s.n.v.all() {
		if string(g.Name()) != group {
			continue
		}
		if !slices.Contains(g.Status().Voters, id) {
			return fmt.Errorf("%w: node %d has no vote in group %s", cluster.ErrUnknownNode, id, group)
		}
		return g.TransferLeader(ctx, id)
	}
	return fmt.Errorf("%w: %q", cluster.ErrUnknownGroup, group)
}

// keepMembers makes the transport know the nodes, and the groups that this node leads have them as members.
func (n *node) keepMembers(stop <-chan struct{}) {
	tick := time.NewTicker(memberEvery)
	defer tick.Stop()
	poke(n.changed)
	led := time.Now() // when group default was last seen to have a leader
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		case <-n.changed:
		}
		members, err := n.members()
		if err != nil {
			n.v.log.WithError(err).Error("the list of nodes cannot be read")
			continue
		}
		for _, m := range members {
			n.transport.SetPeer(m.ID, m.Addr)
		}
		if len(members) == 0 || n.session.Load() == nil {
			continue // nobody has been recorded yet, or this node has not begun
		}
		if n.removed() != nil {
			continue
		}
		if n.v.first().Status().Leader != 0 {
			led = time.Now()
		}
		n.watchMembership(members, time.Since(led))
		ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
		if err := n.openGroups(ctx); err != nil {
			n.v.log.WithError(err).Warn("opening the groups: tried again soon")
		}
		cancel()
		for _, g := range n.v.all() {
			if err := n.reconcile(g, members); err != nil && g.Err() == nil {
				n.v.log.WithError(err).WithField("group", g.Name()).Info("changing the members of a group: tried again soon")
			}
		}
		n.raiseLevel(members)
	}
}

// caughtUp is how many entries a learner may be behind and become a voter.
const caughtUp = 64

// reconcile makes one change, if one is due, of the members of a group that this node leads: a new node is a learner first,
// and a voter when it has what the leader has.
func (n *node) reconcile(g *group, members []posix.Member) error {
	progress := g.Progress()
	if progress == nil {
		return nil // another node leads
	}
	ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
	defer cancel()
	log := n.v.log.WithField("group", g.Name())
	wanted := map[uint64]bool{}
	for _, m := range members {
		wanted[m.ID] = true
		p, ok := progress[m.ID]
		switch {
		case !ok:
			log.WithField("node", m.ID).Info("a new node: it learns first")
			return g.ChangeMembers(ctx, consensus.MemberChange{Node: m.ID, Kind: consensus.Learner})
		case p.Learner && p.Active && p.Match > 0 && p.Match+caughtUp >= g.LastIndex():
			// Who has just been made a member counts as active for a moment, whether or not it was ever heard of. As a voter
			// that does not run it would be needed for the majority and be of no use to it.
			log.WithField("node", m.ID).Info("a new node has caught up: it votes")
			return g.ChangeMembers(ctx, consensus.MemberChange{Node: m.ID, Kind: consensus.Voter})
		}
	}
	for id := range progress {
		if wanted[id] {
			continue
		}
		if id == n.cfg.NodeID {
			for other, p := range progress {
				if other != id && wanted[other] && p.Active && !p.Learner {
					return g.TransferLeader(ctx, other)
				}
			}
			return nil
		}
		log.WithField("node", id).Info("a node was removed: it is a member no more")
		if err := g.ChangeMembers(ctx, consensus.MemberChange{Node: id, Kind: consensus.Removed}); err != nil {
			return err
		}
		n.transport.SetPeer(id, "")
		return nil
	}
	return nil
}
