package consensus

import (
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"

	"vdefs/consensus/logstore"
)

// TestCommitIsNotSavedAheadOfTheLog: a node whose log ends otherwise than its new leader's must not save how far entries are committed
// before it has written them. After a crash in between it would take its own ones for committed.
func TestCommitIsNotSavedAheadOfTheLog(t *testing.T) {
	log := logstore.NewMemory()
	entries := func(term uint64, indexes ...uint64) (es []*pb.Entry) {
		for _, i := range indexes {
			es = append(es, &pb.Entry{Term: new(term), Index: new(i), Type: pb.EntryNormal.Enum(), Data: []byte{byte(term)}})
		}
		return es
	}
	if err := log.Append(fromRaft(append(entries(1, 1, 2, 3), entries(2, 4, 5, 6)...))); err != nil {
		t.Fatal(err)
	}
	if err := log.Sync(); err != nil {
		t.Fatal(err)
	}
	saves := 0
	r := &replica{log: log, hard: logstore.HardState{NodeID: 1, Term: 2, Commit: 3}}
	r.saveState = func(s logstore.HardState) error {
		saves++
		for i := uint64(4); i <= s.Commit; i++ {
			got, err := log.Entries(nil, i, i+1, 1<<20)
			if err != nil || len(got) != 1 || got[0].Term != 3 {
				t.Errorf("the state says that entry %d is committed, the log has %+v there: %v", i, got, err)
			}
		}
		return nil
	}
	w := &appendWork{r: r, msgs: []*pb.Message{{
		Type: pb.MsgStorageAppend.Enum(), Term: new(uint64(3)), Vote: new(uint64(2)), Commit: new(uint64(6)), Entries: entries(3, 4, 5, 6),
	}}}
	if err := w.run(nil); err != nil {
		t.Fatal(err)
	}
	if r.hard.Commit != 6 || saves != 2 {
		t.Errorf("afterwards the state says %d, in %d saves", r.hard.Commit, saves)
	}
	// What is saved next may say it.
	if err := r.saveConf(nil, 6); err != nil || saves != 3 {
		t.Errorf("%d saves, %v", saves, err)
	}
}
