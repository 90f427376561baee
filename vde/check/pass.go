package check

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"

	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// pass is one look at a whole store, and what it learns on the way. One goroutine.
type pass struct {
	run    *run
	fs     vfs.FS
	counts Report // without its findings
	// incomplete: part of the metadata could not be read, so nothing may be concluded from what is not there.
	incomplete bool
	findings   []finding

	db    *pebble.DB
	image *imageFile

	inodes  []inode // by number
	dirs    []dir
	missing map[meta.Ino]*missing
	groups  map[uint16]*groupUse
	facts   map[string][]byte
	cursor  int // where find looks first
	seed    maphash.Seed

	used, multi, written bitset // blocks that extents map; that several do; that hold data
	refs                 []meta.Ref
	shared               []shared
	overlaps             int
	strayExtents         bool // some extents cannot be right, so it is not known which blocks are in use

	// What operations on two groups have left between their halves, by session and sequence.
	pending, dropped map[string]meta.Ino
	placed, did      map[string]bool
	halfway          map[meta.Ino]uint32 // names that an inode counts and that are not there, or not any more, for that
	halves, apart    uint64              // inodes for which this is all; inodes that other groups are ahead of or behind

	// Found while entries are read, judged when all is known.
	dangling  []named
	nameTwice map[meta.Ino]bool // directories that several entries name
	unequal   []meta.Ino        // directories whose records by name and by place differ
}

// inode is what is kept of an inode while a store is looked at.
type inode struct {
	ino    meta.Ino
	blocks uint64 // as it says
	mapped uint64 // as its extents say
	nlink  uint32 // as it says
	names  uint32 // entries that name it
	dir    int32  // index in dirs; -1: no directory
	typ    uint8  // the S_IFMT bits of its mode, shifted down
	flags  uint8  // as it says
	state  uint8
}

// What inode.state holds.
const (
	isBroken   = 1 << iota // its value cannot be decoded: nothing else is known
	isListed               // in the list of inodes to be freed
	hasXattr               // it has extended attributes
	hasACL                 // one of them is a default ACL
	hasStray               // one of its extents cannot be decoded
	isMarked               // see tree
	isFinished             // see tree
)

// dir is what is kept of a directory beside its inode.
type dir struct {
	in         int32 // index in inodes
	namedIn    int32 // index in inodes of the directory with its entry; -1: none, -2: one that is missing
	size       uint64
	nextCookie uint64
	parent     meta.Ino
	entries    uint64
	places     uint64
	subdirs    uint32
	maxCookie  uint64
	byName     uint64 // sums over the entries: equal if the records agree
	byPlace    uint64
}

// missing is what belongs to an inode that is not there.
type missing struct {
	entries, extents, xattrs uint64
	blocks                   uint64
	end                      uint64 // file block behind the last written extent
	typ                      uint32 // what an entry says it is; 0: none does
	parent                   meta.Ino
	maxCookie                uint64
	subdirs                  uint32
}

// named is an entry of a directory.
type named struct {
	dir meta.Ino
	meta.Dirent
}

// groupUse is what is kept of a group.
type groupUse struct {
	meta.Group
	known  bool // it has a state
	count  uint64
	facts  uint64 // counted when it has no state
	maxSeq uint64
}

// pebbleLogger passes on what the metadata store says, at debug level.
type pebbleLogger struct{ log logrus.FieldLogger }

func (l pebbleLogger) Infof(format string, args ...any)  { l.log.Debugf("metadata: "+format, args...) }
func (l pebbleLogger) Errorf(format string, args ...any) { l.log.Debugf("metadata: "+format, args...) }

// Fatalf is called where Pebble cannot go on; it ends the process.
func (l pebbleLogger) Fatalf(format string, args ...any) { l.log.Fatalf("metadata: "+format, args...) }

