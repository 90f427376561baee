package check

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// fixer makes the repairs of one stage. Changes of inodes and groups are collected, so that several fixes of one inode
// add up; all of it becomes durable at once.
type fixer struct {
	p      *pass
	run    *run
	store  *meta.Store
	batch  *meta.Batch
	inodes map[meta.Ino]*meta.Inode
	groups map[uint16]*meta.Group
	lost   *meta.Inode // /lost+found, once it is needed
	now    meta.Time

	refsDone, superDone, bitmapDone bool
}

// apply makes repairs and makes them durable.
func (r *run) apply(p *pass, fixes []finding) (err error) {
	f := &fixer{
		p: p, run: r, inodes: map[meta.Ino]*meta.Inode{}, groups: map[uint16]*meta.Group{},
		now: meta.TimeOf(time.Now()),
	}
	onlyImage := true
	for _, x := range fixes {
		onlyImage = onlyImage && x.alone
	}
	if !onlyImage {
		fs := r.o.FS
		f.store, err = meta.Open(fs.PathJoin(r.dir, metaName), meta.Options{
			FS: fs, Barrier: func() error { return nil }, Logger: pebbleLogger{r.o.Logger},
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.store.Close()) }()
		f.batch = f.store.NewBatch()
	}
	for i, x := range fixes {
		r.o.Progress(uint64(i), uint64(len(fixes)), "repairs")
		if err := x.fix(f); err != nil {
			err = fmt.Errorf("%s: %w", x.What, err)
			if f.batch != nil {
				err = errors.Join(err, f.batch.Close())
			}
			return err
		}
	}
	if f.store == nil {
		return nil
	}
	for _, in := range f.inodes {
		f.batch.SetInode(in)
	}
	for slot, g := range f.groups {
		f.batch.SetGroup(slot, *g)
	}
	if err := f.batch.Commit(); err != nil {
		return err
	}
	return f.store.Flush()
}

// inode returns an inode to be changed.
func (f *fixer) inode(ino meta.Ino) (*meta.Inode, error) {
	if in := f.inodes[ino]; in != nil {
		return in, nil
	}
	in, err := f.store.Inode(ino)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	f.inodes[ino] = &in
	return &in, nil
}

func (f *fixer) change(ino meta.Ino, change func(*meta.Inode)) error {
	in, err := f.inode(ino)
	if err == nil {
		change(in)
	}
	return err
}

// group returns the state of a group to be changed.
func (f *fixer) group(slot uint16) (*meta.Group, error) {
	if g := f.groups[slot]; g != nil {
		return g, nil
	}
	g, err := f.store.Group(slot)
	if err != nil {
		return nil, fmt.Errorf("group %d: %w", slot, err)
	}
	f.groups[slot] = &g
	return &g, nil
}

// nextPlace returns a free place of a directory.
func (f *fixer) nextPlace(dir meta.Ino) (uint64, error) {
	in, err := f.inode(dir)
	if err != nil {
		return 0, err
	}
	next := max(in.NextCookie, firstCookie)
	if i := f.p.find(dir); i >= 0 && f.p.inodes[i].dir >= 0 {
		if most := f.p.dirs[f.p.inodes[i].dir].maxCookie; most < math.MaxUint64 {
			next = max(next, most+1)
		}
	}
	in.NextCookie = next + 1
	return next, nil
}

// move gives an entry another place.
func (f *fixer) move(e named) error {
	place, err := f.nextPlace(e.dir)
	if err != nil {
		return err
	}
	// The record at the old place may be another entry's: if it is, it is kept.
	old, err := f.placeOf(e.dir, e.Cookie)
	if err != nil {
		return err
	}
	f.batch.DeleteDirent(e.dir, e.Dirent)
	if old.Ino != 0 && old.Name != e.Name {
		f.batch.SetDirent(e.dir, old)
	}
	e.Cookie = place
	f.batch.SetDirent(e.dir, e.Dirent)
	return nil
}

// placeOf reads the record at a place of a directory; Ino is 0 if there is none.
func (f *fixer) placeOf(dir meta.Ino, cookie uint64) (found meta.Dirent, err error) {
	after := cookie - 1
	if cookie == 0 {
		return found, nil // nothing lists what is there
	}
	err = f.store.Dirents(dir, after, func(e meta.Dirent) (bool, error) {
		if e.Cookie == cookie {
			found = e
		}
		return false, nil
	})
	return found, err
}

// rename gives an entry with an impossible name one that says where it was.
func (f *fixer) rename(e named) error {
	f.batch.DeleteDirent(e.dir, e.Dirent)
	for n := e.Cookie; ; n++ {
		e.Name = fmt.Sprintf("#name-%d", n)
		_, err := f.store.Dirent(e.dir, e.Name)
		if errors.Is(err, meta.ErrNotFound) {
			break
		}
		if err != nil {
			return err
		}
	}
	f.batch.SetDirent(e.dir, e.Dirent)
	return nil
}

