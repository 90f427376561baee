package vde

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/vde/alloc"
	"vdefs/vde/image"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// Facts that meta/ keeps of the whole store.
const (
	factUUID  = "uuid"
	factClean = "clean" // 8 bytes: equals the superblock's clean id when both were closed together
)

// OpenOptions say how a store is opened.
type OpenOptions struct {
	FS     vfs.FS // nil: the operating system's
	Logger logrus.FieldLogger
	// Held says that the caller holds the store (Hold) and lets it go after Close. Otherwise Open takes it.
	Held bool
	// CheckpointEvery is how long freed blocks and the tail of the log wait at most (default 10 s).
	CheckpointEvery time.Duration
	// Memory is about how many bytes the engine may hold under load (0: DefaultMemory): see limitsOf.
	Memory int64
	// PushOut has large writes go to the disk as they come and not stay in the kernel's cache. It pays where writes come from
	// the log, which other nodes share (image.PushOut).
	PushOut bool
	// OnCheckpoint is told that what a group had applied up to an index is durable in meta/: the log up to there is not
	// needed by this node any more.
	OnCheckpoint func(slot uint16, applied uint64)
}

// Open opens a store and repairs what a crash left: superblocks, and the free space when the store was not closed.
// The caller then applies the log entries after each group's Applied again.
func Open(dir string, o OpenOptions) (_ *Engine, err error) {
	f := o.FS
	if f == nil {
		f = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = logrus.StandardLogger()
	}
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = 10 * time.Second
	}
	info, err := ReadInfo(f, dir)
	if err != nil {
		return nil, err
	}
	var lock io.Closer = heldElsewhere{}
	if !o.Held {
		if lock, err = Hold(f, dir); err != nil {
			return nil, err
		}
	}
	e := &Engine{
		dir: dir, info: info, log: o.Logger.WithField("store", dir), lock: lock,
		groups: map[uint16]*meta.Group{}, refs: newRefs(), onCheckpoint: o.OnCheckpoint, limits: limitsOf(o.Memory),
		holdBack:  holdBack{open: map[*snapshot]uint64{}},
		flushRoom: make(chan struct{}, 1), wake: make(chan struct{}, 1), checkup: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	defer func() {
		if err == nil {
			return
		}
		if e.meta != nil {
			err = errors.Join(err, e.meta.Close())
		}
		if e.img != nil {
			err = errors.Join(err, e.img.Close())
		}
		err = errors.Join(err, lock.Close())
	}()
	if err := e.openImage(f); err != nil {
		return nil, err
	}
	if o.PushOut {
		e.img.PushOut()
	}
	e.overlay = newOverlay(e.img)
	e.meta, err = meta.Open(f.PathJoin(dir, metaName), meta.Options{
		FS: f, Barrier: e.barrier, CacheSize: e.limits.cache, MemTableSize: e.limits.memTable, Logger: pebbleLogger{e.log},
		OnError: func(err error) { e.fail(fmt.Errorf("metadata: %w", err)) },
		OnFlush: func() { poke(e.flushRoom) },
	})
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, markDamage(err))
	}
	if err := e.load(); err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, markDamage(err))
	}
	e.startWorkers(o.CheckpointEvery)
	return e, nil
}

// markDamage makes an error of the metadata that says so an ErrDamaged.
func markDamage(err error) error {
	if meta.IsDamage(err) && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

func (e *Engine) openImage(f vfs.FS) error {
	path := imagePath(f, e.dir, e.info)
	// OpenReadWrite would make a missing file.
	if _, err := f.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("store %s: %w: its image %s is missing", e.dir, ErrDamaged, path)
		}
		return fmt.Errorf("store %s: %w", e.dir, err)
	}
	file, err := f.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("store %s: open its image: %w", e.dir, err)
	}
	img, healed, err := image.Open(file, e.info.Size/layout.BlockSize, true)
	if err != nil {
		var v *layout.VersionError
		if !errors.As(err, &v) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return errors.Join(fmt.Errorf("store %s: image %s: %w", e.dir, path, err), file.Close())
	}
	if healed != "" {
		e.log.WithField("image", path).Warn(healed)
	}
	e.img = img
	if got := layout.FormatUUID(img.Super().UUID); got != e.info.UUID {
		return fmt.Errorf("store %s: %w: image %s belongs to store %s, not to %s", e.dir, ErrDamaged, path, got, e.info.UUID)
	}
	return nil
}

// load reads what is kept in memory. The mark that the store was closed properly stays until something changes (markInUse).
func (e *Engine) load() error {
	uuid, err := e.meta.Fact(factUUID)
	if err != nil || string(uuid) != e.info.UUID {
		return fmt.Errorf("%w: the metadata belongs to store %q, not to %s: %w", ErrDamaged, uuid, e.info.UUID, errors.Join(err, nil))
	}
	if err := e.meta.Groups(func(slot uint16, g meta.Group) (bool, error) { e.groups[slot] = &g; return true, nil }); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.groups[0] == nil {
		return fmt.Errorf("%w: it has no group 0", ErrDamaged)
	}
	if err := e.meta.Refs(func(r meta.Ref) (bool, error) { e.refs.load(r); return true, nil }); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return e.loadFreeSpace()
}

