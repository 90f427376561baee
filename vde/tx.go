package vde

import (
	"context"
	"errors"
	"fmt"
	"math"

	"vdefs/vde/alloc"
	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

// Tx is one change of the store: what one log entry does. It reads the state that the entries before it left, and its
// own changes of inodes. One goroutine at a time.
//
// It ends with Commit or Discard. After Commit, Rest must be called once, on any goroutine.
type Tx struct {
	e     *Engine
	slot  uint16
	index uint64
	term  uint64

	batch  *meta.Batch
	group  meta.Group
	inodes []*meta.Inode // read for change or new; few
	dirty  []bool

	taken []alloc.Extent // allocated: given back by Discard
	freed []alloc.Extent // unmapped: free after a checkpoint
	held  []heldRange
	data  []placement
	marks refMarks
	facts []factChange // by name
}

// refMarks are changes of reference counts, done at Commit: they cannot be undone.
type refMarks []refMark

type refMark struct {
	start, count uint64
	add          bool
}

// heldRange is a lock on a range of a file, kept until the data of the transaction is in its place.
type heldRange struct {
	ino    meta.Ino
	file   *file
	ticket *rangelock.Ticket
}

// placement is data on its way to image blocks. data is whole blocks and belongs to the engine.
type placement struct {
	start   uint64
	data    []byte
	inPlace bool // overwrites a mapped block: through the overlay (R2)
}

// Begin starts the transaction of a log entry. Transactions of one group begin and end one after the other, in log
// order; this order is the caller's lock. Every transaction carries its entry's index, greater than the one before.
func (e *Engine) Begin(slot uint16, index, term uint64) (*Tx, error) {
	if err := e.Err(); err != nil {
		return nil, err
	}
	e.groupsMu.RLock()
	g, ok := e.groups[slot]
	e.groupsMu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("group %d is not in this store", slot)
	}
	if index <= g.Applied {
		return nil, fmt.Errorf("group %d: entry %d was applied before (the last was %d)", slot, index, g.Applied)
	}
	if err := e.markInUse(); err != nil {
		return nil, err
	}
	e.settle.RLock()
	return &Tx{e: e, slot: slot, index: index, term: term, group: *g, batch: e.meta.NewBatch()}, nil
}

// Slot is the group of the transaction.
func (tx *Tx) Slot() uint16 { return tx.slot }

// GroupInodes is how many inodes the group has.
func (tx *Tx) GroupInodes() uint64 { return tx.group.Inodes }

// Inode returns an inode for reading and changing; SetInode stores the change. meta.ErrNotFound if there is none.
func (tx *Tx) Inode(ino meta.Ino) (*meta.Inode, error) {
	for _, in := range tx.inodes {
		if in.Ino == ino {
			if in.Mode == 0 {
				return nil, meta.ErrNotFound
			}
			return in, nil
		}
	}
	in, err := tx.e.meta.Inode(ino)
	if err != nil {
		return nil, err
	}
	tx.inodes, tx.dirty = append(tx.inodes, &in), append(tx.dirty, false)
	return &in, nil
}

// SetInode stores an inode that Inode or NewInode returned.
func (tx *Tx) SetInode(in *meta.Inode) {
	for i := range tx.inodes {
		if tx.inodes[i] == in {
			tx.dirty[i] = true
			return
		}
	}
	panic("vde: SetInode of an inode that is not of this transaction")
}

// NewInode makes an inode with the next number of the group; the caller fills it in and stores it.
func (tx *Tx) NewInode() *meta.Inode {
	in := &meta.Inode{Ino: meta.MakeIno(tx.slot, tx.group.NextSeq), NextCookie: firstCookie}
	tx.group.NextSeq++
	tx.group.Inodes++
	tx.inodes, tx.dirty = append(tx.inodes, in), append(tx.dirty, true)
	return in
}

// Dirent reads an entry as it was before the transaction.
func (tx *Tx) Dirent(dir meta.Ino, name string) (meta.Dirent, error) {
	return tx.e.meta.Dirent(dir, name)
}