// drop removes an entry. What it names is not touched.
func (f *fixer) drop(e named) error {
	f.batch.DeleteDirent(e.dir, e.Dirent)
	in, err := f.inode(e.dir)
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if in.Size > 0 {
		in.Size--
	}
	if e.Type == unix.S_IFDIR && in.Nlink > 2 {
		in.Nlink--
	}
	return nil
}

// entriesOf lists all entries that name an inode.
func (f *fixer) entriesOf(ino meta.Ino) (out []named, err error) {
	err = f.store.Walk(func(key, value []byte) (bool, error) {
		k, err := meta.DecodeKey(key)
		if err != nil || k.Kind != 'd' {
			return err != nil || k.Kind < 'd', nil // keys come in order of their letters
		}
		if e, err := meta.DecodeDirent(k.Name, value); err == nil && e.Ino == ino {
			out = append(out, named{k.Ino, e})
		}
		return true, nil
	})
	return out, err
}

// oneName leaves a directory the one name that it says to have, or else the first.
func (f *fixer) oneName(ino meta.Ino) error {
	in, err := f.inode(ino)
	if err != nil {
		return err
	}
	all, err := f.entriesOf(ino)
	if err != nil || len(all) < 2 {
		return err
	}
	keep := 0
	for i, e := range all {
		if e.dir == in.Parent {
			keep = i
			break
		}
	}
	for i, e := range all {
		if i == keep {
			in.Parent = e.dir
		} else if err := f.drop(e); err != nil {
			return err
		}
	}
	return nil
}

// unname takes all names from a directory, so that it is attached in the next stage.
func (f *fixer) unname(ino meta.Ino) error {
	all, err := f.entriesOf(ino)
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := f.drop(e); err != nil {
			return err
		}
	}
	return nil
}

const lostFound = "lost+found"

// lostAndFound returns the directory for what has lost its name, and makes it if need be.
func (f *fixer) lostAndFound() (*meta.Inode, error) {
	if f.lost != nil {
		return f.lost, nil
	}
	for n := 0; ; n++ {
		name := lostFound
		if n > 0 {
			name = fmt.Sprintf("%s.%d", lostFound, n)
		}
		e, err := f.store.Dirent(meta.RootIno, name)
		switch {
		case errors.Is(err, meta.ErrNotFound):
			f.lost, err = f.makeDir(meta.RootIno, name)
			return f.lost, err
		case err != nil:
			return nil, err
		case e.Type == unix.S_IFDIR:
			f.lost, err = f.inode(e.Ino)
			return f.lost, err
		}
		// Something else has that name.
	}
}

// makeDir makes a directory that only its owner, the parent's, may enter.
func (f *fixer) makeDir(parent meta.Ino, name string) (*meta.Inode, error) {
	p, err := f.inode(parent)
	if err != nil {
		return nil, err
	}
	g, err := f.group(parent.Group())
	if err != nil {
		return nil, err
	}
	in := f.newInode(meta.MakeIno(parent.Group(), g.NextSeq), unix.S_IFDIR|0o700)
	g.NextSeq++
	g.Inodes++
	in.Nlink, in.Parent, in.UID, in.GID = 2, parent, p.UID, p.GID
	return in, f.enter(p, name, in)
}

// newInode makes an inode of a number. It has no name yet.
func (f *fixer) newInode(ino meta.Ino, mode uint32) *meta.Inode {
	in := &meta.Inode{Ino: ino, Mode: mode, NextCookie: firstCookie, Atime: f.now, Mtime: f.now, Ctime: f.now, Btime: f.now}
	f.inodes[ino] = in
	return in
}

// enter adds an entry to a directory.
func (f *fixer) enter(dir *meta.Inode, name string, in *meta.Inode) error {
	place, err := f.nextPlace(dir.Ino)
	if err != nil {
		return err
	}
	f.batch.SetDirent(dir.Ino, meta.Dirent{Name: name, Ino: in.Ino, Type: in.Mode & unix.S_IFMT, Cookie: place})
	dir.Size++
	dir.Version++
	dir.Mtime, dir.Ctime = f.now, f.now
	if in.Mode&unix.S_IFMT == unix.S_IFDIR {
		dir.Nlink++
	}
	return nil
}

// attach gives an inode without a name one in /lost+found.
func (f *fixer) attach(ino meta.Ino) error {
	lost, err := f.lostAndFound()
	if err != nil {
		return err
	}
	in, err := f.inode(ino)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("#%d", ino)
	for n := 1; ; n++ {
		_, err := f.store.Dirent(lost.Ino, name)
		if errors.Is(err, meta.ErrNotFound) {
			break
		}
		if err != nil {
			return err
		}
		name = fmt.Sprintf("#%d.%d", ino, n)
	}
	if err := f.enter(lost, name, in); err != nil {
		return err
	}
	f.batch.DeleteOrphan(ino)
	if in.Mode&unix.S_IFMT == unix.S_IFDIR {
		in.Parent = lost.Ino
		if i := f.p.find(ino); i >= 0 && f.p.inodes[i].dir >= 0 {
			in.Nlink = 2 + f.p.dirs[f.p.inodes[i].dir].subdirs
		}
	} else {
		in.Nlink = 1
	}
	in.Flags &^= meta.FlagLinkable
	in.Ctime = f.now
	return nil
}

