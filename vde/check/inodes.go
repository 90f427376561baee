package check

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"vdefs/vde"
	"vdefs/vde/meta"
)

const (
	typeShift = 12
	typeDir   = unix.S_IFDIR >> typeShift
	typeFile  = unix.S_IFREG >> typeShift
)

// The cookie of the first entry of a directory; those below stand for "." and "..".
const firstCookie = 3

const (
	maxTarget  = 4095
	maxName    = 255
	knownFlags = meta.FlagXattr | meta.FlagDefaultACL | meta.FlagLinkable
)

func (p *pass) readInode(k meta.Key, v []byte) {
	g := p.group(k.Ino.Group())
	g.count++
	g.maxSeq = max(g.maxSeq, k.Ino.Seq())
	p.counts.Inodes++
	in, err := meta.DecodeInode(k.Ino, v)
	if err != nil {
		p.add(KindValue, "%v", err)
		p.inodes = append(p.inodes, inode{ino: k.Ino, dir: -1, state: isBroken})
		return
	}
	x := inode{ino: in.Ino, blocks: in.Blocks, nlink: in.Nlink, dir: -1, typ: uint8(in.Mode & unix.S_IFMT >> typeShift), flags: uint8(in.Flags)}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		p.counts.Files++
	case unix.S_IFDIR:
		p.counts.Dirs++
		x.dir = int32(len(p.dirs))
		p.dirs = append(p.dirs, dir{
			in: int32(len(p.inodes)), namedIn: -1, size: in.Size, nextCookie: in.NextCookie, parent: in.Parent,
		})
	case unix.S_IFLNK:
		p.counts.Symlinks++
	default:
		p.counts.Special++
	}
	p.inodes = append(p.inodes, x)
	p.judgeInode(&in)
}

// judgeInode checks an inode by itself.
func (p *pass) judgeInode(in *meta.Inode) {
	ino := in.Ino
	set := func(change func(*meta.Inode)) func(*fixer) error {
		return func(f *fixer) error { return f.change(ino, change) }
	}
	if ino.Seq() == 0 {
		p.add(KindInode, "inode %d: its number has no sequence part", ino)
	}
	typ := in.Mode & unix.S_IFMT
	switch typ {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		p.add(KindInode, "inode %d: mode %o has no known type", ino, in.Mode)
		p.inodes[len(p.inodes)-1].state |= isBroken
		return
	}
	if in.Mode > math.MaxUint16 {
		p.fixable(KindInode, stageCounts, set(func(in *meta.Inode) { in.Mode &= math.MaxUint16 }),
			"inode %d: mode %o has bits that mean nothing", ino, in.Mode)
	}
	if in.Flags&^knownFlags != 0 {
		p.add(KindInode, "inode %d: unknown flags %#x", ino, in.Flags&^knownFlags)
	}
	if in.Flags&meta.FlagDefaultACL != 0 && typ != unix.S_IFDIR {
		p.fixable(KindInode, stageCounts, set(func(in *meta.Inode) { in.Flags &^= meta.FlagDefaultACL }),
			"inode %d: marked as having a default ACL, but no directory", ino)
	}
	if typ == unix.S_IFREG && in.Size > vde.MaxFileSize {
		p.add(KindInode, "inode %d: size %d is beyond the largest file (%d)", ino, in.Size, uint64(vde.MaxFileSize))
	}
	if typ != unix.S_IFREG && in.Blocks != 0 {
		// judged with the extents, where it is seen whether there are any
		return
	}
	switch {
	case typ != unix.S_IFLNK && in.Target != "":
		p.add(KindInode, "inode %d: a target of %d bytes, but no symlink", ino, len(in.Target))
	case typ == unix.S_IFLNK && (in.Target == "" || len(in.Target) > maxTarget):
		p.add(KindInode, "inode %d: a symlink with a target of %d bytes (1 to %d are possible)", ino, len(in.Target), maxTarget)
	case typ == unix.S_IFLNK && in.Size != uint64(len(in.Target)):
		p.fixable(KindInode, stageCounts, set(func(in *meta.Inode) { in.Size = uint64(len(in.Target)) }),
			"inode %d: size %d, but its target has %d bytes", ino, in.Size, len(in.Target))
	}
	if typ != unix.S_IFCHR && typ != unix.S_IFBLK && in.Rdev != 0 {
		p.fixable(KindInode, stageCounts, set(func(in *meta.Inode) { in.Rdev = 0 }),
			"inode %d: device number %#x, but no device node", ino, in.Rdev)
	}
}

// judgeInodes compares what inodes say with what was found of them.
func (p *pass) judgeInodes() {
	for i := range p.inodes {
		if i%progressEvery == 0 {
			p.run.o.Progress(uint64(i), uint64(len(p.inodes)), "link counts")
		}
		in := &p.inodes[i]
		if in.state&isBroken != 0 {
			continue
		}
		p.judgeLinks(in)
		p.judgeFlags(in)
		if in.blocks != in.mapped && in.state&hasStray == 0 {
			ino, mapped := in.ino, in.mapped
			p.fixable(KindBlocks, stageCounts, func(f *fixer) error {
				return f.change(ino, func(in *meta.Inode) { in.Blocks = mapped })
			}, "inode %d: says that it maps %d blocks, its extents map %d", ino, in.blocks, mapped)
		}
		if in.dir >= 0 {
			p.judgeDir(in, &p.dirs[in.dir])
		}
	}
	p.judgeMissing()
}

