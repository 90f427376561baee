// Package meta keeps inodes, directory entries, extents, attributes and reference counts as Pebble keys; keys.go
// draws the key space. It knows nothing of the image or of logs: who writes makes one batch per change and says in it
// how far the log has been applied, so that state and mark can never part.
package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrNotFound tells that there is no such inode, entry, attribute or state.
var ErrNotFound = errors.New("not found")

// Options for Open.
type Options struct {
	FS vfs.FS
	// Barrier is called before anything in the store may become durable (R1). It must not call the store.
	Barrier func() error
	// CacheSize bounds the memory for blocks read from disk, in bytes (default 64 MiB).
	CacheSize int64
	// MemTableSize bounds one memory table, in bytes (default 32 MiB).
	MemTableSize uint64
	Logger       pebble.Logger
	// OnError is told once why the store has stopped: something could not be written, or the barrier failed. From then on
	// nothing becomes durable; commits into memory and reads go on, and Flush and Close return at once.
	OnError func(error)
	// OnFlush is told when a flush has ended.
	OnFlush func()
	// Create makes a new store; without it a missing one is an error.
	Create bool
	// ReadOnly refuses every write; for tools that only look.
	ReadOnly bool
}

// Store is an open key space. All methods may be called concurrently.
type Store struct {
	db       *pebble.DB
	gate     *gate
	versions *versions
	fs       vfs.FS
	dir      string
	readers  sstable.ReaderOptions // for tables that are read apart from db
}

// Open opens the store in dir.
func Open(dir string, o Options) (*Store, error) {
	if o.CacheSize == 0 {
		o.CacheSize = 64 << 20
	}
	if o.MemTableSize == 0 {
		o.MemTableSize = 32 << 20
	}
	cache := pebble.NewCache(o.CacheSize)
	defer cache.Unref()
	g, versions := newGate(o.Barrier, o.OnError), newVersions()
	opts := &pebble.Options{
		FS:               gateFS{o.FS, g},
		Cache:            cache,
		DisableWAL:       true,
		ErrorIfNotExists: !o.Create,
		ReadOnly:         o.ReadOnly,
		Logger:           o.Logger,
		MemTableSize:     o.MemTableSize,
		// A commit must never wait for a flush: the flush waits, in the barrier, for work that a commit has begun
		// (see the engine's settle). The engine holds writers back itself, outside of every lock.
		MemTableStopWritesThreshold: 1 << 20,
		L0StopWritesThreshold:       1 << 20,
		L0CompactionThreshold:       4,
		LBaseMaxBytes:               64 << 20,
		FormatMajorVersion:          pebble.FormatNewest,
		EventListener: &pebble.EventListener{
			BackgroundError: g.fail,
			// A damaged table is an error of whoever reads it; Pebble's own answer would be to end the process.
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				if o.Logger != nil {
					o.Logger.Errorf("damaged metadata table %s: %v", info.Path, Words(info.Details))
				}
			},
			FlushEnd: func(info pebble.FlushInfo) {
				versions.ended(time.Now(), info.TotalDuration)
				if o.OnFlush != nil && info.Err == nil {
					o.OnFlush()
				}
			},
		},
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		opts.Levels[i].FilterType = pebble.TableFilter
	}
	if !o.ReadOnly {
		if err := DropOptions(o.FS, dir); err != nil {
			return nil, fmt.Errorf("open metadata in %s: %w", dir, err)
		}
	}
	var db *pebble.DB
	err := g.await(func() (err error) { db, err = pebble.Open(dir, opts); return err })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open metadata in %s: %w", dir, damageOfOpen(Words(err))), g.abandon())
	}
	return &Store{db: db, gate: g, versions: versions, fs: o.FS, dir: dir, readers: opts.MakeReaderOptions()}, nil
}

