package check

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"

	"vdefs/consensus/logstore"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// defaultGroup is the directory of the log of group 0.
const defaultGroup = "default"

const logChunk = 4 << 20 // bytes of a log read at once

// readLogs reads every log of the store from end to end, and tells how many commands they hold beyond the metadata, and how far that
// has applied the log of group 0. Logs are opened on a scratch, as opening one cuts off its torn tail.
func (r *run) readLogs() (pending, applied uint64, err error) {
	f := r.o.FS
	stands := r.applied(f)
	applied = stands[defaultGroup]
	dir := f.PathJoin(r.dir, raftName)
	names, err := f.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		names, err = nil, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look into %s: %w", dir, err)
	}
	slices.Sort(names)
	found := false
	for i, name := range names {
		r.o.Progress(uint64(i), uint64(len(names)), "logs")
		group := f.PathJoin(dir, name)
		st, err := f.Stat(group)
		if err != nil {
			return 0, 0, err
		}
		if !st.IsDir() {
			continue
		}
		hard, err := logstore.ReadState(f, group)
		if errors.Is(err, logstore.ErrNoState) {
			if name == defaultGroup {
				// Before its hard state is there, its log has only the membership that it begins with, of the first term; and it is never removed.
				left, err := logstore.Look(f, group, math.MaxUint64)
				if err != nil {
					return 0, 0, err
				}
				if found = left.Term > 1; found {
					r.badLog(true, "%s: the hard state is missing, though the log has entries up to %d", group, left.Last)
					continue
				}
			}
			r.note("%s was left by an interrupted creation or removal of a group; the next mount removes it", group)
			continue
		}
		if name == defaultGroup {
			found = true
		}
		if err == nil && hard.NodeID != r.info.NodeID {
			err = fmt.Errorf("it is of node %d, this is node %d", hard.NodeID, r.info.NodeID)
		}
		if err != nil {
			r.badLog(name == defaultGroup, "%s: %v", group, err)
			continue
		}
		from, known := stands[name]
		n, err := r.readLog(group, from, known, hard)
		if err != nil {
			r.badLog(name == defaultGroup, "%s: %v", group, err)
			continue
		}
		pending += n
	}
	if found {
		return pending, applied, nil
	}
	if applied > 0 {
		r.badLog(true, "the log of group %s is missing from %s, the metadata has applied %d of its entries", defaultGroup, dir, applied)
		return pending, applied, nil
	}
	// Before the first checkpoint the metadata knows of no entry, but the superblock of a store in use.
	super, ok, err := r.super()
	if ok && layout.InUse(super) {
		r.badLog(true, "the log of group %s is missing from %s, though the store was in use", defaultGroup, dir)
	}
	return pending, applied, err
}

// badLog notes that a log cannot be read; first says that it is that of the default group. What it holds beyond the metadata is unknown then.
func (r *run) badLog(first bool, format string, args ...any) {
	r.restricted = true
	f := finding{Finding: Finding{Kind: KindLog, What: fmt.Sprintf(format, args...)}}
	if first {
		r.lost = &f
		return // judgeLog adds it
	}
	r.find(f)
}

