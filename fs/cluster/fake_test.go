package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// fakeState is the membership of one process: what the replicated one does in one step, it does under one lock.
type fakeState struct {
	mu      sync.Mutex
	nodes   []Node
	last    uint64
	invites map[[16]byte]Invite
	used    map[[16]byte]bool
	stuck   bool // no majority: nothing is answered
	need    uint64
}

var _ State = (*fakeState)(nil)

func newFakeState(first Node) *fakeState {
	return &fakeState{nodes: []Node{first}, last: first.ID, invites: map[[16]byte]Invite{}, used: map[[16]byte]bool{}}
}

func (s *fakeState) wait(ctx context.Context) error {
	s.mu.Lock()
	stuck := s.stuck
	s.mu.Unlock()
	if stuck {
		<-ctx.Done()
		return fmt.Errorf("the group does not answer: %w", ctx.Err())
	}
	return ctx.Err()
}

func (s *fakeState) Nodes(ctx context.Context) ([]Node, error) {
	if err := s.wait(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes), nil
}

// clash says what of a node another one has.
func (s *fakeState) clash(n Node) error {
	for _, other := range s.nodes {
		switch {
		case other.ID == n.ID:
		case other.Name == n.Name:
			return ErrNameTaken
		case other.Addr == n.Addr:
			return ErrAddrTaken
		}
	}
	return nil
}

func (s *fakeState) PutSelf(ctx context.Context, n Node) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.clash(n); err != nil {
		return err
	}
	for i := range s.nodes {
		if s.nodes[i].ID == n.ID {
			s.nodes[i].Name, s.nodes[i].Addr = n.Name, n.Addr
			return nil
		}
	}
	return ErrUnknownNode
}

func (s *fakeState) PutInvite(ctx context.Context, i Invite) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.invites[i.ID] = i
	return nil
}

func (s *fakeState) Join(ctx context.Context, invite [16]byte, secret [32]byte, now time.Time, n Node) (Node, error) {
	if err := s.wait(ctx); err != nil {
		return Node{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[invite] {
		return Node{}, ErrInviteUsed
	}
	i, known := s.invites[invite]
	if !known {
		return Node{}, ErrInviteUnknown
	}
	if err := i.Admits(HashSecret(secret), now); err != nil {
		return Node{}, err
	}
	n.ID = s.last + 1
	if err := s.clash(n); err != nil {
		return Node{}, err
	}
	s.last = n.ID
	delete(s.invites, invite)
	s.used[invite] = true
	s.nodes = append(s.nodes, n)
	return n, nil
}

func (s *fakeState) Remove(ctx context.Context, id uint64, _ bool) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.nodes)
	s.nodes = slices.DeleteFunc(s.nodes, func(n Node) bool { return n.ID == id })
	if len(s.nodes) == before {
		return ErrUnknownNode
	}
	return nil
}

func (s *fakeState) Need(ctx context.Context) (uint64, error)         { return s.need, s.wait(ctx) }
func (s *fakeState) Groups(context.Context) ([]Group, error)          { return nil, nil }
func (s *fakeState) AddGroup(context.Context, string) error           { return nil }
func (s *fakeState) RemoveGroup(context.Context, string) error        { return nil }
func (s *fakeState) MoveLeader(context.Context, string, uint64) error { return nil }
