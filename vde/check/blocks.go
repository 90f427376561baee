package check

import (
	"cmp"
	"slices"

	"vdefs/vde"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// extentReader returns what notes the extents, which come by inode and file block.
func (p *pass) extentReader(geometry layout.Superblock) func(k meta.Key, v []byte) {
	var ino meta.Ino
	var last meta.Extent // of ino
	return func(k meta.Key, v []byte) {
		p.counts.Extents++
		i := p.find(k.Ino)
		x, err := meta.DecodeExtent(k.Number, v)
		if err != nil {
			p.add(KindValue, "inode %d: %v", k.Ino, err)
			p.strayExtents = true
			if i >= 0 {
				p.inodes[i].state |= hasStray
			}
			return
		}
		if i < 0 {
			m := p.lost(k.Ino)
			m.extents++
			m.blocks += x.Count
			if !x.Unwritten {
				m.end = max(m.end, x.End())
			}
		} else {
			in := &p.inodes[i]
			in.mapped += x.Count
			if in.typ != typeFile && in.state&isBroken == 0 {
				p.add(KindExtent, "inode %d is no regular file, but maps file blocks %d+%d", k.Ino, x.FileBlock, x.Count)
			}
		}
		if k.Ino == ino && last.End() > x.FileBlock {
			p.add(KindExtent, "inode %d: file block %d is mapped twice: by the extent of blocks %d+%d and by that of blocks %d+%d",
				k.Ino, x.FileBlock, last.FileBlock, last.Count, x.FileBlock, x.Count)
		}
		if k.Ino != ino || x.End() > last.End() {
			ino, last = k.Ino, x
		}
		if x.End() > vde.MaxFileSize/layout.BlockSize {
			p.add(KindExtent, "inode %d: file blocks %d+%d are beyond the largest file", k.Ino, x.FileBlock, x.Count)
		}
		if x.Phys < geometry.DataStart || x.Phys+x.Count > geometry.DataEnd() {
			p.add(KindExtent, "inode %d: file blocks %d+%d are mapped to image blocks %d+%d, data blocks are %d to %d",
				k.Ino, x.FileBlock, x.Count, x.Phys, x.Count, geometry.DataStart, geometry.DataEnd()-1)
			p.strayExtents = true
			return
		}
		if p.used.add(x.Phys, x.Count) {
			// Which of them are used twice is known only when all extents are: see claims.
			p.multi.add(x.Phys, x.Count)
		}
		if !x.Unwritten {
			p.written.add(x.Phys, x.Count)
		}
	}
}

func (p *pass) readRef(k meta.Key, v []byte) {
	r, err := meta.DecodeRef(k.Number, v)
	if err != nil {
		phys := k.Number
		p.fixable(KindValue, stageRefs, func(f *fixer) error { f.batch.DeleteRef(phys); return f.rewriteRefs() }, "%v", err)
		return
	}
	p.refs = append(p.refs, r)
}

// claim says that an extent maps blocks that others may map too.
type claim struct {
	start, count uint64
	ino          meta.Ino
	fileBlock    uint64
}

// at is the file block that an image block is mapped at.
func (c claim) at(block uint64) uint64 { return c.fileBlock + block - c.start }

// shared is a run of blocks that the same number of extents map, two at least.
type shared struct{ start, end, count uint64 }

// judgeBlocks compares reference counts and the bitmap with the extents.
func (p *pass) judgeBlocks(geometry layout.Superblock) error {
	p.counts.UsedBlocks = p.used.len()
	if p.strayExtents {
		p.counts.Notes = append(p.counts.Notes, "as some extents cannot be right, it is not known which blocks are in use: reference counts and the bitmap were not judged")
		return nil
	}
	claims, err := p.claims()
	if err != nil {
		return err
	}
	runs := sweep(claims)
	for _, s := range runs {
		p.counts.SharedBlocks += s.end - s.start
	}
	p.shared = runs
	p.judgeRefs(claims, runs)
	return p.judgeBitmap(geometry)
}

// claims reads the extents again for those that map blocks of multi, which is too large: it holds whole extents of
// which one block was used before.
func (p *pass) claims() (out []claim, err error) {
	if p.multi.len() == 0 {
		return nil, nil
	}
	err = p.scan([]byte{'e'}, []byte{'e' + 1}, "shared blocks", func(k meta.Key, v []byte) {
		x, err := meta.DecodeExtent(k.Number, v)
		if err != nil || x.Phys+x.Count > uint64(len(p.used))*bitsPerPage {
			return // reported
		}
		p.multi.runs(x.Phys, x.Count, func(start, count uint64) {
			out = append(out, claim{start, count, k.Ino, x.FileBlock + start - x.Phys})
		})
	})
	slices.SortFunc(out, func(a, b claim) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.ino, b.ino)) })
	return out, err
}