// openRead opens the metadata for reading. fs is a scratch: what opening changes stays there.
func openRead(fs *scratchFS, path string, log logrus.FieldLogger) (*pebble.DB, error) {
	if err := meta.DropOptions(fs, path); err != nil {
		return nil, err
	}
	db, err := pebble.Open(path, &pebble.Options{
		FS: fs, ReadOnly: true, ErrorIfNotExists: true, CacheSize: 32 << 20, Logger: pebbleLogger{log},
		// Damage is what is looked for: it comes back as an error, too. Without this, Pebble ends the process.
		EventListener: &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) {}},
	})
	return db, meta.Words(err)
}

// pass looks at the store in fs, without a change of it. An error means that a file could not be read.
func (r *run) pass(fs vfs.FS, data bool) (_ *pass, err error) {
	scratch := newScratchFS(fs) // whatever Pebble does to open a store stays here
	defer func() { err = errors.Join(err, scratch.close()) }()
	p := &pass{
		run: r, fs: scratch, missing: map[meta.Ino]*missing{}, groups: map[uint16]*groupUse{}, facts: map[string][]byte{},
		pending: map[string]meta.Ino{}, dropped: map[string]meta.Ino{}, placed: map[string]bool{}, did: map[string]bool{}, halfway: map[meta.Ino]uint32{},
		nameTwice: map[meta.Ino]bool{}, seed: maphash.MakeSeed(),
	}
	blocks := r.info.Size / layout.BlockSize
	geometry, err := layout.Geometry(blocks)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", r.dir, err)
	}
	p.counts.Blocks = geometry.DataEnd() - geometry.DataStart
	p.used, p.multi, p.written = newBitset(blocks), newBitset(blocks), newBitset(blocks)
	if p.image, err = p.openImage(geometry); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.image.close()) }()

	p.db, err = openRead(scratch, scratch.PathJoin(r.dir, metaName), r.o.Logger)
	if err != nil {
		p.incomplete = true
		p.add(KindMetadata, "meta/ cannot be opened: %v", err)
	} else {
		defer func() { err = errors.Join(err, p.db.Close()) }()
		if err := p.metadata(geometry); err != nil {
			p.incomplete = true
			p.add(KindMetadata, "meta/ cannot be read to its end: %v", err)
		}
	}
	if !p.incomplete {
		p.countHalves()
		p.judgeNames()
		p.judgeInodes()
		p.noteHalves()
		p.judgeGroups()
		if err := p.judgeBlocks(geometry); err != nil {
			return nil, err
		}
	}
	if p.incomplete {
		for i := range p.findings {
			p.findings[i].Repairable = p.findings[i].Repairable && p.findings[i].alone
		}
	}
	if data && p.image.file != nil {
		if err := p.verifyData(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// metadata reads every key.
func (p *pass) metadata(geometry layout.Superblock) error {
	steps := []struct {
		kind byte
		what string
		read func(k meta.Key, v []byte)
	}{
		{'s', "facts", func(k meta.Key, v []byte) { p.facts[k.Name] = slices.Clone(v) }},
		{'g', "groups", p.readGroup},
		{'f', "facts of groups", p.readFact},
		{'i', "inodes", p.readInode},
		{'o', "inodes to be freed", p.readOrphan},
		{'e', "extents", p.extentReader(geometry)},
		{'x', "attributes", p.readXattr},
		{'c', "places", p.readPlace},
		{'d', "names", p.readName},
		{'r', "reference counts", p.readRef},
	}
	for _, s := range steps {
		p.cursor = 0
		if err := p.scan([]byte{s.kind}, []byte{s.kind + 1}, s.what, s.read); err != nil {
			return err
		}
	}
	// What lies between the letters is of no known form.
	kinds := []byte("cdefgiorsx")
	lower := []byte(nil)
	for _, k := range append(kinds, 0) {
		upper := []byte{k}
		if k == 0 {
			upper = nil
		}
		if lower == nil || upper == nil || lower[0] < upper[0] {
			if err := p.scan(lower, upper, "other keys", func(meta.Key, []byte) {}); err != nil {
				return err
			}
		}
		lower = []byte{k + 1}
	}
	return nil
}

// expected is how many keys of a kind there may be, for progress.
func (p *pass) expected() (n uint64) {
	for _, g := range p.groups {
		n += g.Inodes
	}
	return max(n, uint64(len(p.inodes)))
}

const progressEvery = 1 << 14

// scan reads the keys in [lower, upper) and notes those that are of no known form.
func (p *pass) scan(lower, upper []byte, what string, read func(meta.Key, []byte)) error {
	it, err := p.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	n := uint64(0)
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%progressEvery == 0 {
			p.run.o.Progress(n, max(n, p.expected()), what)
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return meta.Words(errors.Join(err, it.Close()))
		}
		k, err := meta.DecodeKey(it.Key())
		if err != nil {
			p.add(KindKey, "%v, its value has %d bytes", err, len(v))
			continue
		}
		read(k, v)
	}
	if n > 0 {
		p.run.o.Progress(n, n, what)
	}
	return meta.Words(errors.Join(it.Error(), it.Close()))
}

// find returns the index of an inode, or -1. Look-ups in order, or near the last one, are quick.
func (p *pass) find(ino meta.Ino) int {
	for i := p.cursor; i < len(p.inodes) && i < p.cursor+2; i++ {
		if p.inodes[i].ino == ino {
			p.cursor = i
			return i
		}
	}
	i, ok := slices.BinarySearchFunc(p.inodes, ino, func(in inode, ino meta.Ino) int { return cmp.Compare(in.ino, ino) })
	if !ok {
		return -1
	}
	p.cursor = i
	return i
}

// lookup is find for targets of entries, which come in another order.
func (p *pass) lookup(ino meta.Ino) int {
	at := p.cursor
	i := p.find(ino)
	p.cursor = at
	return i
}

// lost returns what is known of an inode that is not there.
func (p *pass) lost(ino meta.Ino) *missing {
	m := p.missing[ino]
	if m == nil {
		m = &missing{}
		p.missing[ino] = m
	}
	return m
}

func (p *pass) readGroup(k meta.Key, v []byte) {
	slot := uint16(k.Number)
	g, err := meta.DecodeGroup(slot, v)
	if err != nil {
		p.add(KindValue, "%v", err)
		return
	}
	p.groups[slot] = &groupUse{Group: g, known: true}
	if slot == 0 {
		p.counts.Applied = g.Applied
	}
}

func (p *pass) group(slot uint16) *groupUse {
	g := p.groups[slot]
	if g == nil {
		g = &groupUse{}
		p.groups[slot] = g
	}
	return g
}

func (p *pass) readFact(k meta.Key, v []byte) {
	p.counts.Facts++
	slot := uint16(k.Number)
	if g := p.groups[slot]; g == nil || !g.known {
		p.group(slot).facts++
	}
	if err := meta.CheckFact(k.Name, v); err != nil {
		p.add(KindFact, "group %d: %v", slot, err)
	}
	p.readHalf(k.Name, v)
}

func (p *pass) readOrphan(k meta.Key, _ []byte) {
	i := p.find(k.Ino)
	if i < 0 {
		ino := k.Ino
		p.fixable(KindOrphan, stageCounts, func(f *fixer) error { f.batch.DeleteOrphan(ino); return nil },
			"inode %d is in the list of inodes to be freed, but does not exist", ino)
		return
	}
	p.inodes[i].state |= isListed
}

const aclDefault = "system.posix_acl_default"

func (p *pass) readXattr(k meta.Key, _ []byte) {
	p.counts.Xattrs++
	i := p.find(k.Ino)
	if i < 0 {
		p.lost(k.Ino).xattrs++
		return
	}
	p.inodes[i].state |= hasXattr
	if k.Name == aclDefault {
		p.inodes[i].state |= hasACL
	}
}
