package meta

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Batch collects changes that become visible together. It does not read what it wrote. One goroutine at a time.
type Batch struct {
	s       *Store
	b       *pebble.Batch
	buf     []byte
	changed []uint16 // slots of keys that are changed again and again, perhaps (versions)
}

// NewBatch begins a batch; end it with Commit or Close.
func (s *Store) NewBatch() *Batch { return &Batch{s: s, b: s.db.NewBatch()} }

// Commit makes the changes visible (not durable: see Store.Flush) and ends the batch.
func (b *Batch) Commit() error {
	if err := b.b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("commit metadata: %w", err)
	}
	b.s.committed(b.changed)
	return b.b.Close()
}

// Close drops a batch that was not committed.
func (b *Batch) Close() error { return b.b.Close() }

// Len is the size of the batch in bytes.
func (b *Batch) Len() int { return b.b.Len() }

func (b *Batch) set(key, value []byte) {
	// A batch in memory takes every Set: the error is for batches that were closed.
	if err := b.b.Set(key, value, nil); err != nil {
		panic("meta: set in a closed batch: " + err.Error())
	}
}

// replace sets a key that readers look for from before or behind it, where its older versions are in their way.
func (b *Batch) replace(key, value []byte) {
	b.changed = append(b.changed, b.s.versions.slot(key))
	b.set(key, value)
}

func (b *Batch) delete(key []byte) {
	b.changed = append(b.changed, b.s.versions.slot(key))
	if err := b.b.Delete(key, nil); err != nil {
		panic("meta: delete in a closed batch: " + err.Error())
	}
}

func (b *Batch) deleteRange(lower, upper []byte) {
	if err := b.b.DeleteRange(lower, upper, nil); err != nil {
		panic("meta: delete in a closed batch: " + err.Error())
	}
}

// SetInode stores an inode, DeleteInode removes it (not what belongs to it).
func (b *Batch) SetInode(in *Inode) {
	b.buf = EncodeInode(b.buf[:0], in)
	b.set(inodeKey(in.Ino), b.buf)
}
func (b *Batch) DeleteInode(ino Ino) { b.delete(inodeKey(ino)) }

// SetDirent stores an entry under its name and its cookie, DeleteDirent removes both.
func (b *Batch) SetDirent(dir Ino, e Dirent) {
	b.set(direntKey(dir, e.Name), encodeDirent(e))
	b.set(cookieKey(dir, e.Cookie), encodeCookie(e))
}
func (b *Batch) DeleteDirent(dir Ino, e Dirent) {
	b.delete(direntKey(dir, e.Name))
	b.delete(cookieKey(dir, e.Cookie))
}

// SetExtent stores an extent under its first file block, DeleteExtent removes the one that begins there.
func (b *Batch) SetExtent(ino Ino, e Extent)            { b.replace(extentKey(ino, e.FileBlock), encodeExtent(e)) }
func (b *Batch) DeleteExtent(ino Ino, fileBlock uint64) { b.delete(extentKey(ino, fileBlock)) }

// SetXattr stores an extended attribute, DeleteXattr removes it.
func (b *Batch) SetXattr(ino Ino, name string, value []byte) { b.replace(xattrKey(ino, name), value) }
func (b *Batch) DeleteXattr(ino Ino, name string)            { b.delete(xattrKey(ino, name)) }

// SetOrphan notes an inode that waits to be freed, DeleteOrphan forgets it.
func (b *Batch) SetOrphan(ino Ino)    { b.set(orphanKey(ino), nil) }
func (b *Batch) DeleteOrphan(ino Ino) { b.delete(orphanKey(ino)) }

// SetRef stores a reference count under its first block, DeleteRef removes the one that begins there.
func (b *Batch) SetRef(r Ref)          { b.replace(refKey(r.Phys), encodeRef(r)) }
func (b *Batch) DeleteRef(phys uint64) { b.delete(refKey(phys)) }

// SetGroup stores the state of a group.
func (b *Batch) SetGroup(slot uint16, g Group) {
	b.buf = encodeGroup(b.buf[:0], g)
	b.set(groupKey(slot), b.buf)
}

// SetGroupFact stores a fact of a group (see CheckFact for what may be stored), DeleteGroupFact removes it.
func (b *Batch) SetGroupFact(slot uint16, name string, value []byte) {
	b.set(factKey(slot, name), value)
}
func (b *Batch) DeleteGroupFact(slot uint16, name string) { b.delete(factKey(slot, name)) }

// SetFact stores a store-wide fact.
func (b *Batch) SetFact(name string, value []byte) { b.set(storeKey(name), value) }