// sweep returns the runs of blocks that two or more claims (by start) hold.
func sweep(claims []claim) (out []shared) {
	ends := make([]uint64, 0, len(claims))
	for _, c := range claims {
		ends = append(ends, c.start+c.count)
	}
	slices.Sort(ends)
	var at, n uint64
	step := func(to uint64) {
		if n >= 2 && to > at {
			if k := len(out); k > 0 && out[k-1].end == at && out[k-1].count == n {
				out[k-1].end = to
			} else {
				out = append(out, shared{at, to, n})
			}
		}
		at = to
	}
	for i, j := 0, 0; j < len(ends); {
		if i < len(claims) && claims[i].start < ends[j] {
			step(claims[i].start)
			n++
			i++
		} else {
			step(ends[j])
			n--
			j++
		}
	}
	return out
}

// judgeRefs compares the reference counts with how many extents map each block.
func (p *pass) judgeRefs(claims []claim, runs []shared) {
	var have []shared
	for i, r := range p.refs {
		if i > 0 && p.refs[i-1].Phys+p.refs[i-1].Count > r.Phys {
			p.fixable(KindRefs, stageRefs, (*fixer).rewriteRefs, "block %d has two reference counts", r.Phys)
		}
		if n := len(have); n > 0 && have[n-1].end == r.Phys && have[n-1].count == r.Refs {
			have[n-1].end += r.Count
			continue
		}
		have = append(have, shared{r.Phys, r.Phys + r.Count, r.Refs})
	}
	// Both are steps over the blocks; walk along them together.
	const most = ^uint64(0)
	head := func(s []shared, at uint64) (n, until uint64) {
		switch {
		case len(s) == 0:
			return 0, most
		case s[0].start > at:
			return 0, s[0].start
		}
		return s[0].count, s[0].end
	}
	for at, want := uint64(0), runs; len(have) > 0 || len(want) > 0; {
		h, hEnd := head(have, at)
		w, wEnd := head(want, at)
		end := min(hEnd, wEnd)
		if h != w {
			p.wrongRefs(claims, at, end, h, w)
		}
		at = end
		for len(have) > 0 && have[0].end <= at {
			have = have[1:]
		}
		for len(want) > 0 && want[0].end <= at {
			want = want[1:]
		}
	}
}

// maxOverlaps is for how many overlaps the files are looked up.
const maxOverlaps = 100

func (p *pass) wrongRefs(claims []claim, start, end, have, want uint64) {
	if have > 0 || p.overlaps >= maxOverlaps {
		if want == 0 {
			p.fixable(KindRefs, stageRefs, (*fixer).rewriteRefs, "blocks %d+%d: the reference count is %d, but they are not shared", start, end-start, have)
		} else {
			p.fixable(KindRefs, stageRefs, (*fixer).rewriteRefs, "blocks %d+%d: the reference count is %d, but %d extents map them", start, end-start, have, want)
		}
		return
	}
	p.overlaps++
	var by []claim
	for _, c := range claims {
		if c.start < end && c.start+c.count > start {
			by = append(by, c)
			if len(by) == 2 {
				break
			}
		}
	}
	p.fixable(KindOverlap, stageRefs, (*fixer).rewriteRefs,
		"blocks %d+%d belong to %d extents without being shared: inode %d from file block %d, inode %d from file block %d",
		start, end-start, want, by[0].ino, by[0].at(start), by[1].ino, by[1].at(start))
}
