package check

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// An entry has two records: by name and by place (its cookie). Whether those of a directory agree is seen by a sum over
// each, so that a directory of any size takes no memory; only those that differ are looked at entry by entry.

func (p *pass) sum(e meta.Dirent) uint64 {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], uint64(e.Ino))
	binary.LittleEndian.PutUint64(b[8:], e.Cookie)
	binary.LittleEndian.PutUint64(b[16:], uint64(e.Type))
	var h maphash.Hash
	h.SetSeed(p.seed)
	h.Write(b[:])
	h.WriteString(e.Name)
	return h.Sum64()
}

func (p *pass) readPlace(k meta.Key, v []byte) {
	i := p.find(k.Ino)
	if i < 0 {
		m := p.lost(k.Ino)
		m.maxCookie = max(m.maxCookie, k.Number)
		return
	}
	if p.inodes[i].dir < 0 {
		return // its entries are judged by name
	}
	d := &p.dirs[p.inodes[i].dir]
	d.places++
	d.maxCookie = max(d.maxCookie, k.Number)
	e, err := meta.DecodeCookie(k.Number, v)
	if err != nil {
		d.byPlace++ // differs from every sum of what is sound, as good as surely
		return
	}
	d.byPlace += p.sum(e)
}

// checkName tells what is wrong with a name, if anything.
func checkName(name string) string {
	switch {
	case name == "." || name == "..":
		return "is reserved"
	case len(name) > maxName:
		return fmt.Sprintf("has %d bytes (%d are possible)", len(name), maxName)
	case strings.ContainsAny(name, "/\x00"):
		return "has a slash or a zero byte"
	}
	return ""
}

func (p *pass) readName(k meta.Key, v []byte) {
	p.counts.Names++
	i := p.find(k.Ino)
	var d *dir
	switch {
	case i < 0:
		p.lost(k.Ino).entries++
	case p.inodes[i].dir >= 0:
		d = &p.dirs[p.inodes[i].dir]
		d.entries++
	}
	e, err := meta.DecodeDirent(k.Name, v)
	if err != nil {
		if d != nil {
			d.byName += 2 // as in readPlace
			p.unequal = append(p.unequal, k.Ino)
		} else {
			p.add(KindValue, "directory %d: %v", k.Ino, err)
		}
		return
	}
	at := named{k.Ino, e}
	if i >= 0 && d == nil && p.inodes[i].state&isBroken == 0 {
		p.fixable(KindEntry, stageDrop, func(f *fixer) error { f.batch.DeleteDirent(at.dir, e); return nil },
			"inode %d is no directory, but has an entry %q (inode %d)", k.Ino, k.Name, e.Ino)
		return
	}
	if d != nil {
		d.byName += p.sum(e)
		d.maxCookie = max(d.maxCookie, e.Cookie)
		if wrong := checkName(e.Name); wrong != "" {
			p.fixable(KindName, stageEntries, func(f *fixer) error { return f.rename(at) },
				"directory %d: the name %q of inode %d %s", k.Ino, e.Name, e.Ino, wrong)
		}
		if e.Cookie < firstCookie || e.Cookie == math.MaxUint64 {
			p.fixable(KindCookie, stageEntries, func(f *fixer) error { return f.move(at) },
				"directory %d: entry %q has place %d, which no entry can have", k.Ino, e.Name, e.Cookie)
		}
	}
	p.nameOf(at, i)
}