// AddDirent adds an entry to a directory that Inode returned, and counts it in the directory's Size.
func (tx *Tx) AddDirent(dir *meta.Inode, name string, ino meta.Ino, mode uint32) {
	tx.batch.SetDirent(dir.Ino, meta.Dirent{Name: name, Ino: ino, Type: mode & modeType, Cookie: dir.NextCookie})
	dir.NextCookie++
	dir.Size++
	tx.SetInode(dir)
}

// ReplaceDirent gives an existing entry another inode, at the same place of the directory.
func (tx *Tx) ReplaceDirent(dir *meta.Inode, old meta.Dirent, ino meta.Ino, mode uint32) {
	old.Ino, old.Type = ino, mode&modeType
	tx.batch.SetDirent(dir.Ino, old)
	tx.SetInode(dir)
}

// RenameDirent gives an entry another name, at the same place of the directory.
func (tx *Tx) RenameDirent(dir *meta.Inode, e meta.Dirent, name string) {
	tx.batch.DeleteDirent(dir.Ino, e)
	e.Name = name
	tx.batch.SetDirent(dir.Ino, e)
	tx.SetInode(dir)
}

// RemoveDirent removes an entry.
func (tx *Tx) RemoveDirent(dir *meta.Inode, e meta.Dirent) {
	tx.batch.DeleteDirent(dir.Ino, e)
	dir.Size--
	tx.SetInode(dir)
}

// Xattr, SetXattr, RemoveXattr: as they were before the transaction, and changes.
func (tx *Tx) Xattr(ino meta.Ino, name string) ([]byte, error) { return tx.e.meta.Xattr(ino, name) }

// SetXattr stores an extended attribute.
func (tx *Tx) SetXattr(ino meta.Ino, name string, value []byte) { tx.batch.SetXattr(ino, name, value) }

// RemoveXattr removes an extended attribute.
func (tx *Tx) RemoveXattr(ino meta.Ino, name string) { tx.batch.DeleteXattr(ino, name) }

// XattrNames lists the attributes as they were before the transaction.
func (tx *Tx) XattrNames(ino meta.Ino) (names []string, err error) {
	err = tx.e.meta.Xattrs(ino, func(name string, _ []byte) (bool, error) { names = append(names, name); return true, nil })
	return names, err
}

// SetOrphan notes that an inode has no name any more; FreeInode ends that.
func (tx *Tx) SetOrphan(ino meta.Ino) { tx.batch.SetOrphan(ino) }

// ClearOrphan notes that an orphan got a name.
func (tx *Tx) ClearOrphan(ino meta.Ino) { tx.batch.DeleteOrphan(ino) }

// FreeInode removes an inode with all that belongs to it: attributes, extents, blocks.
func (tx *Tx) FreeInode(in *meta.Inode) error {
	if in.Blocks > 0 {
		if err := tx.Unmap(in, 0, math.MaxUint64); err != nil {
			return err
		}
	}
	if in.Flags&meta.FlagXattr != 0 {
		names, err := tx.XattrNames(in.Ino)
		if err != nil {
			return err
		}
		for _, n := range names {
			tx.batch.DeleteXattr(in.Ino, n)
		}
	}
	tx.batch.DeleteInode(in.Ino)
	tx.batch.DeleteOrphan(in.Ino)
	tx.group.Inodes--
	in.Mode = 0 // Inode answers ErrNotFound from here on
	for i := range tx.inodes {
		if tx.inodes[i] == in {
			tx.dirty[i] = false
		}
	}
	return nil
}

// lock takes a place in the queue for a range of blocks of a file, behind everything earlier entries hold.
func (tx *Tx) lock(ino meta.Ino, start, count uint64, mode rangelock.Mode) *rangelock.Ticket {
	f := tx.e.files.use(ino)
	t := f.lock.Enqueue(start, count, mode)
	tx.held = append(tx.held, heldRange{ino, f, t})
	return t
}

// lockNow is lock, and waits for the range: the data of earlier entries is in its place then. They need nothing that
// the caller holds.
func (tx *Tx) lockNow(ino meta.Ino, start, count uint64, mode rangelock.Mode) error {
	return tx.lock(ino, start, count, mode).Wait(context.Background())
}

func (tx *Tx) unlock() {
	for _, h := range tx.held {
		h.ticket.Release()
		tx.e.files.done(h.ino, h.file)
	}
	tx.held = nil
}

