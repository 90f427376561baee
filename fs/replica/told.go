package replica

import (
	"context"
	"errors"
	"sync"
	"time"

	"vdefs/consensus/transport"
	"vdefs/fs"
	"vdefs/fs/posix"
	"vdefs/vde/meta"
)

// The kernel of every mount keeps, for a second at most, what the names of directories name and their attributes: else each part of a path
// would be a request. So who renames or removes a directory, or changes who may use it, returns when the kernels of all mounts have been
// told, and no path that is walked after that leads to where it was. A mount that does not answer is waited for as long as its kernel may
// hold what it last was told, and not again before it is heard of.

// askTold asks a node to answer when its kernel has been told of all that was acknowledged. One byte more: 1, of names too. The answer is 1, or 0
// if it could not be told in time. A program that does not know the question has its kernel keep nothing.
const askTold = 't'

// toldTimeout is how long an answer is waited for: in that time the other mount's kernel forgets by itself. What a mount tells its kernel
// rests on a lease of the leader for a moment (consensus/lease.go), and clocks do not run alike.
const toldTimeout = fs.SharedTimeout + 500*time.Millisecond

// answerTold answers askTold.
func (n *node) answerTold(ctx context.Context, names bool) []byte {
	ctx, cancel := context.WithTimeout(ctx, toldTimeout)
	defer cancel()
	err := n.v.barrier(ctx, meta.RootIno)
	if err == nil {
		err = n.kernel.flush(ctx, names)
	}
	if err != nil {
		n.v.log.WithError(err).Debug("another mount asks whether the kernel knows of its change, and it does not")
		return []byte{0}
	}
	return []byte{1}
}

// othersTold returns when the kernels of the other mounts do not hold any more what a command that has been applied here has changed of a
// directory; names: of what names it, too. It does not fail.
func (v *Volume) othersTold(ctx context.Context, names bool) {
	n := v.node
	if n == nil || !v.replicated(0) {
		return
	}
	sessions, err := posix.Sessions(v.factReader(0))
	if err != nil {
		v.log.WithError(err).Warn("reading the sessions: other mounts are not asked whether they know what has changed")
		return
	}
	// The caller may be interrupted; what he has changed is to be known nevertheless.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), toldTimeout)
	defer cancel()
	var asked sync.WaitGroup
	for _, s := range sessions {
		if s.Node != n.cfg.NodeID && !n.isMute(s.ID) {
			asked.Go(func() { n.askTold(ctx, s, names) })
		}
	}
	asked.Wait()
}

// askTold asks one mount, and waits as long as need be where it does not answer.
func (n *node) askTold(ctx context.Context, s posix.Session, names bool) {
	began := time.Now()
	q := []byte{askTold, 0}
	if names {
		q[1] = 1
	}
	answer, err := n.transport.Call(ctx, s.Node, q)
	if err == nil && len(answer) == 1 && answer[0] == 1 || errors.Is(err, transport.ErrNoSuchQuestion) {
		return
	}
	n.v.log.WithError(err).WithField("node", s.Node).Debug("a mount does not say that its kernel knows of a change")
	<-ctx.Done()
	if err == nil {
		return // it lives
	}
	n.seenMu.Lock()
	defer n.seenMu.Unlock()
	if known, ok := n.seen[s.ID]; ok {
		known.mute = began
		n.seen[s.ID] = known
	}
}

// isMute tells whether a mount has been waited for in vain and has not said since that it lives: then it learns nothing that it could
// tell its kernel, which holds nothing any more.
func (n *node) isMute(session uint64) bool {
	n.seenMu.Lock()
	defer n.seenMu.Unlock()
	s, known := n.seen[session]
	return known && s.at.Before(s.mute) && time.Since(s.at) > n.lease/2 // it says so twice in that time
}
