package posix

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"syscall"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// Facts of group default about the cluster's nodes:
//
//	node id8      Member as JSON
//	invite id16   invitation as JSON
//	next-node     id8             the id that the next node gets
//	level         level8          the operations that all nodes know
const (
	factNode     = "node"
	factInvite   = "invite"
	factNextNode = "next-node"
	factLevel    = "level"
)

// Member is a node as the cluster keeps it.
type Member struct {
	ID     uint64 `json:"id"`
	Name   string `json:"name"`
	Addr   string `json:"addr"`
	Joined int64  `json:"joined"` // seconds of Unix time
}

type invitation struct {
	Hash    []byte `json:"hash"`
	Expires int64  `json:"expires"`
	Used    bool   `json:"used"`
}

// Refusals of Join, beside EEXIST (name) and EADDRINUSE (address).
const (
	ErrInviteUnknown = syscall.ENOENT
	ErrInviteUsed    = syscall.EALREADY
	ErrInviteExpired = syscall.ETIME
	ErrWrongSecret   = syscall.EACCES
)

// Members lists the nodes; list gives the facts that begin with a prefix.
func Members(list func(prefix string, yield func(name string, value []byte) (bool, error)) error) (members []Member, err error) {
	err = list(factNode, func(name string, value []byte) (bool, error) {
		var m Member
		if err := json.Unmarshal(value, &m); err != nil {
			return false, fmt.Errorf("%w: fact %q: %w", meta.ErrDecode, name, err)
		}
		members = append(members, m)
		return true, nil
	})
	return members, err
}

func (a *applier) setFactJSON(name string, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("fact %q: %w", name, err)
	}
	a.setFact(name, b)
	return nil
}

// vacantMember refuses a name or an address that another node has.
func (a *applier) vacantMember(id uint64, name, addr string) (known bool, err error) {
	members, err := Members(a.Facts)
	if err != nil {
		return false, err
	}
	for _, m := range members {
		switch {
		case m.ID == id:
			known = true
		case m.Name == name:
			return known, syscall.EEXIST
		case m.Addr == addr:
			return known, syscall.EADDRINUSE
		}
	}
	return known, nil
}

// NodeGiven tells whether some node was admitted under an id, be it a member still or not.
func NodeGiven(r FactReader, id uint64) (bool, error) {
	b, err := r.Get(factNextNode)
	next := decodeNumbers(b)
	return err == nil && len(next) == 1 && 0 < id && id < next[0], err
}

func (a *applier) nextNode() (uint64, error) {
	next, err := a.numbers(factNextNode, 1)
	if err != nil || len(next) == 0 {
		return 1, err
	}
	return next[0], nil
}

func (a *applier) putNode(c *command.PutNode) error {
	known, err := a.vacantMember(c.ID, c.Name, c.Addr)
	if err != nil {
		return err
	}
	next, err := a.nextNode()
	if err != nil {
		return err
	}
	joined := a.now.Sec
	if known {
		b, err := a.fact(numbered(factNode, c.ID))
		if err != nil {
			return err
		}
		var old Member
		if err := json.Unmarshal(b, &old); err == nil {
			joined = old.Joined
		}
	} else if c.ID < next {
		return syscall.ENOENT // it was removed
	}
	if c.ID >= next {
		a.setNumbers(factNextNode, []uint64{c.ID + 1})
	}
	return a.setFactJSON(numbered(factNode, c.ID), Member{c.ID, c.Name, c.Addr, joined})
}

func (a *applier) setLevel(c *command.SetLevel) error {
	now, err := a.numbers(factLevel, 1)
	if err != nil {
		return err
	}
	if len(now) == 0 || now[0] < c.Level {
		a.setNumbers(factLevel, []uint64{c.Level})
	}
	return nil
}

// ReadLevel tells up to which level all nodes know the operations.
func ReadLevel(r FactReader) (uint64, error) {
	b, err := r.Get(factLevel)
	if n := decodeNumbers(b); len(n) == 1 {
		return n[0], err
	}
	return 0, err
}

func (a *applier) putInvite(c *command.PutInvite) error {
	// Those that have expired go.
	var old []string
	err := a.Facts(factInvite, func(name string, value []byte) (bool, error) {
		var i invitation
		if json.Unmarshal(value, &i) != nil || i.Expires < a.now.Sec {
			old = append(old, name)
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, name := range old {
		a.DeleteFact(name)
	}
	return a.setFactJSON(factInvite+string(c.ID[:]), invitation{Hash: c.Hash[:], Expires: c.Expires})
}

func (a *applier) join(c *command.Join) error {
	name := factInvite + string(c.Invite[:])
	b, err := a.fact(name)
	if err != nil {
		return err
	}
	var i invitation
	switch {
	case b == nil:
		return ErrInviteUnknown
	case json.Unmarshal(b, &i) != nil:
		return fmt.Errorf("%w: an invitation", meta.ErrDecode)
	case subtle.ConstantTimeCompare(i.Hash, c.Hash[:]) != 1:
		return ErrWrongSecret
	case i.Used:
		return ErrInviteUsed
	case c.Now >= i.Expires:
		return ErrInviteExpired
	}
	if _, err := a.vacantMember(0, c.Name, c.Addr); err != nil {
		return err
	}
	id, err := a.nextNode()
	if err != nil {
		return err
	}
	a.setNumbers(factNextNode, []uint64{id + 1})
	i.Used = true
	if err := a.setFactJSON(name, i); err != nil {
		return err
	}
	a.res.Bytes = id
	return a.setFactJSON(numbered(factNode, id), Member{id, c.Name, c.Addr, a.now.Sec})
}

func (a *applier) removeNode(c *command.RemoveNode) error {
	name := numbered(factNode, c.ID)
	b, err := a.fact(name)
	if err != nil {
		return err
	}
	if b == nil {
		return syscall.ENOENT
	}
	a.DeleteFact(name)
	sessions, err := a.numbers(factSessions, 2)
	if err != nil {
		return err
	}
	for i := 0; i < len(sessions); i += 2 {
		if sessions[i+1] == c.ID {
			if err := a.endSession(sessions[i]); err != nil {
				return err
			}
		}
	}
	return nil
}