// markInUse makes the superblock say that the store is in use, before the first change of the state since it was opened is committed: who
// finds that mark later knows that the bitmap is old, and that there was a log. A store that is opened in vain, as its log is
// damaged, or only read, stays one that was closed properly.
func (e *Engine) markInUse() error {
	if e.marked.Load() {
		return nil
	}
	e.markMu.Lock()
	defer e.markMu.Unlock()
	if e.marked.Load() {
		return nil
	}
	if err := e.img.UpdateSuper(func(s *layout.Superblock) { s.Clean = false }); err != nil {
		return e.fail(err)
	}
	e.marked.Store(true)
	return nil
}

// InUse tells whether the store has been changed since it was last closed properly, or since it was made, by this program or by one that
// crashed. Then it has, or had, a log.
func (e *Engine) InUse() bool { return layout.InUse(e.img.Super()) }

func (e *Engine) loadFreeSpace() error {
	s := e.img.Super()
	if s.Clean {
		id, err := e.meta.Fact(factClean)
		if err == nil && len(id) == 8 && binary.LittleEndian.Uint64(id) == s.CleanID {
			crc := uint32(0)
			a, err := alloc.LoadBitmap(s.DataEnd(), s.DataStart, func(page uint64, dst []byte) error {
				if err := e.img.ReadBitmapPage(page, dst); err != nil {
					return err
				}
				crc = image.BitmapCRC(crc, dst)
				return nil
			})
			if err == nil && crc == s.BitmapCRC {
				e.alloc = a
				return nil
			}
			e.log.WithError(err).Warn("the bitmap is damaged; free space is computed from the extents")
		}
	}
	start := time.Now()
	b := alloc.NewBuilder(s.DataEnd(), s.DataStart)
	extents := 0
	err := e.meta.AllExtents(func(ino meta.Ino, x meta.Extent) (bool, error) {
		extents++
		for at := x.Phys; at < x.Phys+x.Count; {
			shared, n := e.refs.sharedPrefix(at, x.Phys+x.Count-at)
			if err := b.Use(alloc.Extent{Start: at, Count: n}, shared); err != nil {
				return false, fmt.Errorf("%w: inode %d, file block %d: %w; run vde fsck", ErrDamaged, ino, x.FileBlock, err)
			}
			at += n
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if e.alloc, err = b.Build(); err != nil {
		return err
	}
	if extents == 0 && e.groups[0].Applied == 0 {
		return nil // never used, or not for long
	}
	e.log.WithFields(logrus.Fields{"extents": extents, "took": time.Since(start).Round(time.Millisecond)}).
		Info("store was not closed cleanly; free space computed from the extents")
	return nil
}

// closeClean makes the bitmap true and says so in the superblock.
func (e *Engine) closeClean() error {
	if err := e.Checkpoint(); err != nil {
		return err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("make a clean id: %w", err)
	}
	b := e.meta.NewBatch()
	b.SetFact(factClean, id[:])
	if err := b.Commit(); err != nil {
		return err
	}
	if err := e.meta.Flush(); err != nil {
		return err
	}
	crc := uint32(0)
	err := e.alloc.WriteBitmap(func(page uint64, data []byte) error {
		crc = image.BitmapCRC(crc, data)
		return e.img.WriteBitmapPage(page, data)
	})
	if err != nil {
		return err
	}
	if err := e.img.Sync(); err != nil {
		return err
	}
	return e.img.UpdateSuper(func(s *layout.Superblock) {
		s.Clean, s.BitmapCRC, s.CleanID = true, crc, binary.LittleEndian.Uint64(id[:])
	})
}

// coalesce sorts extents and joins neighbours.
func coalesce(x []alloc.Extent) []alloc.Extent {
	slices.SortFunc(x, func(a, b alloc.Extent) int { return cmp.Compare(a.Start, b.Start) })
	out := x[:0]
	for _, e := range x {
		if n := len(out); n > 0 && out[n-1].Start+out[n-1].Count == e.Start {
			out[n-1].Count += e.Count
		} else {
			out = append(out, e)
		}
	}
	return out
}

// discardMin is the smallest run of blocks worth a system call to give back to the disk below.
const discardMin = 16

// discard gives freed blocks back to the disk below. They are free whether it works or not.
func (e *Engine) discard(x []alloc.Extent) {
	for _, r := range x {
		if r.Count < discardMin {
			continue
		}
		if err := e.img.Punch(r.Start, r.Count); err != nil {
			if !errors.Is(err, unix.EOPNOTSUPP) {
				e.log.WithError(err).WithField("block", r.Start).Debug("discard failed")
			}
			return
		}
	}
}