// DropOptions removes the files in which Pebble notes its options, from a store that is not open. They are given anew whenever it is
// opened, so nothing depends on the notes, but Pebble reads the last of them, and one that is cut off or changed would keep it from opening.
func DropOptions(f vfs.FS, dir string) error {
	names, err := f.List(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // said by who opens it
		}
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "OPTIONS-") {
			if err := f.Remove(f.PathJoin(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// IsDamage reports whether an error of Open, or of reading, says that the files are not what was written: a part of them is missing, cut off
// or changed. Errors of the disk, of permissions and the like are not damage.
func IsDamage(err error) bool {
	if err == nil {
		return false
	}
	return pebble.IsCorruptionError(err) || errors.Is(err, ErrDecode) || errors.Is(err, errDamaged)
}

var errDamaged = errors.New("meta: damaged")

// damageOfOpen marks what keeps Pebble from opening its files as damage, where the operating system has nothing to do with it: Pebble
// does not say so of each file that is missing or does not make sense.
func damageOfOpen(err error) error {
	var path *fs.PathError
	var errno syscall.Errno
	if (errors.As(err, &path) || errors.As(err, &errno)) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return &damage{err}
}

// damage is an error that IsDamage knows. It reads as the error itself.
type damage struct{ error }

func (d *damage) Unwrap() []error { return []error{errDamaged, d.error} }

// Close closes the store. What was not flushed is not in it: the log has it. Of a store that has stopped it leaves the
// goroutines that are parked, with the files and the memory that they hold.
func (s *Store) Close() error {
	if s.gate.failed() == nil {
		if err := s.gate.await(s.db.Close); s.gate.failed() == nil {
			return err
		}
	}
	return s.gate.abandon()
}

// Flush makes everything committed before the call durable, through the barrier.
func (s *Store) Flush() error {
	if err := s.gate.failed(); err != nil {
		return err
	}
	return s.gate.await(s.db.Flush)
}

// committed counts the changes of a batch, and begins a flush if the table in memory has too many versions of a key. It does not wait.
func (s *Store) committed(slots []uint16) {
	if len(slots) == 0 || s.gate.failed() != nil || !s.versions.add(slots, time.Now()) {
		return
	}
	if _, err := s.db.AsyncFlush(); err != nil {
		s.versions.ended(time.Now(), 0) // it did not begin
	}
}

// Unflushed is the size of the tables in memory, in bytes, what was reserved for changes to come included. Pebble counts with the lock of its
// MANIFEST, so the call may wait for a flush; in a store that stops meanwhile it returns why.
func (s *Store) Unflushed() (bytes int64, err error) {
	if err := s.gate.failed(); err != nil {
		return 0, err
	}
	size := make(chan int64, 1)
	if err := s.gate.await(func() error {
		size <- int64(s.db.Metrics().MemTable.Size)
		return nil
	}); err != nil {
		return 0, err
	}
	return <-size, nil
}

// get calls use with a value while it is valid.
func (s *Store) get(key []byte, use func([]byte) error) error {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("read metadata: %w", Words(err))
	}
	return errors.Join(use(v), closer.Close())
}

// Inode reads an inode.
func (s *Store) Inode(ino Ino) (in Inode, err error) {
	err = s.get(inodeKey(ino), func(v []byte) (err error) { in, err = DecodeInode(ino, v); return err })
	return in, err
}

// Dirent reads an entry of a directory.
func (s *Store) Dirent(dir Ino, name string) (e Dirent, err error) {
	err = s.get(direntKey(dir, name), func(v []byte) (err error) { e, err = DecodeDirent(name, v); return err })
	return e, err
}

// Xattr reads the value of an extended attribute; the caller owns it.
func (s *Store) Xattr(ino Ino, name string) (value []byte, err error) {
	err = s.get(xattrKey(ino, name), func(v []byte) error { value = append([]byte{}, v...); return nil })
	return value, err
}

// Group reads the state of a group.
func (s *Store) Group(slot uint16) (g Group, err error) {
	err = s.get(groupKey(slot), func(v []byte) (err error) { g, err = DecodeGroup(slot, v); return err })
	return g, err
}

// GroupFact reads a fact of a group; the caller owns it.
func (s *Store) GroupFact(slot uint16, name string) (value []byte, err error) {
	err = s.get(factKey(slot, name), func(v []byte) error { value = append([]byte{}, v...); return nil })
	return value, err
}

// GroupFacts yields the facts of a group whose names begin with prefix, by name in byte order, until yield returns
// false. The value is valid during the call only.
func (s *Store) GroupFacts(slot uint16, prefix string, yield func(name string, value []byte) (bool, error)) error {
	p := factKey(slot, prefix)
	return s.scan(p, after(p), func(k, v []byte) (bool, error) { return yield(string(k[factKeySz:]), v) })
}

// Groups yields the state of every group, by slot.
func (s *Store) Groups(yield func(slot uint16, g Group) (bool, error)) error {
	return s.scan([]byte{kGroup}, []byte{kGroup + 1}, func(k, v []byte) (bool, error) {
		key, err := DecodeKey(k)
		if err != nil {
			return false, err
		}
		g, err := DecodeGroup(uint16(key.Number), v)
		if err != nil {
			return false, err
		}
		return yield(uint16(key.Number), g)
	})
}

// Fact reads a store-wide fact.
func (s *Store) Fact(name string) (value []byte, err error) {
	err = s.get(storeKey(name), func(v []byte) error { value = append([]byte{}, v...); return nil })
	return value, err
}

// scan calls visit for the keys in [lower, upper) until it returns false.
func (s *Store) scan(lower, upper []byte, visit func(key, value []byte) (bool, error)) error {
	return scan(s.db, lower, upper, visit)
}

func scan(r pebble.Reader, lower, upper []byte, visit func(key, value []byte) (bool, error)) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("read metadata: %w", Words(err))
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		more := false
		if err == nil {
			more, err = visit(it.Key(), v)
		}
		if err != nil {
			return Words(errors.Join(err, it.Close()))
		}
		if !more {
			break
		}
	}
	return Words(errors.Join(it.Error(), it.Close()))
}