// Discard ends the transaction without a change, but for the mark that its entry was applied: the entry's failure is
// its result.
func (tx *Tx) Discard() error {
	defer tx.e.settle.RUnlock()
	tx.unlock()
	for _, x := range tx.taken {
		if err := tx.e.alloc.Free(x); err != nil {
			return tx.e.fail(fmt.Errorf("give blocks %d+%d back: %w", x.Start, x.Count, err))
		}
	}
	if err := tx.batch.Close(); err != nil {
		return tx.e.fail(err)
	}
	e := tx.e
	e.groupsMu.RLock()
	g := e.groups[tx.slot]
	e.groupsMu.RUnlock()
	next := *g
	next.Applied, next.Term = tx.index, tx.term
	b := e.meta.NewBatch()
	b.SetGroup(tx.slot, next)
	if err := b.Commit(); err != nil {
		return e.fail(err)
	}
	e.unflushed.Add(64)
	e.setGroup(tx.slot, next)
	return nil
}

// Restart undoes the transaction's changes and begins it anew.
func (tx *Tx) Restart() error {
	e := tx.e
	tx.unlock()
	for _, x := range tx.taken {
		if err := e.alloc.Free(x); err != nil {
			return e.fail(fmt.Errorf("give blocks %d+%d back: %w", x.Start, x.Count, err))
		}
	}
	if err := tx.batch.Close(); err != nil {
		return e.fail(err)
	}
	g, _ := e.Group(tx.slot)
	*tx = Tx{e: e, slot: tx.slot, index: tx.index, term: tx.term, group: g, batch: e.meta.NewBatch()}
	return nil
}

func (e *Engine) setGroup(slot uint16, g meta.Group) {
	e.groupsMu.Lock()
	*e.groups[slot] = g
	e.groupsMu.Unlock()
}

// Commit makes the change visible to everybody. The data of writes is in its place when Rest has returned; readers
// of the ranges wait for that by themselves. An error ends the transaction, and the engine: Rest is not called.
func (tx *Tx) Commit() error {
	for i, in := range tx.inodes {
		if tx.dirty[i] {
			tx.batch.SetInode(in)
		}
	}
	gate := &tx.e.commitGate
	gate.RLock()
	for _, m := range tx.marks {
		if m.add {
			tx.e.refs.add(tx.batch, m.start, m.count)
		} else {
			tx.freed = append(tx.freed, tx.e.refs.drop(tx.batch, m.start, m.count)...)
		}
	}
	tx.group.Applied, tx.group.Term = tx.index, tx.term
	tx.batch.SetGroup(tx.slot, tx.group)
	tx.e.unflushed.Add(int64(tx.batch.Len()))
	if err := tx.batch.Commit(); err != nil {
		gate.RUnlock()
		tx.unlock() // readers must not wait for ever
		tx.e.settle.RUnlock()
		return tx.e.fail(err)
	}
	tx.e.setGroup(tx.slot, tx.group)
	tx.e.frees.add(tx.freed)
	gate.RUnlock()
	if tx.e.frees.size() > freesHigh {
		poke(tx.e.checkup)
	}
	return nil
}

// Rest puts the data of a committed transaction in its place, waiting for its ranges' turn, and lets go of them.
// It must be called once after Commit; it may run in parallel with the transactions that follow.
func (tx *Tx) Rest() error {
	defer tx.e.settle.RUnlock()
	defer tx.unlock()
	var errs error
	for _, h := range tx.held {
		errs = errors.Join(errs, h.ticket.Wait(context.Background()))
	}
	flush := false
	for _, p := range tx.data {
		if tx.e.logged.Add(int64(len(p.data))) > loggedHigh {
			poke(tx.e.checkup)
		}
		if p.inPlace {
			tx.e.overlay.put(p.start, p.data, tx.slot, tx.index)
			flush = true
		} else if err := tx.e.img.Write(p.start, p.data); err != nil {
			errs = errors.Join(errs, tx.e.fail(err))
		}
	}
	if flush && tx.e.overlay.isDurable(tx.slot, tx.index) {
		poke(tx.e.wake)
	}
	return errs
}