// nameOf counts an entry for the inode that it names. in is the index of its directory, -1 if that is missing.
func (p *pass) nameOf(e named, in int) {
	t := p.lookup(e.Ino)
	if t < 0 {
		p.dangling = append(p.dangling, e)
		return
	}
	target := &p.inodes[t]
	if target.ino == meta.RootIno {
		p.fixable(KindTree, stageDrop, func(f *fixer) error { return f.drop(e) },
			"directory %d: entry %q names the root directory", e.dir, e.Name)
		return
	}
	target.names++
	if target.state&isBroken != 0 {
		return
	}
	if typ := uint32(target.typ) << typeShift; typ != e.Type {
		p.fixable(KindType, stageEntries, func(f *fixer) error {
			f.batch.SetDirent(e.dir, meta.Dirent{Name: e.Name, Ino: e.Ino, Type: typ, Cookie: e.Cookie})
			return nil
		}, "directory %d: entry %q says that inode %d has type %o, it has %o", e.dir, e.Name, e.Ino, e.Type, typ)
	}
	if target.dir < 0 {
		return
	}
	sub := &p.dirs[target.dir]
	if sub.namedIn != -1 {
		p.nameTwice[target.ino] = true
		if e.dir != sub.parent || in < 0 || sub.namedIn >= 0 && p.inodes[sub.namedIn].ino == sub.parent {
			return
		}
		// Of several the one that the directory itself tells of counts.
		if sub.namedIn >= 0 && p.inodes[sub.namedIn].dir >= 0 {
			p.dirs[p.inodes[sub.namedIn].dir].subdirs--
		}
	}
	sub.namedIn = int32(in)
	if in < 0 {
		sub.namedIn = -2
		p.lost(e.dir).subdirs++
	} else if p.inodes[in].dir >= 0 {
		p.dirs[p.inodes[in].dir].subdirs++
	}
}

// judgeNames judges what was noted while entries were read.
func (p *pass) judgeNames() {
	for _, e := range p.dangling {
		if m := p.missing[e.Ino]; m != nil && (e.Type == unix.S_IFDIR || m.extents+m.xattrs > 0) {
			m.typ, m.parent = e.Type, e.dir // it can be made again, and has a name
			if i := p.find(e.dir); e.Type == unix.S_IFDIR && i >= 0 && p.inodes[i].dir >= 0 {
				p.dirs[p.inodes[i].dir].subdirs++
			}
			continue
		}
		if e.Type == unix.S_IFREG && p.isApart(e.Ino) {
			continue
		}
		p.fixable(KindEntry, stageDrop, func(f *fixer) error { return f.drop(e) },
			"directory %d: entry %q names inode %d, which does not exist", e.dir, e.Name, e.Ino)
	}
	for ino := range p.nameTwice {
		p.fixable(KindTree, stageTree, func(f *fixer) error { return f.oneName(ino) },
			"directory %d has several names, one is possible", ino)
	}
	for i := range p.dirs {
		d := &p.dirs[i]
		if ino := p.inodes[d.in].ino; (d.byName != d.byPlace || d.entries != d.places) && !slices.Contains(p.unequal, ino) {
			p.unequal = append(p.unequal, ino)
		}
	}
	slices.Sort(p.unequal)
	for _, ino := range slices.Compact(p.unequal) {
		if err := p.judgeEntries(ino); err != nil {
			p.incomplete = true
			p.add(KindMetadata, "the entries of directory %d cannot be read: %v", ino, err)
		}
	}
	p.judgeTree()
}

// judgeTree finds directories that are inside themselves: walking up from one ends where it was before.
func (p *pass) judgeTree() {
	var path []int32 // of indexes in inodes
	for i := range p.dirs {
		path = path[:0]
		at := p.dirs[i].in
		for at >= 0 && p.inodes[at].state&(isMarked|isFinished) == 0 {
			p.inodes[at].state |= isMarked
			path = append(path, at)
			if p.inodes[at].dir < 0 {
				at = -1 // undecodable: where it is, nobody knows
			} else {
				at = p.dirs[p.inodes[at].dir].namedIn
			}
		}
		if at >= 0 && p.inodes[at].state&isFinished == 0 {
			ino := p.inodes[at].ino
			p.fixable(KindTree, stageTree, func(f *fixer) error { return f.unname(ino) },
				"directory %d is inside itself, and not to be reached from the root", ino)
		}
		for _, j := range path {
			p.inodes[j].state |= isFinished
		}
	}
}

