package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/consensus/logstore"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// clusterName is the directory that a member of a cluster has.
const clusterName = "cluster"

// judgeLog decides about a damaged log of the default group, which keeps the store from being mounted. The metadata has most of what
// was in it: where nothing else can have been in it, a new log can take its place. renewed: it has.
func (r *run) judgeLog() (renewed bool, err error) {
	f := *r.lost
	r.lost = nil
	defer func() { r.find(f) }()
	if r.o.NewLog == nil {
		return false, nil
	}
	store := r.o.FS
	if _, err := store.Stat(store.PathJoin(r.dir, clusterName)); !errors.Is(err, fs.ErrNotExist) && !r.onlyMember() {
		f.What += "; the store is a node of a cluster: take it out with `vde cluster remove` on another node, and join anew with an empty directory"
		return false, nil
	}
	dir := store.PathJoin(r.dir, raftName, defaultGroup)
	if r.newLogWaits(dir) {
		// A repair was interrupted between its two renames.
		f.Repairable = true
		if !r.o.Repair {
			return false, nil
		}
		if err := r.placeNewLog(dir); err != nil {
			return false, fmt.Errorf("make a new log in %s: %w", dir, err)
		}
		f.Repaired, r.restricted = true, false
		return true, nil
	}
	var group meta.Group
	var closed []byte
	err = r.peek(store, func(db *pebble.DB) error {
		v, err := getKey(db, binary.BigEndian.AppendUint16([]byte{'g'}, 0))
		if err == nil {
			group, err = meta.DecodeGroup(0, v)
		}
		if err != nil {
			return err
		}
		if closed, err = getKey(db, []byte("s"+factClean)); errors.Is(err, pebble.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return false, nil // the pass says what is wrong with the metadata
	}
	left, err := logstore.Look(store, dir, group.Applied)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	clean, err := r.closedWith(closed)
	if err != nil {
		return false, err
	}
	kept := group.Applied + uint64(len(left.Next))
	if left.Last > kept || (left.Last < group.Applied || left.Last == 0) && !clean {
		lost := fmt.Sprintf("what came after entry %d is lost, and nothing tells how much that is", kept)
		if left.Last > kept {
			lost = fmt.Sprintf("of the entries %d to %d not all can be read", kept+1, left.Last)
		}
		if !r.o.DropLog {
			f.What += fmt.Sprintf("; %s: if there is no backup, `vde fsck --repair --drop-log` goes on without them", lost)
			f.Droppable = true
			return false, nil
		}
		r.note("%s: the store goes on without them", lost)
	}
	f.Repairable = true
	if !r.o.Repair {
		return false, nil
	}
	term := left.Term
	if hard, err := logstore.ReadState(store, dir); err == nil {
		term = max(term, hard.Term)
	}
	if err := r.renewLog(dir, group, term, left.Next); err != nil {
		return false, fmt.Errorf("make a new log in %s: %w", dir, err)
	}
	f.Repaired, r.restricted = true, false
	return true, nil
}

// onlyMember tells whether the cluster that the store is a node of has no other: then nobody was promised what the log held, and nobody
// else has it. What is left of the hard state and the metadata must both say so. Each is durable before another node is sent anything: the
// log begins anew then, behind a state that has the other node in it.
func (r *run) onlyMember() bool {
	if r.o.OnlyVoter == nil || !r.o.OnlyVoter(r.o.FS, r.o.FS.PathJoin(r.dir, raftName, defaultGroup), r.info.NodeID) {
		return false
	}
	members, err := r.members()
	return err == nil && slices.Equal(members, []uint64{r.info.NodeID})
}

// members are the nodes that the metadata knows.
func (r *run) members() (members []uint64, err error) {
	err = r.peek(r.o.FS, func(db *pebble.DB) error {
		return eachFact(db, "node", func(id, _ []byte) { members = append(members, binary.BigEndian.Uint64(id)) })
	})
	return members, err
}

// hasOthers tells whether other nodes hold what the store holds, or did when it was a member of their cluster.
func (r *run) hasOthers() (bool, error) {
	f := r.o.FS
	if _, err := f.Stat(f.PathJoin(r.dir, clusterName)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if r.o.OnlyVoter == nil {
		return true, nil
	}
	logs := f.PathJoin(r.dir, raftName)
	names, err := f.List(logs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("look into %s: %w", logs, err)
	}
	for _, name := range names {
		dir := f.PathJoin(logs, name)
		st, err := f.Stat(dir)
		if err != nil {
			return false, err
		}
		if st.IsDir() && !r.o.OnlyVoter(f, dir, r.info.NodeID) {
			return true, nil
		}
	}
	members, err := r.members() // what cannot be read is reported by the pass
	return err == nil && slices.ContainsFunc(members, func(id uint64) bool { return id != r.info.NodeID }), nil
}

// closedWith tells whether the store was closed properly when it was last in use, together with the metadata that has the fact closed:
// then the log held nothing beyond it.
func (r *run) closedWith(closed []byte) (bool, error) {
	super, ok, err := r.super()
	return ok && super.Clean && len(closed) == 8 && binary.LittleEndian.Uint64(closed) == super.CleanID, err
}

// super reads the superblock that counts; ok tells whether there is one.
func (r *run) super() (_ layout.Superblock, ok bool, err error) {
	geometry, err := layout.Geometry(r.info.Size / layout.BlockSize)
	if err != nil {
		return layout.Superblock{}, false, nil // said elsewhere
	}
	p := &pass{run: r, fs: r.o.FS}
	im, err := p.openImage(geometry)
	if err != nil {
		return layout.Superblock{}, false, err
	}
	return im.super, im.known, im.close()
}

// renewLog puts a new log in the place of that in dir, which is kept beside the others' reach.
func (r *run) renewLog(dir string, group meta.Group, term uint64, next []logstore.Entry) error {
	f := r.o.FS
	tmp := f.PathJoin(r.dir, newLogName)
	if err := f.RemoveAll(tmp); err != nil {
		return err
	}
	if err := r.o.NewLog(f, tmp, r.info.NodeID, group.Applied, group.Term, term, next); err != nil {
		return err
	}
	// What is in next stands nowhere else once the old log is away.
	if err := syncDir(f, r.dir); err != nil {
		return err
	}
	if _, err := f.Stat(dir); err == nil {
		aside := ""
		for n := range math.MaxInt {
			aside = f.PathJoin(r.dir, fmt.Sprintf("damaged-log-%d", n+1))
			if _, err := f.Stat(aside); errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		if err := f.Rename(dir, aside); err != nil {
			return err
		}
		r.note("what was left of the log is in %s: remove it when the store is found to be whole", aside)
	} else if err := f.MkdirAll(f.PathDir(dir), 0o755); err != nil {
		return err
	}
	return r.placeNewLog(dir)
}

// newLogName is where a new log is made.
const newLogName = "log.new"

// newLogWaits tells whether a new log is whole and only has to get the name dir.
func (r *run) newLogWaits(dir string) bool {
	f := r.o.FS
	if _, err := f.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err := logstore.ReadState(f, f.PathJoin(r.dir, newLogName)) // the last that was written
	return err == nil
}

// placeNewLog gives a new log the name dir, which is free.
func (r *run) placeNewLog(dir string) error {
	f := r.o.FS
	if err := f.Rename(f.PathJoin(r.dir, newLogName), dir); err != nil {
		return err
	}
	return errors.Join(syncDir(f, f.PathDir(dir)), syncDir(f, r.dir))
}

func syncDir(f vfs.FS, dir string) error {
	d, err := f.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
