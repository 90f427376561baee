package replica

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/consensus"
	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
)

// Survivor is a store that goes on without the rest of its cluster.
type Survivor struct {
	Node   uint64              `json:"node"`
	Groups []consensus.Remains `json:"groups"`
	Lost   []posix.Member      `json:"lost"` // the nodes that are no members any more
}

// LookAlone tells what GoOnAlone would go on with. It changes nothing, and does not know who is Lost.
func LookAlone(dir string) (Survivor, error) {
	info, err := vde.ReadInfo(nil, dir)
	if err != nil {
		return Survivor{}, err
	}
	groups, err := consensus.LookAlone(vfs.Default, vfs.Default.PathJoin(dir, "raft"), info.NodeID)
	if err != nil {
		return Survivor{}, fmt.Errorf("store %s: %w", dir, err)
	}
	return Survivor{Node: info.NodeID, Groups: groups}, nil
}

// GoOnAlone makes the store of a node whose cluster has lost its majority for good one that stands alone, with all that it has: see
// consensus.ForceAlone. What only the others had is lost. The other nodes must never run again with this one, so its cluster gets
// another identity. It can be done again after a crash.
func GoOnAlone(dir string, o Options) (Survivor, error) {
	o.Cluster, o.alone = nil, &Survivor{}
	v, err := Open(dir, o)
	if err != nil {
		return Survivor{}, err
	}
	s := *o.alone
	ctx := context.Background()
	err = func() error {
		members, err := posix.Members(facts{v, 0}.List)
		if err != nil {
			return err
		}
		for _, m := range members {
			if m.ID == s.Node {
				continue
			}
			if _, err := v.propose(ctx, &command.RemoveNode{ID: m.ID}); err != nil {
				return fmt.Errorf("node %d: %w", m.ID, err)
			}
			s.Lost = append(s.Lost, m)
		}
		// Nobody has anything open or locked.
		sessions, err := posix.Sessions(v.factReader(0))
		if err != nil {
			return err
		}
		for _, session := range sessions {
			if _, err := v.propose(ctx, &command.EndSession{Session: session.ID}); err != nil {
				return fmt.Errorf("session of node %d: %w", session.Node, err)
			}
		}
		return nil
	}()
	if err := errors.Join(err, v.Close()); err != nil {
		return s, fmt.Errorf("store %s: %w", dir, err)
	}
	return s, nil
}

// Rehearse applies all that the logs of a store hold, whether it was committed or not, as far as this node has it: what the store of a node of a
// cluster is judged by. o.FS must keep all changes to itself: it is a copy, which no node may ever run with.
func Rehearse(dir string, o Options) error {
	o.Cluster, o.alone, o.pretend = nil, &Survivor{}, true
	v, err := Open(dir, o)
	if err != nil {
		return err
	}
	return v.Close()
}