// judgeLinks compares an inode's link count and its place among those to be freed with its names.
func (p *pass) judgeLinks(in *inode) {
	ino, isRoot := in.ino, in.ino == meta.RootIno
	if half := p.halfway[ino]; half > 0 && in.dir < 0 && in.nlink == in.names+half && in.state&isListed == 0 {
		p.halves++
		return
	}
	// In a group the count, and the place in the list, are of one piece.
	if whole := (in.nlink == 0) == (in.state&isListed != 0); whole && in.dir < 0 && in.names != in.nlink && p.isApart(ino) {
		return
	}
	if in.names == 0 && !isRoot {
		used := in.dir >= 0 && p.dirs[in.dir].entries > 0
		what := ""
		switch {
		case in.nlink == 0 && in.state&isListed != 0 && !used:
			p.counts.Orphans++
			return
		case in.nlink == 0 && in.state&isListed != 0:
			what = fmt.Sprintf("directory %d has no name and is to be freed, but has %d entries", ino, p.dirs[in.dir].entries)
		case in.nlink == 0:
			what = fmt.Sprintf("inode %d has no name, and is not in the list of inodes to be freed", ino)
		default:
			what = fmt.Sprintf("inode %d has no name, but link count %d", ino, in.nlink)
		}
		p.addFix(finding{
			Finding: Finding{Kind: KindUnnamed, What: what}, stage: stageAttach, numbers: true,
			fix: func(f *fixer) error { return f.attach(ino) },
		})
		return
	}
	if in.state&isListed != 0 {
		p.fixable(KindOrphan, stageCounts, func(f *fixer) error { f.batch.DeleteOrphan(ino); return nil },
			"inode %d has %d names, but is in the list of inodes to be freed", ino, in.names)
	}
	want := in.names
	if in.dir >= 0 {
		want = 2 + p.dirs[in.dir].subdirs
	}
	if in.nlink != want {
		p.fixable(KindLinks, stageCounts, func(f *fixer) error {
			return f.change(ino, func(in *meta.Inode) { in.Nlink = want })
		}, "inode %d: link count %d, should be %d", ino, in.nlink, want)
	}
}

func (p *pass) judgeFlags(in *inode) {
	need := uint32(0)
	if in.state&hasXattr != 0 {
		need |= meta.FlagXattr
	}
	if in.state&hasACL != 0 && in.dir >= 0 {
		need |= meta.FlagDefaultACL
	}
	if lacks := need &^ uint32(in.flags); lacks != 0 {
		ino := in.ino
		p.fixable(KindXattr, stageCounts, func(f *fixer) error {
			return f.change(ino, func(in *meta.Inode) { in.Flags |= lacks })
		}, "inode %d: has extended attributes that its flags do not tell of (%#x lacks %#x)", ino, in.flags, lacks)
	}
}

// judgeDir compares what a directory says of itself with its entries.
func (p *pass) judgeDir(in *inode, d *dir) {
	ino := in.ino
	if d.size != d.entries {
		n := d.entries
		p.fixable(KindSize, stageCounts, func(f *fixer) error {
			return f.change(ino, func(in *meta.Inode) { in.Size = n })
		}, "directory %d: says that it has %d entries, it has %d", ino, d.size, n)
	}
	if d.maxCookie >= d.nextCookie && d.maxCookie != math.MaxUint64 || d.nextCookie < firstCookie {
		next := max(d.maxCookie+1, firstCookie)
		p.fixable(KindCookie, stageCounts, func(f *fixer) error {
			return f.change(ino, func(in *meta.Inode) { in.NextCookie = max(in.NextCookie, next) })
		}, "directory %d: its next entry would get place %d, but places up to %d are in use", ino, d.nextCookie, d.maxCookie)
	}
	parent := meta.Ino(0)
	switch {
	case ino == meta.RootIno:
		parent = ino
	case d.namedIn >= 0 && !p.nameTwice[ino]:
		parent = p.inodes[d.namedIn].ino
	default:
		return
	}
	if d.parent != parent {
		p.fixable(KindParent, stageCounts, func(f *fixer) error {
			return f.change(ino, func(in *meta.Inode) { in.Parent = parent })
		}, "directory %d: says that it is in directory %d, it is in %d", ino, d.parent, parent)
	}
}

// judgeMissing says what belongs to inodes that are not there.
func (p *pass) judgeMissing() {
	if p.find(meta.RootIno) < 0 {
		p.lost(meta.RootIno).typ = unix.S_IFDIR
	} else if in := p.inodes[p.find(meta.RootIno)]; in.dir < 0 && in.state&isBroken == 0 {
		p.add(KindInode, "inode %d is the root, but no directory", in.ino)
	}
	for ino, m := range p.missing {
		what := fmt.Sprintf("inode %d does not exist, but %d entries, %d extents and %d attributes belong to it", ino, m.entries, m.extents, m.xattrs)
		g := p.groups[ino.Group()]
		if ino.Seq() == 0 || g == nil || !g.known {
			p.add(KindMissing, "%s", what)
			continue
		}
		p.addFix(finding{
			Finding: Finding{Kind: KindMissing, What: what}, stage: stageMissing, numbers: true,
			fix: func(f *fixer) error { return f.remake(ino, m) },
		})
	}
}
