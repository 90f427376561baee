package replica

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"vdefs/fs/command"
	"vdefs/fs/posix"
)

// Nodes are upgraded one after the other, so for a while programs of two versions apply one log. What the older one does not know must not come up in
// it meanwhile. So every operation belongs to a level (command.Op.Level), the leader of group default asks all nodes which level they know, and
// when all know a higher one it says so in the log; from then on its operations are used. Before, their work is done by older ones.
//
// A program that is too old for the level can join no more: it stops at the first operation that it does not know, and says so.

// levels is what a node knows of the operations that may be used.
type levels struct {
	known  uint64        // by this program; constant
	common atomic.Uint64 // by all nodes, as group default says
	asking atomic.Bool   // the others are being asked
	next   time.Time     // when they are asked again; of keepMembers
}

// askLevel is a question without more to it; answer: level8.
const askLevel = 'v'

// askLevelEvery is how often nodes are asked while some do not know what this one does.
const askLevelEvery = time.Second

// mayUse tells whether an operation may be proposed: all nodes know it.
func (v *Volume) mayUse(op command.Op) bool {
	return v.node == nil || op.Level() <= v.node.levels.common.Load()
}

// readLevel takes over what group default says as this node has it.
func (n *node) readLevel() {
	level, err := posix.ReadLevel(facts{n.v, 0})
	if err != nil {
		n.v.log.WithError(err).Error("the level of operations that all nodes know cannot be read")
		return // older operations do
	}
	n.levels.common.Store(max(level, n.levels.common.Load()))
}

// raiseAlone lets a cluster of one use all that its node knows, from its first moment on.
func (n *node) raiseAlone(ctx context.Context) error {
	members, err := n.members()
	if err != nil || len(members) > 1 || n.levels.common.Load() >= n.levels.known {
		return err
	}
	_, err = n.v.propose(ctx, &command.SetLevel{Level: n.levels.known})
	return err
}

// raiseLevel has the nodes asked, if this one leads group default and knows more than all are known to.
func (n *node) raiseLevel(members []posix.Member) {
	l := &n.levels
	if l.common.Load() >= l.known || !n.v.first().Leads() || time.Now().Before(l.next) || !l.asking.CompareAndSwap(false, true) {
		return
	}
	l.next = time.Now().Add(askLevelEvery)
	n.begin(func() {
		defer l.asking.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
		defer cancel()
		level := l.known
		for _, m := range members {
			if m.ID == n.cfg.NodeID {
				continue
			}
			answer, err := n.transport.Call(ctx, m.ID, []byte{askLevel})
			if err != nil || len(answer) != 8 {
				return // it is not there, or knows no such question
			}
			level = min(level, binary.LittleEndian.Uint64(answer))
		}
		if level <= l.common.Load() {
			return
		}
		if _, err := n.v.propose(ctx, &command.SetLevel{Level: level}); err != nil {
			n.v.log.WithError(err).Debug("raising the level of operations: tried again soon")
			return
		}
		n.v.log.WithField("level", level).Info("all nodes know the operations of a newer level: they are used from now on")
	})
}
