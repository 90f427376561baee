package consensus

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// A node whose disk is full holds nobody up. Its log waits and tries again, and to the
// others it is one with a slow disk; if it leads, it hands the group over, as what it
// cannot write it cannot apply. When there is room again it catches up by itself.
// A disk that stays full stops the group on this node.

// fullRetry is how often the log tries again.
const fullRetry = 250 * time.Millisecond

// errFull is what stops a step of a replica whose disk is full. It does not leave the
// package: see fullErr.
var errFull = errors.New("the disk is full")

// errConfUnsaved is why applying stalls: a full disk, again.
var errConfUnsaved = errors.New("the membership is not saved")

// fullErr is what a caller is told instead of errFull. cause is printed, not wrapped: it
// says that nothing was appended, which is true of this call and not of an earlier one
// with the same command.
func fullErr(name GroupID, cause error) error {
	return fmt.Errorf("%w: group %s: %v", ErrDiskFull, name, cause)
}

// stalled notes that work found the disk full. It returns the error to stop with when
// that has been so for too long.
func (r *replica) stalled(cause error) error {
	if r.full == nil {
		r.fullSince = r.ticks
	}
	r.full = cause
	if since := r.ticks - r.fullSince; since > r.fullTicks {
		return fmt.Errorf("%w for %d ticks: %v", ErrDiskFull, since, cause)
	}
	return nil
}

// giveWay hands the group to the voter that is furthest. It is called every tick while
// the disk is full.
func (r *replica) giveWay() {
	if r.state != raft.StateLeader || r.rn.BasicStatus().LeadTransferee != 0 {
		return
	}
	to, match := uint64(0), uint64(0)
	r.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if id != r.id && typ == raft.ProgressTypePeer && pr.RecentActive && (to == 0 || pr.Match > match) {
			to, match = id, pr.Match
		}
	})
	if to != 0 {
		r.rn.TransferLeader(to)
	}
}