// remake makes an inode for what belongs to one that is lost. If no entry names it, it is attached in a later stage.
func (f *fixer) remake(ino meta.Ino, m *missing) error {
	g, err := f.group(ino.Group())
	if err != nil {
		return err
	}
	root, err := f.inode(meta.RootIno)
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	isDir := m.typ == unix.S_IFDIR || m.typ == 0 && (m.entries > 0 || m.maxCookie > 0)
	mode := uint32(unix.S_IFREG | 0o600)
	if isDir {
		mode = unix.S_IFDIR | 0o700
	}
	in := f.newInode(ino, mode)
	if root != nil {
		in.UID, in.GID = root.UID, root.GID
	}
	in.Nlink = 1
	in.Blocks = m.blocks
	if isDir {
		in.Nlink, in.Size, in.NextCookie, in.Parent = 2+m.subdirs, m.entries, max(m.maxCookie+1, firstCookie), m.parent
	} else {
		in.Size = m.end * layout.BlockSize // the end within the last block is lost
	}
	if ino == meta.RootIno {
		in.Mode, in.Parent = unix.S_IFDIR|0o755, ino
	}
	if m.xattrs > 0 {
		in.Flags |= meta.FlagXattr
	}
	g.Inodes = max(g.Inodes, f.p.groups[ino.Group()].count+1)
	return nil
}

// rewriteRefs makes the reference counts what the extents say.
func (f *fixer) rewriteRefs() error {
	if f.refsDone {
		return nil
	}
	f.refsDone = true
	for _, r := range f.p.refs {
		f.batch.DeleteRef(r.Phys)
	}
	for _, s := range f.p.shared {
		f.batch.SetRef(meta.Ref{Phys: s.start, Count: s.end - s.start, Refs: s.count})
	}
	return nil
}

// rewriteSuper writes both superblocks anew.
func (f *fixer) rewriteSuper() error {
	if f.superDone || !f.p.image.known {
		return nil
	}
	f.superDone = true
	return f.withImage(func(file vfs.File) error { return f.writeSupers(file, f.p.image.super) })
}

// rewriteBitmap makes the bitmap what the extents say, and the superblocks tell so.
func (f *fixer) rewriteBitmap() error {
	im := f.p.image
	if f.bitmapDone || !im.known {
		return nil
	}
	f.bitmapDone, f.superDone = true, true
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("make a clean id: %w", err)
	}
	return f.withImage(func(file vfs.File) error {
		// Until all is done the bitmap is not to be used.
		super := im.super
		super.Clean = false
		super.Generation++
		if err := f.writeSupers(file, super); err != nil {
			return err
		}
		crc := uint32(0)
		for i := range super.ChecksumStart - super.BitmapStart {
			page := f.p.bitmapPage(i, super)
			crc = crc32.Update(crc, layout.Castagnoli, page)
			if _, err := file.WriteAt(page, int64((super.BitmapStart+i)*layout.BlockSize)); err != nil {
				return fmt.Errorf("write the bitmap: %w", err)
			}
		}
		if err := file.SyncData(); err != nil {
			return fmt.Errorf("sync the bitmap: %w", err)
		}
		b := f.store.NewBatch()
		b.SetFact(factClean, id[:])
		if err := b.Commit(); err != nil {
			return err
		}
		if err := f.store.Flush(); err != nil {
			return err
		}
		super.Clean, super.BitmapCRC, super.CleanID = true, crc, binary.LittleEndian.Uint64(id[:])
		return f.writeSupers(file, super)
	})
}

func (f *fixer) withImage(do func(vfs.File) error) error {
	im := f.p.image
	file, err := f.run.o.FS.OpenReadWrite(im.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("open %s: %w", im.path, err)
	}
	return errors.Join(do(file), file.Close())
}

// writeSupers writes both copies, one after the other, so that at least one is whole at any time.
func (f *fixer) writeSupers(file vfs.File, s layout.Superblock) error {
	// A store that was never in use goes on saying so (layout.InUse).
	if s.Generation > 0 || s.Clean {
		s.Generation++
	}
	b := s.Encode()
	for _, block := range []uint64{0, s.Blocks - 1} {
		if _, err := file.WriteAt(b, int64(block*layout.BlockSize)); err != nil {
			return fmt.Errorf("write the superblock in block %d: %w", block, err)
		}
		if err := file.SyncData(); err != nil {
			return fmt.Errorf("sync the superblock in block %d: %w", block, err)
		}
	}
	return nil
}