// readLog reads a log from end to end and counts its commands beyond applied.
func (r *run) readLog(dir string, applied uint64, compare bool, hard logstore.HardState) (pending uint64, err error) {
	scratch := newScratchFS(r.o.FS)
	var said strings.Builder
	log := logrus.New()
	log.SetOutput(&said)
	log.SetFormatter(messageOnly{})
	l, err := logstore.OpenFile(logstore.FileOptions{FS: scratch, Dir: dir, Logger: log})
	if err != nil {
		return 0, errors.Join(err, scratch.close())
	}
	defer func() { err = errors.Join(err, l.Close(), scratch.close()) }()
	for line := range strings.Lines(said.String()) {
		r.note("%s", strings.TrimSpace(line))
	}
	first, last := l.FirstIndex(), l.LastIndex()
	switch {
	case compare && last < applied && applied == hard.SnapIndex:
		return 0, nil // a crash came while a snapshot was installed; the log begins anew behind it
	case last == 0 && hard.ConfIndex > 0 && hard.SnapIndex == 0:
		// The membership came with an entry, which is durable before the hard state is.
		return 0, fmt.Errorf("it is empty, though its hard state knows of entry %d: the log was lost", hard.ConfIndex)
	case l.LastTerm() > hard.Term:
		return 0, fmt.Errorf("its last entry has term %d, its hard state says %d: the hard state is older than the log", l.LastTerm(), hard.Term)
	case compare && first > applied+1:
		return 0, fmt.Errorf("it begins with entry %d, but the metadata stands at entry %d: those between are lost", first, applied)
	case compare && last < applied:
		return 0, fmt.Errorf("it ends with entry %d, but the metadata stands at entry %d: the log was lost or replaced", last, applied)
	}
	var entries []logstore.Entry
	for at := first; at <= last; {
		if entries, err = l.Entries(entries[:0], at, last+1, logChunk); err != nil {
			return 0, err
		}
		for _, e := range entries {
			if compare && e.Index > applied && (e.Type == logstore.EntryCommand || e.Type == logstore.EntryTagged) {
				pending++
			}
		}
		at += uint64(len(entries))
		r.o.Progress(at-first, last+1-first, "log entries")
	}
	return pending, nil
}

type messageOnly struct{}

func (messageOnly) Format(e *logrus.Entry) ([]byte, error) {
	return append([]byte(e.Message), '\n'), nil
}

// nodeID is what the hard state of group 0 says, 0 if it cannot be read.
func (r *run) nodeID() uint64 {
	hard, err := logstore.ReadState(r.o.FS, r.o.FS.PathJoin(r.dir, raftName, defaultGroup))
	if err != nil {
		return 0
	}
	return hard.NodeID
}

// applied reads how far the log of each group was applied to the metadata, by the group's name. A group that the metadata does not know is
// missing; what cannot be read is reported by the pass.
func (r *run) applied(f vfs.FS) map[string]uint64 {
	stands := map[string]uint64{}
	err := r.peek(f, func(db *pebble.DB) error {
		names := map[uint16]string{0: defaultGroup}
		err := eachFact(db, "group", func(_, value []byte) {
			var g struct {
				Slot uint16 `json:"slot"`
				Name string `json:"name"`
			}
			if json.Unmarshal(value, &g) == nil && g.Slot > 0 {
				names[g.Slot] = g.Name
			}
		})
		if err != nil {
			return err
		}
		for slot, name := range names {
			v, err := getKey(db, binary.BigEndian.AppendUint16([]byte{'g'}, slot))
			if errors.Is(err, pebble.ErrNotFound) && slot > 0 {
				stands[name] = 0
				continue
			}
			if err != nil {
				return err
			}
			g, err := meta.DecodeGroup(slot, v)
			if err != nil {
				return err
			}
			stands[name] = g.Applied
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return stands
}

// eachFact yields the facts of group 0 whose name is a word with one number: what follows the word, and the value.
func eachFact(db *pebble.DB, word string, yield func(number, value []byte)) error {
	lower := append([]byte("f\x00\x00"), word...)
	upper := append(slices.Clone(lower[:len(lower)-1]), lower[len(lower)-1]+1)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(err, it.Close())
		}
		if number := it.Key()[len(lower):]; len(number) == 8 {
			yield(number, value)
		}
	}
	return errors.Join(it.Error(), it.Close())
}

// peek opens the metadata for a short look.
func (r *run) peek(f vfs.FS, look func(*pebble.DB) error) (err error) {
	scratch := newScratchFS(f)
	defer func() { err = errors.Join(err, scratch.close()) }()
	db, err := openRead(scratch, f.PathJoin(r.dir, metaName), r.o.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return look(db)
}

// getKey returns a copy of a value.
func getKey(db *pebble.DB, key []byte) ([]byte, error) {
	v, closer, err := db.Get(key)
	if err != nil {
		return nil, err
	}
	return slices.Clone(v), closer.Close()
}
