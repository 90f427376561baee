package check_test

import (
	"hash/crc32"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vdefs/consensus/logstore"
	"vdefs/fs/replica"
	"vdefs/vde/check"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// damage is one thing that is wrong with a store.
type damage struct {
	name  string
	do    func(t *testing.T, s *sample)
	kinds []check.Kind // of the findings: all of these and no others
	says  string       // part of a finding
	// refused: it is not repaired.
	refused bool
	data    bool // only seen with Data
	// lost are paths that are gone after the repair, found those that have come; all else is as it was.
	lost, found []string
	// changed paths are there, but not as they were.
	changed []string
}

const root = meta.RootIno

// lastBlock is where the second superblock is.
const lastBlock = imageSize - 4096

func flip(t *testing.T, s *sample, path string, off int64) {
	t.Helper()
	b := s.read(t, path)[off : off+1]
	s.write(t, path, off, []byte{b[0] ^ 0xff})
}

func (s *sample) entry(t *testing.T, dir meta.Ino, name string) meta.Dirent {
	t.Helper()
	e, err := meta.DecodeDirent(name, s.get(t, keyName('d', dir, name)))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// link adds an entry, or moves one, without anything else that belongs to it.
func (s *sample) link(t *testing.T, dir meta.Ino, name string, ino meta.Ino, typ uint32, cookie uint64) {
	t.Helper()
	s.set(t, keyName('d', dir, name), valEntry(ino, typ, cookie))
	s.set(t, key('c', uint64(dir), cookie), valPlace(ino, typ, name))
}

func (s *sample) unlink(t *testing.T, dir meta.Ino, name string) meta.Dirent {
	t.Helper()
	e := s.entry(t, dir, name)
	s.del(t, keyName('d', dir, name), key('c', uint64(dir), e.Cookie))
	return e
}

func setExtent(t *testing.T, s *sample, ino meta.Ino, x meta.Extent) {
	t.Helper()
	flags := uint64(0)
	if x.Unwritten {
		flags = 1
	}
	s.set(t, key('e', uint64(ino), x.FileBlock), uvarints(x.Phys, x.Count, flags))
}

func (s *sample) firstRef(t *testing.T) meta.Ref {
	t.Helper()
	phys := s.extents(t, s.copied)[0].Phys
	r, err := meta.DecodeRef(phys, s.get(t, key('r', phys)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// group changes the state of group 0.
func (s *sample) group(t *testing.T, change func(*meta.Group)) {
	t.Helper()
	k := []byte{'g', 0, 0}
	g, err := meta.DecodeGroup(0, s.get(t, k))
	if err != nil {
		t.Fatal(err)
	}
	change(&g)
	s.set(t, k, append([]byte{1}, uvarints(g.Applied, g.Term, g.NextSeq, g.Inodes)...))
}

// bitmap changes the bitmap and makes its checksum right again.
func (s *sample) bitmap(t *testing.T, change func(bits []byte)) {
	t.Helper()
	sb := s.super(t)
	start, end := sb.BitmapStart*4096, sb.ChecksumStart*4096
	bits := slices.Clone(s.read(t, imagePath)[start:end])
	change(bits)
	s.write(t, imagePath, int64(start), bits)
	s.setSuper(t, func(sb *layout.Superblock) { sb.BitmapCRC = crc32.Checksum(bits, layout.Castagnoli) })
}

const lostFile = "/lost+found"

func kinds(k ...check.Kind) []check.Kind { return k }

var damages = []damage{
	// The store's files.
	{name: "first superblock damaged", kinds: kinds(check.KindSuperblock), says: "the first superblock is damaged",
		do: func(t *testing.T, s *sample) { flip(t, s, imagePath, 33) }},
	{name: "last superblock damaged", kinds: kinds(check.KindSuperblock), says: "the last superblock is damaged",
		do: func(t *testing.T, s *sample) { flip(t, s, imagePath, lastBlock+200) }},
	{name: "first superblock overwritten", kinds: kinds(check.KindSuperblock), says: "no superblock",
		do: func(t *testing.T, s *sample) { s.write(t, imagePath, 0, make([]byte, 4096)) }},
	{name: "both superblocks damaged", kinds: kinds(check.KindSuperblock), says: "both superblocks", refused: true,
		do: func(t *testing.T, s *sample) { flip(t, s, imagePath, 33); flip(t, s, imagePath, lastBlock+33) }},
	{name: "superblocks differ", kinds: kinds(check.KindSuperblock), says: "differ",
		do: func(t *testing.T, s *sample) {
			sb := s.super(t)
			sb.Clean = false
			s.write(t, imagePath, lastBlock, sb.Encode())
		}},
	{name: "a superblock is old", kinds: kinds(check.KindSuperblock), says: "generations",
		do: func(t *testing.T, s *sample) {
			sb := s.super(t)
			sb.Generation -= 2
			s.write(t, imagePath, lastBlock, sb.Encode())
		}},
	{name: "image of another store", kinds: kinds(check.KindSuperblock), says: "belongs to store", refused: true,
		do: func(t *testing.T, s *sample) { s.setSuper(t, func(sb *layout.Superblock) { sb.UUID[0] ^= 1 }) }},
	{name: "vde.json damaged", kinds: kinds(check.KindInfo), says: "vde.json",
		do: func(t *testing.T, s *sample) { s.replace(t, infoPath, []byte("{\x00\x00")) }},
	{name: "vde.json and both superblocks damaged", kinds: kinds(check.KindInfo), says: "cannot be made anew", refused: true,
		do: func(t *testing.T, s *sample) {
			s.replace(t, infoPath, nil)
			flip(t, s, imagePath, 33)
			flip(t, s, imagePath, lastBlock+33)
		}},
	{name: "image missing", kinds: kinds(check.KindImage), says: "cannot be opened", refused: true,
		do: func(t *testing.T, s *sample) {
			if err := s.Remove(imagePath); err != nil {
				t.Fatal(err)
			}
		}},
	{name: "image cut off", kinds: kinds(check.KindImage, check.KindSuperblock), says: "vde.json says",
		do: func(t *testing.T, s *sample) { s.replace(t, imagePath, s.read(t, imagePath)[:512<<10]) }},
	{name: "bitmap damaged", kinds: kinds(check.KindBitmap), says: "checksum",
		do: func(t *testing.T, s *sample) { flip(t, s, imagePath, 4096+500) }},
	{name: "bitmap has a used block free", kinds: kinds(check.KindBitmap), says: "1 blocks free that are in use",
		do: func(t *testing.T, s *sample) {
			b := s.extents(t, s.inner)[0].Phys
			s.bitmap(t, func(bits []byte) { bits[b/8] &^= 1 << (b % 8) })
		}},
	{name: "bitmap has free blocks in use", kinds: kinds(check.KindBitmap), says: "8 blocks in use that are free",
		do: func(t *testing.T, s *sample) { s.bitmap(t, func(bits []byte) { bits[20] = 0xff }) }},
	{name: "bitmap of another time", kinds: kinds(check.KindBitmap), says: "not closed together",
		do: func(t *testing.T, s *sample) { s.set(t, []byte("sclean"), make([]byte, 8)) }},
	{name: "a table of the metadata damaged", kinds: kinds(check.KindMetadata), says: "cannot be", refused: true,
		do: func(t *testing.T, s *sample) {
			names, err := s.List(storeDir + "/meta")
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if strings.HasSuffix(n, ".sst") {
					flip(t, s, storeDir+"/meta/"+n, 40)
				}
			}
		}},
	{name: "log damaged", kinds: kinds(check.KindLog), says: "damaged",
		do: func(t *testing.T, s *sample) { flip(t, s, s.logFile(t), 64+30) }},
	{name: "log missing", kinds: kinds(check.KindLog), says: "missing",
		do: func(t *testing.T, s *sample) {
			if err := s.RemoveAll(storeDir + "/raft"); err != nil {
				t.Fatal(err)
			}
		}},
	{name: "log behind the metadata", kinds: kinds(check.KindLog), says: "lost or replaced",
		do: func(t *testing.T, s *sample) { s.group(t, func(g *meta.Group) { g.Applied += 1000 }) }},
	{name: "hard state damaged", kinds: kinds(check.KindLog), says: "hard state",
		do: func(t *testing.T, s *sample) { flip(t, s, storeDir+"/raft/default/state", 20) }},
	{name: "hard state missing", kinds: kinds(check.KindLog), says: "hard state",
		do: func(t *testing.T, s *sample) {
			if err := s.Remove(storeDir + "/raft/default/state"); err != nil {
				t.Fatal(err)
			}
		}},
	{name: "log missing of a store that was not closed", kinds: kinds(check.KindLog), says: "nothing tells how much", refused: true,
		do: func(t *testing.T, s *sample) {
			s.setSuper(t, func(sb *layout.Superblock) { sb.Clean = false })
			if err := s.RemoveAll(storeDir + "/raft"); err != nil {
				t.Fatal(err)
			}
		}},
	{name: "log of a node of a cluster damaged", kinds: kinds(check.KindLog), says: "cluster remove", refused: true,
		do: func(t *testing.T, s *sample) {
			if err := s.MkdirAll(storeDir+"/cluster", 0o700); err != nil {
				t.Fatal(err)
			}
			flip(t, s, s.logFile(t), 64+30)
		}},
	{name: "vde.json missing", kinds: kinds(check.KindInfo), says: "vde.json is missing",
		do: func(t *testing.T, s *sample) {
			if err := s.Remove(infoPath); err != nil {
				t.Fatal(err)
			}
		}},
	{name: "log of another node", kinds: kinds(check.KindLog), says: "of node 7",
		do: func(t *testing.T, s *sample) {
			h, err := logstore.ReadState(s.MemFS, storeDir+"/raft/default")
			if err != nil {
				t.Fatal(err)
			}
			h.NodeID = 7
			if err := logstore.WriteState(s.MemFS, storeDir+"/raft/default", h); err != nil {
				t.Fatal(err)
			}
		}},

	// Single keys.
	{name: "unknown key", kinds: kinds(check.KindKey), says: "no known form", refused: true,
		do: func(t *testing.T, s *sample) { s.set(t, []byte("zebra"), []byte("x")) }},
	{name: "short key", kinds: kinds(check.KindKey), says: "no known form", refused: true,
		do: func(t *testing.T, s *sample) { s.set(t, []byte("e123"), []byte("x")) }},
	{name: "inode undecodable", kinds: kinds(check.KindValue), says: "inode 2", refused: true,
		do: func(t *testing.T, s *sample) { s.set(t, key('i', uint64(s.file)), []byte{1, 2, 3}) }},
	{name: "entry by name undecodable", kinds: kinds(check.KindUnnamed, check.KindValue), says: `entry "fifo" cannot be decoded`,
		do: func(t *testing.T, s *sample) { s.set(t, keyName('d', root, "fifo"), []byte{1}) }},
	{name: "entry by place undecodable", kinds: kinds(check.KindPlace), says: `entry "fifo"`,
		do: func(t *testing.T, s *sample) {
			s.set(t, key('c', uint64(root), s.entry(t, root, "fifo").Cookie), []byte{1})
		}},
	{name: "extent undecodable", kinds: kinds(check.KindValue), says: "extent of file block 0", refused: true,
		do: func(t *testing.T, s *sample) { s.set(t, key('e', uint64(s.inner), 0), []byte{0x80}) }},
	{name: "reference count undecodable", kinds: kinds(check.KindOverlap, check.KindValue), says: "reference count",
		do: func(t *testing.T, s *sample) { s.set(t, key('r', s.firstRef(t).Phys), []byte{1, 1}) }},
	{name: "state of the group undecodable", kinds: kinds(check.KindGroup, check.KindValue), says: "state of group 0", refused: true,
		do: func(t *testing.T, s *sample) { s.set(t, []byte{'g', 0, 0}, []byte{9}) }},

	// Inodes.
	{name: "unknown type", kinds: kinds(check.KindInode), says: "no known type", refused: true,
		do: func(t *testing.T, s *sample) { s.inode(t, s.fifo, func(in *meta.Inode) { in.Mode = 0o150644 }) }},
	{name: "mode with strange bits", kinds: kinds(check.KindInode), says: "bits that mean nothing",
		do: func(t *testing.T, s *sample) { s.inode(t, s.fifo, func(in *meta.Inode) { in.Mode |= 1 << 20 }) }},
	{name: "unknown flags", kinds: kinds(check.KindInode), says: "unknown flags", refused: true,
		do: func(t *testing.T, s *sample) { s.inode(t, s.fifo, func(in *meta.Inode) { in.Flags |= 1 << 20 }) }},
	{name: "size of a symlink", kinds: kinds(check.KindInode), says: "its target has 4 bytes",
		do: func(t *testing.T, s *sample) { s.inode(t, s.symlink, func(in *meta.Inode) { in.Size = 9 }) }},
	{name: "symlink without target", kinds: kinds(check.KindInode), says: "target of 0 bytes", refused: true,
		do: func(t *testing.T, s *sample) {
			s.inode(t, s.symlink, func(in *meta.Inode) { in.Target, in.Size = "", 0 })
		}},
	{name: "device number of a fifo", kinds: kinds(check.KindInode), says: "device number",
		do: func(t *testing.T, s *sample) { s.inode(t, s.fifo, func(in *meta.Inode) { in.Rdev = 3 }) }},
	{name: "file too large", kinds: kinds(check.KindInode), says: "beyond the largest file", refused: true,
		do: func(t *testing.T, s *sample) { s.inode(t, s.inner, func(in *meta.Inode) { in.Size = 1 << 45 }) }},
	{name: "link count of a file", kinds: kinds(check.KindLinks), says: "link count 7, should be 2",
		do: func(t *testing.T, s *sample) { s.inode(t, s.file, func(in *meta.Inode) { in.Nlink = 7 }) }},
	{name: "link count of a directory", kinds: kinds(check.KindLinks), says: "link count 2, should be 3",
		do: func(t *testing.T, s *sample) { s.inode(t, s.sub, func(in *meta.Inode) { in.Nlink = 2 }) }},
	{name: "link count of a named file is 0", kinds: kinds(check.KindLinks), says: "link count 0, should be 1",
		do: func(t *testing.T, s *sample) { s.inode(t, s.inner, func(in *meta.Inode) { in.Nlink = 0 }) }},
	{name: "number of blocks", kinds: kinds(check.KindBlocks), says: "says that it maps 77 blocks, its extents map 8",
		do: func(t *testing.T, s *sample) { s.inode(t, s.prealloc, func(in *meta.Inode) { in.Blocks = 77 }) }},
	{name: "flag of attributes missing", kinds: kinds(check.KindXattr), says: "flags do not tell",
		do: func(t *testing.T, s *sample) {
			s.inode(t, s.file, func(in *meta.Inode) { in.Flags &^= meta.FlagXattr })
		}},
	{name: "flag of default ACL missing", kinds: kinds(check.KindXattr), says: "flags do not tell",
		do: func(t *testing.T, s *sample) {
			s.inode(t, s.sub, func(in *meta.Inode) { in.Flags &^= meta.FlagDefaultACL })
		}},
	{name: "default ACL of a file", kinds: kinds(check.KindInode), says: "default ACL, but no directory",
		do: func(t *testing.T, s *sample) {
			s.inode(t, s.inner, func(in *meta.Inode) { in.Flags |= meta.FlagDefaultACL })
		}},
	{name: "attribute without inode", kinds: kinds(check.KindMissing), says: "1 attributes belong to it", found: []string{lostFile, lostFile + "/#40"},
		do: func(t *testing.T, s *sample) {
			s.group(t, func(g *meta.Group) { g.NextSeq = 50 })
			s.set(t, keyName('x', 40, "user.a"), []byte("b"))
		}},
	{name: "inode without a name", kinds: kinds(check.KindSize, check.KindUnnamed), says: "has no name, but link count 1",
		lost: []string{"/sub/deep/inner"}, found: []string{lostFile, lostFile + "/#{inner}"},
		do: func(t *testing.T, s *sample) { s.unlink(t, s.deep, "inner") }},
	{name: "directory without a name", kinds: kinds(check.KindLinks, check.KindSize, check.KindUnnamed), says: "has no name",
		lost: []string{"/sub/deep", "/sub/deep/inner"}, found: []string{lostFile, lostFile + "/#{deep}", lostFile + "/#{deep}/inner"},
		do: func(t *testing.T, s *sample) { s.unlink(t, s.sub, "deep") }},
	{name: "unlinked inode not listed", kinds: kinds(check.KindSize, check.KindUnnamed), says: "not in the list",
		lost: []string{"/sub/deep/inner"}, found: []string{lostFile, lostFile + "/#{inner}"},
		do: func(t *testing.T, s *sample) {
			s.unlink(t, s.deep, "inner")
			s.inode(t, s.inner, func(in *meta.Inode) { in.Nlink = 0 })
		}},
	{name: "full directory to be freed", kinds: kinds(check.KindLinks, check.KindSize, check.KindUnnamed), says: "is to be freed, but has 1 entries",
		lost: []string{"/sub/deep", "/sub/deep/inner"}, found: []string{lostFile, lostFile + "/#{deep}", lostFile + "/#{deep}/inner"},
		do: func(t *testing.T, s *sample) {
			s.unlink(t, s.sub, "deep")
			s.inode(t, s.deep, func(in *meta.Inode) { in.Nlink = 0 })
			s.set(t, key('o', uint64(s.deep)), nil)
		}},
	{name: "listed inode does not exist", kinds: kinds(check.KindOrphan), says: "does not exist",
		do: func(t *testing.T, s *sample) { s.set(t, key('o', 999), nil) }},
	{name: "listed inode has a name", kinds: kinds(check.KindOrphan), says: "has 2 names",
		do: func(t *testing.T, s *sample) { s.set(t, key('o', uint64(s.file)), nil) }},
	{name: "inode of a file with data lost", kinds: kinds(check.KindGroup, check.KindMissing), says: "does not exist, but 0 entries, 1 extents",
		do: func(t *testing.T, s *sample) { s.del(t, key('i', uint64(s.inner))) }},
	{name: "inode of a directory lost", kinds: kinds(check.KindGroup, check.KindMissing), says: "does not exist, but 1 entries",
		do: func(t *testing.T, s *sample) { s.del(t, key('i', uint64(s.deep))) }},
	{name: "inode of the root lost", kinds: kinds(check.KindGroup, check.KindMissing), says: "inode 1 does not exist",
		do: func(t *testing.T, s *sample) { s.del(t, key('i', uint64(root))) }},
	{name: "inode and name of a file with data lost", kinds: kinds(check.KindGroup, check.KindMissing, check.KindSize), says: "does not exist",
		lost: []string{"/sub/deep/inner"}, found: []string{lostFile, lostFile + "/#{inner}"},
		do: func(t *testing.T, s *sample) { s.unlink(t, s.deep, "inner"); s.del(t, key('i', uint64(s.inner))) }},

	// Directories.
	{name: "entry to nowhere", kinds: kinds(check.KindEntry, check.KindGroup), says: `entry "many19" names inode`, lost: []string{"/sub/many19"},
		do: func(t *testing.T, s *sample) { s.del(t, key('i', uint64(s.last))) }},
	{name: "entry in a file", kinds: kinds(check.KindEntry), says: "is no directory, but has an entry",
		do: func(t *testing.T, s *sample) { s.link(t, s.inner, "x", s.file, unix.S_IFREG, 3) }},
	{name: "entry to the root", kinds: kinds(check.KindTree), says: "names the root",
		do: func(t *testing.T, s *sample) {
			s.link(t, s.deep, "top", root, unix.S_IFDIR, 50)
			s.inode(t, s.deep, func(in *meta.Inode) { in.Size, in.NextCookie = 2, 51 })
		}},
	{name: "record by name missing", kinds: kinds(check.KindPlace, check.KindSize, check.KindUnnamed), says: "which has no record by name",
		do: func(t *testing.T, s *sample) { s.del(t, keyName('d', s.deep, "inner")) }},
	{name: "record by place missing", kinds: kinds(check.KindPlace), says: "nothing is there",
		do: func(t *testing.T, s *sample) {
			s.del(t, key('c', uint64(s.deep), s.entry(t, s.deep, "inner").Cookie))
		}},
	{name: "record by place of another inode", kinds: kinds(check.KindPlace), says: `there is "inner"`,
		do: func(t *testing.T, s *sample) {
			s.set(t, key('c', uint64(s.deep), s.entry(t, s.deep, "inner").Cookie), valPlace(s.fifo, unix.S_IFIFO, "inner"))
		}},
	{name: "record by place left over", kinds: kinds(check.KindPlace), says: "which is not there by that name",
		do: func(t *testing.T, s *sample) {
			s.set(t, key('c', uint64(s.sub), 20_000), valPlace(s.last, unix.S_IFREG, "many19"))
			s.inode(t, s.sub, func(in *meta.Inode) { in.NextCookie = 30_000 })
		}},
	{name: "two entries at one place", kinds: kinds(check.KindPlace), says: "which is another entry's",
		do: func(t *testing.T, s *sample) {
			e := s.entry(t, s.sub, "many07")
			s.del(t, key('c', uint64(s.sub), e.Cookie))
			s.set(t, keyName('d', s.sub, "many07"), valEntry(e.Ino, e.Type, s.entry(t, s.sub, "many08").Cookie))
		}},
	{name: "impossible place", kinds: kinds(check.KindCookie), says: "has place 1",
		do: func(t *testing.T, s *sample) {
			e := s.unlink(t, s.sub, "many07")
			s.link(t, s.sub, "many07", e.Ino, e.Type, 1)
		}},
	{name: "next place in use", kinds: kinds(check.KindCookie), says: "would get place 4",
		do: func(t *testing.T, s *sample) { s.inode(t, s.sub, func(in *meta.Inode) { in.NextCookie = 4 }) }},
	{name: "type of an entry", kinds: kinds(check.KindType), says: "says that inode",
		do: func(t *testing.T, s *sample) {
			s.link(t, s.deep, "inner", s.inner, unix.S_IFLNK, s.entry(t, s.deep, "inner").Cookie)
		}},
	{name: "name with a slash", kinds: kinds(check.KindName), says: "has a slash", lost: []string{"/sub/deep/inner"}, found: []string{"/sub/deep/#name-3"},
		do: func(t *testing.T, s *sample) {
			e := s.unlink(t, s.deep, "inner")
			s.link(t, s.deep, "a/b", e.Ino, e.Type, e.Cookie)
		}},
	{name: "number of entries", kinds: kinds(check.KindSize), says: "says that it has 3 entries, it has 1",
		do: func(t *testing.T, s *sample) { s.inode(t, s.deep, func(in *meta.Inode) { in.Size = 3 }) }},
	{name: "parent of a directory", kinds: kinds(check.KindParent), says: "says that it is in directory 1",
		do: func(t *testing.T, s *sample) { s.inode(t, s.deep, func(in *meta.Inode) { in.Parent = root }) }},
	{name: "directory with two names", kinds: kinds(check.KindTree), says: "several names",
		do: func(t *testing.T, s *sample) {
			s.link(t, root, "again", s.deep, unix.S_IFDIR, 500)
			s.inode(t, root, func(in *meta.Inode) { in.NextCookie, in.Size = 501, in.Size+1 })
		}},
	{name: "directory inside itself", kinds: kinds(check.KindLinks, check.KindLinks, check.KindParent, check.KindSize, check.KindSize, check.KindTree), says: "inside itself",
		lost:  []string{"/sub", "/sub/*"},
		found: []string{lostFile, lostFile + "/#{sub}", lostFile + "/#{sub}/*"},
		do: func(t *testing.T, s *sample) {
			s.unlink(t, root, "sub")
			s.link(t, s.deep, "up", s.sub, unix.S_IFDIR, 4)
			s.inode(t, s.deep, func(in *meta.Inode) { in.NextCookie = 5 })
		}},

	// Blocks.
	{name: "extent outside of the image", kinds: kinds(check.KindExtent), says: "data blocks are", refused: true,
		do: func(t *testing.T, s *sample) {
			setExtent(t, s, s.inner, meta.Extent{Phys: 1 << 30, Count: 1})
		}},
	{name: "extent on the superblock", kinds: kinds(check.KindExtent), says: "image blocks 0+1", refused: true,
		do: func(t *testing.T, s *sample) { setExtent(t, s, s.inner, meta.Extent{Count: 1}) }},
	{name: "extent beyond the largest file", kinds: kinds(check.KindBitmap, check.KindBlocks, check.KindExtent), says: "beyond the largest file", refused: true,
		do: func(t *testing.T, s *sample) {
			setExtent(t, s, s.inner, meta.Extent{FileBlock: 1 << 33, Phys: 200, Count: 1, Unwritten: true})
		}},
	{name: "file block mapped twice", kinds: kinds(check.KindBitmap, check.KindBlocks, check.KindExtent), says: "file block 101 is mapped twice", refused: true,
		do: func(t *testing.T, s *sample) {
			setExtent(t, s, s.sparse, meta.Extent{FileBlock: 101, Phys: 200, Count: 1, Unwritten: true})
		}},
	{name: "extent of a directory", kinds: kinds(check.KindBitmap, check.KindBlocks, check.KindExtent), says: "is no regular file", refused: true,
		do: func(t *testing.T, s *sample) {
			setExtent(t, s, s.deep, meta.Extent{Phys: 200, Count: 1, Unwritten: true})
		}},
	{name: "blocks of two files", kinds: kinds(check.KindOverlap, check.KindBitmap), says: "belong to 2 extents without being shared: inode",
		changed: []string{"/sub/deep/inner"},
		do: func(t *testing.T, s *sample) {
			setExtent(t, s, s.inner, meta.Extent{Phys: s.extents(t, s.sparse)[0].Phys, Count: 1})
		}},
	{name: "reference count missing", kinds: kinds(check.KindOverlap), says: "blocks",
		do: func(t *testing.T, s *sample) { s.del(t, key('r', s.firstRef(t).Phys)) }},
	{name: "reference count too high", kinds: kinds(check.KindRefs), says: "is 5, but 2 extents map them",
		do: func(t *testing.T, s *sample) {
			r := s.firstRef(t)
			s.set(t, key('r', r.Phys), uvarints(r.Count, 5))
		}},
	{name: "reference count of free blocks", kinds: kinds(check.KindRefs), says: "they are not shared",
		do: func(t *testing.T, s *sample) { s.set(t, key('r', 200), uvarints(7, 2)) }},
	{name: "reference count too long", kinds: kinds(check.KindRefs), says: "they are not shared",
		do: func(t *testing.T, s *sample) {
			r := s.firstRef(t)
			s.set(t, key('r', r.Phys), uvarints(r.Count+1, 2))
		}},
	{name: "block damaged", kinds: kinds(check.KindBlock), says: `("/sparse"), offset 409600: 1 blocks fail their checksum`, refused: true, data: true,
		do: func(t *testing.T, s *sample) {
			flip(t, s, imagePath, int64(s.extents(t, s.sparse)[0].Phys*4096+17))
		}},
	{name: "checksum damaged", kinds: kinds(check.KindBlock), says: `("/sub/deep/inner"), offset 0: 1 blocks fail their checksum`, refused: true, data: true,
		do: func(t *testing.T, s *sample) {
			flip(t, s, imagePath, int64(s.super(t).ChecksumStart*4096+s.extents(t, s.inner)[0].Phys*4))
		}},

	// Groups.
	{name: "number of inodes", kinds: kinds(check.KindGroup), says: "says that it has 3 inodes",
		do: func(t *testing.T, s *sample) { s.group(t, func(g *meta.Group) { g.Inodes = 3 }) }},
	{name: "next inode in use", kinds: kinds(check.KindSequence), says: "would get sequence 5",
		do: func(t *testing.T, s *sample) { s.group(t, func(g *meta.Group) { g.NextSeq = 5 }) }},
	{name: "inode of an unknown group", kinds: kinds(check.KindGroup, check.KindUnnamed), says: "group 9 has 1 inodes, but no state", refused: true,
		do: func(t *testing.T, s *sample) {
			v := s.get(t, key('i', uint64(s.fifo)))
			s.set(t, key('i', uint64(meta.MakeIno(9, 1))), v)
		}},
	{name: "facts of an unknown group", kinds: kinds(check.KindFact), says: "group 9 has 2 facts, but no state", refused: true,
		do: func(t *testing.T, s *sample) {
			s.set(t, append([]byte("f\x00\x09"), "a"...), nil)
			s.set(t, append([]byte("f\x00\x09"), "b"...), nil)
		}},
	{name: "fact that is too large", kinds: kinds(check.KindFact), says: "has 1048577 bytes", refused: true,
		do: func(t *testing.T, s *sample) {
			s.set(t, append([]byte("f\x00\x00"), "a"...), make([]byte, meta.MaxFactValue+1))
		}},
	{name: "uuid of the metadata missing", kinds: kinds(check.KindFact), says: "does not say",
		do: func(t *testing.T, s *sample) { s.del(t, []byte("suuid")) }},
	{name: "metadata of another store", kinds: kinds(check.KindFact), says: "the metadata is of store", refused: true,
		do: func(t *testing.T, s *sample) { s.set(t, []byte("suuid"), []byte("x")) }},
}

// Every damage alone is found and named, changes nothing until it is repaired, and is gone afterwards, with all that a
// user had in place; or it is refused, and stays as it is.
func TestDamage(t *testing.T) {
	whole := makeSample(t)
	before := contents(t, whole.clone().MemFS)
	for _, d := range damages {
		t.Run(strings.ReplaceAll(d.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			s := whole.clone()
			d.do(t, s)
			bytes := s.sum(t)
			if d.data {
				if r := runCheck(t, s, check.Options{}); len(r.Findings) > 0 {
					t.Errorf("found without reading data:%s", describe(r))
				}
			}
			r := runCheck(t, s, check.Options{Data: true, Replay: replay, NewLog: replica.NewLog})
			d.verify(t, r)
			if !maps.Equal(bytes, s.sum(t)) {
				t.Error("checking changed the store")
			}
			for _, f := range r.Findings {
				if f.Repaired {
					t.Errorf("said to be repaired: %s", f.What)
				}
			}

			r = runCheck(t, s, check.Options{Data: true, Repair: true, Replay: replay, NewLog: replica.NewLog})
			again := runCheck(t, s, check.Options{Data: true, Replay: replay, NewLog: replica.NewLog})
			if d.refused {
				if r.Left() == 0 || again.Left() == 0 {
					t.Fatalf("repaired, but should be refused:%s\nthen%s", describe(r), describe(again))
				}
				return
			}
			if r.Left() > 0 {
				t.Errorf("not repaired:%s", describe(r))
			}
			if len(again.Findings) > 0 {
				t.Errorf("after the repair:%s", describe(again))
			}
			d.compare(t, s, before, contents(t, s.MemFS))
			if r := runCheck(t, s, check.Options{Data: true, Replay: replay, NewLog: replica.NewLog}); len(r.Findings) > 0 {
				t.Errorf("after the repair and a mount:%s", describe(r))
			}
		})
	}
	if len(damages) < 25 {
		t.Errorf("%d kinds of damage", len(damages))
	}
}

// verify compares the findings with what should be found.
func (d *damage) verify(t *testing.T, r check.Report) {
	t.Helper()
	got, said := map[check.Kind]bool{}, false
	for _, f := range r.Findings {
		got[f.Kind] = true
		said = said || strings.Contains(f.What, d.says)
	}
	want := map[check.Kind]bool{}
	for _, k := range d.kinds {
		want[k] = true
	}
	if !maps.Equal(got, want) || !said {
		t.Errorf("want %v, saying %q; got%s", d.kinds, d.says, describe(r))
	}
}

// compare tells what is not as it was before, but for what may be.
func (d *damage) compare(t *testing.T, s *sample, before, after map[string]string) {
	t.Helper()
	numbers := strings.NewReplacer("{inner}", itoa(s.inner), "{deep}", itoa(s.deep), "{sub}", itoa(s.sub))
	match := func(list []string, path string) bool {
		return slices.ContainsFunc(list, func(p string) bool {
			p = numbers.Replace(p)
			if prefix, ok := strings.CutSuffix(p, "*"); ok {
				return strings.HasPrefix(path, prefix)
			}
			return p == path
		})
	}
	for path, what := range before {
		switch now, ok := after[path]; {
		case match(d.lost, path):
			if ok {
				t.Errorf("%s is there, should be lost", path)
			}
		case !ok:
			t.Errorf("%s is lost", path)
		case now != what && !match(d.changed, path):
			t.Errorf("%s is %q, was %q", path, now, what)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok && !match(d.found, path) {
			t.Errorf("%s is new", path)
		}
	}
	for _, p := range d.found {
		if p = numbers.Replace(p); !strings.HasSuffix(p, "*") && after[p] == "" {
			t.Errorf("%s is not there", p)
		}
	}
}

func itoa(ino meta.Ino) string { return strconv.FormatUint(uint64(ino), 10) }

// Bad blocks are told by the names of their files, as far as there are any.
func TestNamesOfBadBlocks(t *testing.T) {
	whole := makeSample(t)
	for _, c := range []struct {
		name  string
		do    func(t *testing.T, s *sample)
		path  string
		shown string
	}{
		{"named", func(*testing.T, *sample) {}, "/sub/deep/inner", `("/sub/deep/inner")`},
		{"without a name", func(t *testing.T, s *sample) { s.unlink(t, s.deep, "inner") }, "", "(no name)"},
		{"below a directory without a name", func(t *testing.T, s *sample) { s.unlink(t, s.sub, "deep") }, "/?/inner", `("/?/inner")`},
		{"below a directory that lies in itself", func(t *testing.T, s *sample) {
			s.unlink(t, root, "sub")
			s.link(t, s.deep, "sub", s.sub, unix.S_IFDIR>>12, 40)
		}, "/?/sub/deep/inner", `("/?/sub/deep/inner")`},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			s := whole.clone()
			flip(t, s, imagePath, int64(s.extents(t, s.inner)[0].Phys*4096+17))
			c.do(t, s)
			r := runCheck(t, s, check.Options{Data: true})
			i := slices.IndexFunc(r.Findings, func(f check.Finding) bool { return f.Kind == check.KindBlock })
			if i < 0 {
				t.Fatalf("no bad block found:%s", describe(r))
			}
			f := r.Findings[i]
			if !strings.Contains(f.What, c.shown) || f.Path != c.path || strings.Contains(f.What, "no name") != (f.Path == "") {
				t.Errorf("path %q, says %q", f.Path, f.What)
			}
		})
	}
}

// What Pebble has noted of its options is of no interest, damaged or not.
func TestOptionsAreNotChecked(t *testing.T) {
	s := makeSample(t)
	names, err := s.List(storeDir + "/meta")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "OPTIONS-") {
			s.replace(t, storeDir+"/meta/"+name, []byte("[Version]\n  pebble_ver"))
		}
	}
	bytes := s.sum(t)
	if r := runCheck(t, s, check.Options{}); len(r.Findings) > 0 {
		t.Errorf("found%s", describe(r))
	}
	if !maps.Equal(bytes, s.sum(t)) {
		t.Error("looking at the store has changed it")
	}
}