// judgeEntries compares the two records of each entry of a directory.
func (p *pass) judgeEntries(dir meta.Ino) error {
	names := map[string]meta.Dirent{}  // records by name
	places := map[uint64]meta.Dirent{} // records by place
	broken := []string{}               // names whose record cannot be read
	brokenPlaces := map[uint64]error{}
	lower := func(kind byte) []byte { return binary.BigEndian.AppendUint64([]byte{kind}, uint64(dir)) }
	upper := func(kind byte) []byte {
		if dir == math.MaxUint64 {
			return []byte{kind + 1}
		}
		return binary.BigEndian.AppendUint64([]byte{kind}, uint64(dir)+1)
	}
	err := p.scan(lower('d'), upper('d'), "names", func(k meta.Key, v []byte) {
		if e, err := meta.DecodeDirent(k.Name, v); err != nil {
			broken = append(broken, k.Name)
		} else {
			names[k.Name] = e
		}
	})
	if err != nil {
		return err
	}
	err = p.scan(lower('c'), upper('c'), "places", func(k meta.Key, v []byte) {
		if e, err := meta.DecodeCookie(k.Number, v); err != nil {
			brokenPlaces[k.Number] = err
		} else {
			places[k.Number] = e
		}
	})
	if err != nil {
		return err
	}

	whole := map[uint64]bool{} // places whose two records agree
	for _, e := range names {
		if places[e.Cookie] == e {
			whole[e.Cookie] = true
		}
	}
	restored := map[string]bool{}
	for _, name := range broken {
		at := slices.IndexFunc(sortedPlaces(places), func(e meta.Dirent) bool { return e.Name == name && !whole[e.Cookie] })
		if at < 0 {
			p.add(KindValue, "directory %d: the record of entry %q cannot be decoded, and its place is unknown", dir, name)
			continue
		}
		e := sortedPlaces(places)[at]
		whole[e.Cookie], restored[name] = true, true
		p.fixable(KindValue, stageEntries, func(f *fixer) error { f.batch.SetDirent(dir, e); return nil },
			"directory %d: the record of entry %q cannot be decoded; its place says that it is inode %d", dir, name, e.Ino)
	}
	taken := map[uint64]bool{}
	for _, name := range sortedNames(names) {
		e := names[name]
		if places[e.Cookie] == e {
			continue
		}
		at := named{dir, e}
		if whole[e.Cookie] || taken[e.Cookie] {
			p.fixable(KindPlace, stageEntries, func(f *fixer) error { return f.move(at) },
				"directory %d: entry %q says that it has place %d, which is another entry's", dir, name, e.Cookie)
			continue
		}
		taken[e.Cookie] = true
		what := "nothing is there"
		if other, ok := places[e.Cookie]; ok {
			what = fmt.Sprintf("there is %q (inode %d)", other.Name, other.Ino)
		} else if err := brokenPlaces[e.Cookie]; err != nil {
			what = err.Error()
		}
		p.fixable(KindPlace, stageEntries, func(f *fixer) error { f.batch.SetDirent(dir, e); return nil },
			"directory %d: entry %q (inode %d) says that it has place %d; %s", dir, name, e.Ino, e.Cookie, what)
	}
	for _, e := range sortedPlaces(places) {
		if whole[e.Cookie] || taken[e.Cookie] {
			continue
		}
		by, ok := names[e.Name]
		if !ok && e.Name != "" && p.lookup(e.Ino) >= 0 && !slices.Contains(broken, e.Name) {
			p.fixable(KindPlace, stageEntries, func(f *fixer) error { f.batch.SetDirent(dir, e); return nil },
				"directory %d: at place %d is entry %q (inode %d), which has no record by name", dir, e.Cookie, e.Name, e.Ino)
			continue
		}
		if slices.Contains(broken, e.Name) {
			continue // reported with the name
		}
		p.fixable(KindPlace, stageEntries, func(f *fixer) error {
			f.batch.DeleteDirent(dir, e)
			if ok {
				f.batch.SetDirent(dir, by) // the record by name went with it
			}
			return nil
		}, "directory %d: at place %d is entry %q (inode %d), which is not there by that name", dir, e.Cookie, e.Name, e.Ino)
	}
	for cookie, err := range brokenPlaces {
		if !taken[cookie] {
			p.add(KindValue, "directory %d: %v", dir, err)
		}
	}
	return nil
}

func sortedNames(m map[string]meta.Dirent) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func sortedPlaces(m map[uint64]meta.Dirent) []meta.Dirent {
	out := make([]meta.Dirent, 0, len(m))
	for _, e := range m {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b meta.Dirent) int {
		if a.Cookie < b.Cookie {
			return -1
		}
		return 1
	})
	return out
}
