package replica

import (
	"errors"
	"fmt"
	"syscall"

	"vdefs/consensus"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// machine is the state machine of one group on this node.
type machine struct {
	v         *Volume
	eng       *vde.Engine
	slot      uint16
	replaying bool // the group is being opened: what it applies is durable. Guarded by the group's order
	// promised is, while replaying, the highest index that the log says was promised to be durable.
	promised uint64
}

var (
	_ consensus.StateMachine   = (*machine)(nil)
	_ consensus.ReplayPreparer = (*machine)(nil)
	_ consensus.Consolidator   = (*machine)(nil)
)

// proposal is what the proposer on this node hands to Apply beside the bytes: the same command, decoded.
type proposal struct {
	cmd  command.Command
	time meta.Time
	tag  command.Tag
	// open, if set, counts the inode that the command makes, before any later command can take its name away and the
	// reaper finds it unused.
	open *opens
}

// outcome is what Apply hands back: the command's result, or the errno that refused it, and the transaction whose Rest
// the proposer runs outside of the group's order.
type outcome struct {
	res posix.Result
	err error
	tx  *vde.Tx
}

// Apply implements consensus.StateMachine.
func (m *machine) Apply(index, term uint64, cmd []byte, local any) (any, error) {
	p, mine := local.(*proposal)
	if !mine {
		c, t, tag, err := command.Decode(cmd)
		if err != nil {
			return nil, err
		}
		p = &proposal{cmd: c, time: t, tag: tag}
	}
	if n := m.v.node; n != nil && p.cmd.Op().Level() > n.levels.known {
		return nil, fmt.Errorf("%w: operation %d is unknown: written by a newer program?", command.ErrDecode, p.cmd.Op())
	}
	if m.replaying {
		m.eng.LogDurable(m.slot, index)
	}
	shared := m.v.node != nil && !m.replaying
	if shared && !mine {
		// The proposer has made sure of its own room only.
		if n := blocksFor(p.cmd); n > 0 && m.eng.Reserve(n) == nil {
			defer m.eng.Unreserve(n)
		}
	}
	tx, err := m.eng.Begin(m.slot, index, term)
	if err != nil {
		return nil, err
	}
	var replay *posix.Replay
	if m.replaying {
		replay = &posix.Replay{Promised: index <= m.promised}
	}
	res, err := posix.Apply(tx, p.cmd, p.time, p.tag, replay)
	if err != nil {
		if c, ok := p.cmd.(*command.WriteRef); ok && !mine {
			m.eng.Unprepare(c.Extents) // reserved before the replay, and mapped by nobody
		}
		if derr := tx.Discard(); derr != nil {
			return nil, derr
		}
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			return nil, fmt.Errorf("%T: %w", p.cmd, err)
		}
		if shared && m.v.replicated(m.slot) && (errors.Is(err, vde.ErrNoSpace) || errors.Is(err, vde.ErrBadBlock) || errors.Is(err, meta.ErrDecode)) {
			// The other replicas have done it: this one must not go on without.
			return nil, fmt.Errorf("this replica cannot follow the others: %T: %w", p.cmd, err)
		}
		return outcome{err: err}, nil
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	if p.open != nil && res.Err == nil && res.Inode.Ino != 0 {
		p.open.add(res.Inode.Ino)
	}
	if m.v.node != nil {
		m.v.node.applied(m.slot, p, &res, mine)
	}
	if mine {
		return outcome{res: res, err: res.Err, tx: tx}, nil
	}
	return outcome{res: res, err: res.Err}, tx.Rest()
}

// blocksFor tells how many blocks applying a command may take, at most.
func blocksFor(c command.Command) uint64 {
	switch c := c.(type) {
	case *command.Write:
		return vde.BlocksFor(c.Off, uint64(len(c.Data))) + 1
	case *command.Fill:
		return vde.BlocksFor(c.Off, uint64(len(c.Data))) + 1
	case *command.Fallocate:
		return vde.BlocksFor(c.Off, min(c.Length, vde.MaxFileSize)) + 2
	case *command.Replace:
		return vde.BlocksFor(0, uint64(len(c.Data)))
	case *command.SetAttr:
		if c.Set&command.SetSize != 0 {
			return 1
		}
	}
	return 0
}

// PrepareReplay implements consensus.ReplayPreparer: blocks that records refer to must not be given out to the records
// before them.
func (m *machine) PrepareReplay(index uint64, cmd []byte) error {
	if len(cmd) == 0 || command.Op(cmd[0]) != command.OpWriteRef {
		return nil
	}
	c, _, _, err := command.Decode(cmd)
	if err != nil {
		return err
	}
	ref := c.(*command.WriteRef)
	m.promised = max(m.promised, ref.Durable)
	return m.eng.ReserveReplay(ref.Extents)
}

// ReplayDone implements consensus.ReplayPreparer.
func (m *machine) ReplayDone() { m.replaying = false }

// Consolidate implements consensus.Consolidator: records that refer to blocks of this node's image are not for others.
func (m *machine) Consolidate() error { return m.eng.Checkpoint() }

// AppliedIndex implements consensus.StateMachine.
func (m *machine) AppliedIndex() uint64 {
	g, _ := m.eng.Group(m.slot)
	return g.Applied
}
