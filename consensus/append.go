package consensus

import (
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/logstore"
)

// appendWork is work for the log: entries to write, state to save, and what may
// only be sent when that is durable.
type appendWork struct {
	r         *replica
	msgs      []*pb.Message
	responses []*pb.Message
	// installed is the snapshot that came with it, if any.
	installed *pb.Snapshot
	// What run has done so far: it goes on from there when it is called again after
	// a full disk.
	restored bool
	appended int // of msgs
}

// takeAppend returns the work that is due on the log, nil if none.
func (r *replica) takeAppend() *appendWork {
	if len(r.appendQ) == 0 {
		return nil
	}
	r.working++
	w := &appendWork{r: r}
	for len(r.appendQ) > 0 {
		m := r.appendQ[0]
		if m.Snapshot != nil && len(w.msgs) > 0 {
			break // a snapshot is installed on its own
		}
		r.appendQ[0] = nil
		r.appendQ = r.appendQ[1:]
		w.msgs = append(w.msgs, m)
		w.responses = append(w.responses, m.GetResponses()...)
		if m.Snapshot != nil {
			w.installed = m.Snapshot
			break
		}
	}
	w.responses = lastAcks(w.responses)
	return w
}

// lastAcks leaves of the acknowledgements for one node and term only the furthest, where
// the last one stands: the leader would answer each of them by telling everybody how far
// the group has come.
func lastAcks(msgs []*pb.Message) []*pb.Message {
	type ack struct{ to, term uint64 }
	var seen []ack // few, as is at: where the one for seen[i] stands
	var at []int
	kept := len(msgs)
	for i := len(msgs) - 1; i >= 0; i-- {
		m := msgs[i]
		if m.GetType() == pb.MsgAppResp && !m.GetReject() {
			a := ack{m.GetTo(), m.GetTerm()}
			if n := slices.Index(seen, a); n >= 0 {
				if m.GetIndex() > msgs[at[n]].GetIndex() {
					msgs[at[n]] = m
				}
				continue
			}
			seen, at = append(seen, a), append(at, kept-1)
		}
		kept--
		msgs[kept] = m
	}
	return msgs[kept:]
}

// run does the work. install is called for a snapshot; it returns when the state
// machine holds it durably. An error that wraps ErrNotAppended means that the disk
// is full: run may be called again when it is not.
func (w *appendWork) run(install func(*pb.Snapshot) error) error {
	r := w.r
	// First the state: the log must not hold entries of a term that it does not know. But not how far they are committed: until these
	// entries are written others may stand in their places, and a crash would have those taken for committed.
	commit, saved := uint64(0), false
	if err := r.updateHard(func(hard *logstore.HardState) (save bool) {
		for _, m := range w.msgs {
			if m.Term != nil && (m.GetTerm() != hard.Term || m.GetVote() != hard.Vote) {
				hard.Term, hard.Vote, save = m.GetTerm(), m.GetVote(), true
			}
			commit = max(commit, m.GetCommit())
		}
		if s := w.installed; s != nil {
			hard.SnapIndex, hard.SnapTerm, save = s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm(), true
		}
		saved = save
		return save && !r.fault.skipStateSync
	}); err != nil {
		return err
	}
	if s := w.installed; s != nil {
		if err := w.runInstall(s, install); err != nil {
			return err
		}
	}
	wrote := false
	for i, m := range w.msgs {
		if len(m.GetEntries()) == 0 {
			continue
		}
		wrote = true
		if i < w.appended {
			continue
		}
		if err := r.appendEntries(m.GetEntries()); err != nil {
			return err
		}
		w.appended = i + 1
	}
	if wrote && !r.fault.ackBeforeSync {
		if err := r.log.Sync(); err != nil {
			return err
		}
	}
	return r.updateHard(func(hard *logstore.HardState) bool {
		// Not worth a sync but where one was made: a new term is when it is of use to know.
		news := commit > hard.Commit
		hard.Commit = max(hard.Commit, commit)
		return saved && news
	})
}

// runInstall makes the state machine and the log what the snapshot says.
func (w *appendWork) runInstall(s *pb.Snapshot, install func(*pb.Snapshot) error) error {
	r := w.r
	if !w.restored {
		if err := install(s); err != nil {
			return fmt.Errorf("installing a snapshot of entry %d: %w", s.GetMetadata().GetIndex(), err)
		}
		w.restored = true
	}
	meta := s.GetMetadata()
	if err := r.log.Reset(meta.GetIndex(), meta.GetTerm()); err != nil {
		return err
	}
	conf, err := proto.Marshal(meta.GetConfState())
	if err != nil {
		return fmt.Errorf("encoding the membership: %w", err)
	}
	return r.updateHard(func(hard *logstore.HardState) bool {
		hard.Conf, hard.ConfIndex = conf, meta.GetIndex()
		hard.Commit = max(hard.Commit, meta.GetIndex())
		return true
	})
}

// updateHard changes the hard state, and makes it durable if change says so. A
// commit index alone is not worth a sync: it is a hint, and saved with the rest.
func (r *replica) updateHard(change func(*logstore.HardState) (save bool)) error {
	r.hardMu.Lock()
	defer r.hardMu.Unlock()
	hard := r.hard
	if change(&hard) {
		save := hard
		save.Commit = min(save.Commit, r.log.DurableIndex())
		if err := r.saveState(save); err != nil {
			return err // the change is made, and saved, when it is tried again
		}
	}
	r.hard = hard
	return nil
}

func (r *replica) appendEntries(es []*pb.Entry) error {
	first := es[0].GetIndex()
	if first <= r.log.LastIndex() {
		if r.fault.skipTruncate {
			for len(es) > 0 && es[0].GetIndex() <= r.log.LastIndex() {
				es = es[1:]
			}
			if len(es) == 0 {
				return nil
			}
		} else if err := r.log.TruncateFrom(first); err != nil {
			return err
		}
	}
	return r.log.Append(fromRaft(es))
}