// Dirents yields the entries of a directory after a cookie, in cookie order, until yield returns false.
func (s *Store) Dirents(dir Ino, afterCookie uint64, yield func(Dirent) (bool, error)) error {
	if afterCookie == ^uint64(0) {
		return nil
	}
	return s.scan(cookieKey(dir, afterCookie+1), after(inoKey(kCookie, dir)), func(k, v []byte) (bool, error) {
		e, err := DecodeCookie(binary.BigEndian.Uint64(k[keyInoSz:]), v)
		if err != nil {
			return false, fmt.Errorf("directory %d: %w", dir, err)
		}
		return yield(e)
	})
}

// AllDirents yields every entry of the store, by directory and name.
func (s *Store) AllDirents(yield func(dir Ino, e Dirent) (bool, error)) error {
	return s.scan([]byte{kDirent}, []byte{kDirent + 1}, func(k, v []byte) (bool, error) {
		key, err := DecodeKey(k)
		if err != nil {
			return false, err
		}
		e, err := DecodeDirent(key.Name, v)
		if err != nil {
			return false, fmt.Errorf("directory %d: %w", key.Ino, err)
		}
		return yield(key.Ino, e)
	})
}

// Xattrs yields the names of the extended attributes of an inode in byte order.
func (s *Store) Xattrs(ino Ino, yield func(name string, value []byte) (bool, error)) error {
	p := inoKey(kXattr, ino)
	return s.scan(p, after(p), func(k, v []byte) (bool, error) { return yield(string(k[keyInoSz:]), v) })
}

