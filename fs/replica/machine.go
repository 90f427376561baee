package replica

import (
	"errors"
	"fmt"
	"syscall"

	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// machine is the state machine of one group on this node.
type machine struct {
	eng       *vde.Engine
	slot      uint16
	replaying bool // the group is being opened: what it applies is durable. Guarded by the group's order
	// promised is, while replaying, the highest index that the log says was promised to be durable.
	promised uint64
}

// proposal is what the proposer on this node hands to Apply beside the bytes: the same command, decoded.
type proposal struct {
	cmd  command.Command
	time meta.Time
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
		c, t, err := command.Decode(cmd)
		if err != nil {
			return nil, err
		}
		p = &proposal{cmd: c, time: t}
	}
	if m.replaying {
		m.eng.LogDurable(m.slot, index)
	}
	tx, err := m.eng.Begin(m.slot, index, term)
	if err != nil {
		return nil, err
	}
	var replay *posix.Replay
	if m.replaying {
		replay = &posix.Replay{Promised: index <= m.promised}
	}
	res, err := posix.Apply(tx, p.cmd, p.time, replay)
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
		return outcome{err: err}, nil
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	if p.open != nil {
		p.open.add(res.Inode.Ino)
	}
	if mine {
		return outcome{res: res, tx: tx}, nil
	}
	return outcome{res: res}, tx.Rest()
}

// PrepareReplay implements consensus.ReplayPreparer: blocks that records refer to must not be given out to the records
// before them.
func (m *machine) PrepareReplay(index uint64, cmd []byte) error {
	if len(cmd) == 0 || command.Op(cmd[0]) != command.OpWriteRef {
		return nil
	}
	c, _, err := command.Decode(cmd)
	if err != nil {
		return err
	}
	ref := c.(*command.WriteRef)
	m.promised = max(m.promised, ref.Durable)
	return m.eng.ReserveReplay(ref.Extents)
}

// AppliedIndex implements consensus.StateMachine.
func (m *machine) AppliedIndex() uint64 {
	g, _ := m.eng.Group(m.slot)
	return g.Applied
}