// Extents yields, in file order, the extents of an inode that touch the file blocks [start, end).
func (s *Store) Extents(ino Ino, start, end uint64, yield func(Extent) (bool, error)) error {
	if start >= end {
		return nil
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: inoKey(kExtent, ino), UpperBound: extentKey(ino, end)})
	if err != nil {
		return fmt.Errorf("read extents of inode %d: %w", ino, Words(err))
	}
	decode := func() (Extent, error) {
		v, err := it.ValueAndErr()
		if err != nil {
			return Extent{}, Words(err)
		}
		e, err := DecodeExtent(binary.BigEndian.Uint64(it.Key()[keyInoSz:]), v)
		if err != nil {
			return e, fmt.Errorf("inode %d: %w", ino, err)
		}
		return e, nil
	}
	// The extent that begins before start may reach into the range.
	ok := start > 0 && it.SeekLT(extentKey(ino, start+1))
	if ok {
		e, err := decode()
		if err != nil {
			return errors.Join(err, it.Close())
		}
		if e.End() <= start {
			ok = it.Next()
		}
	} else {
		ok = it.First()
	}
	for ; ok; ok = it.Next() {
		e, err := decode()
		more := false
		if err == nil {
			more, err = yield(e)
		}
		if err != nil {
			return Words(errors.Join(err, it.Close()))
		}
		if !more {
			break
		}
	}
	return Words(errors.Join(it.Error(), it.Close()))
}

// LastExtent returns the extent with the highest file block below end.
func (s *Store) LastExtent(ino Ino, end uint64) (e Extent, found bool, err error) {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: inoKey(kExtent, ino), UpperBound: extentKey(ino, end)})
	if err != nil {
		return e, false, fmt.Errorf("read extents of inode %d: %w", ino, Words(err))
	}
	if it.Last() {
		var v []byte
		if v, err = it.ValueAndErr(); err == nil {
			e, err = DecodeExtent(binary.BigEndian.Uint64(it.Key()[keyInoSz:]), v)
			found = err == nil
		}
	}
	return e, found, Words(errors.Join(err, it.Error(), it.Close()))
}

// Orphans yields the inodes without a name of a group.
func (s *Store) Orphans(group uint16, yield func(Ino) (bool, error)) error {
	return s.scan(orphanKey(MakeIno(group, 0)), orphanKey(MakeIno(group, 1<<seqBits-1)), func(k, _ []byte) (bool, error) {
		return yield(Ino(binary.BigEndian.Uint64(k[1:])))
	})
}

// AllExtents yields every extent of the store, by inode and file block.
func (s *Store) AllExtents(yield func(Ino, Extent) (bool, error)) error {
	return s.scanExtents([]byte{kExtent}, []byte{kExtent + 1}, yield)
}

func (s *Store) scanExtents(lower, upper []byte, yield func(Ino, Extent) (bool, error)) error {
	return scan(s.db, lower, upper, func(k, v []byte) (bool, error) {
		key, err := DecodeKey(k)
		if err != nil {
			return false, err
		}
		e, err := DecodeExtent(key.Number, v)
		if err != nil {
			return false, fmt.Errorf("inode %d: %w", key.Ino, err)
		}
		return yield(key.Ino, e)
	})
}

// Refs yields every reference count of the store, by block.
func (s *Store) Refs(yield func(Ref) (bool, error)) error { return scanRefs(s.db, yield) }

func scanRefs(r pebble.Reader, yield func(Ref) (bool, error)) error {
	return scan(r, []byte{kRef}, []byte{kRef + 1}, func(k, v []byte) (bool, error) {
		key, err := DecodeKey(k)
		if err != nil {
			return false, err
		}
		r, err := DecodeRef(key.Number, v)
		if err != nil {
			return false, err
		}
		return yield(r)
	})
}

// Walk yields every key and value of the store, raw, for tools that check or dump it. The slices are valid during
// the call only.
func (s *Store) Walk(yield func(key, value []byte) (bool, error)) error {
	return s.scan(nil, nil, yield)
}
