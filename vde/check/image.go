package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"

	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// imageFile is the image of a store while it is looked at.
type imageFile struct {
	file  vfs.File // nil: it cannot be read
	path  string
	size  int64
	super layout.Superblock // what counts
	known bool              // super was read
}

func (im *imageFile) close() error {
	if im.file == nil {
		return nil
	}
	return im.file.Close()
}

func (r *run) imagePath(fs vfs.FS) string {
	if r.info.BlockDevice != "" {
		return r.info.BlockDevice
	}
	return fs.PathJoin(r.dir, imageName)
}

// openImage opens the image and judges its superblocks. Only a newer version is an error.
func (p *pass) openImage(geometry layout.Superblock) (*imageFile, error) {
	im := &imageFile{path: p.run.imagePath(p.fs), super: geometry}
	st, err := p.fs.Stat(im.path)
	if err != nil {
		p.add(KindImage, "the image cannot be opened: %v", err)
		return im, nil
	}
	file, err := p.fs.Open(im.path)
	if err != nil {
		p.add(KindImage, "the image cannot be opened: %v", err)
		return im, nil
	}
	im.file, im.size = file, st.Size()
	if p.run.info.BlockDevice == "" && uint64(im.size) != p.run.info.Size {
		what := fmt.Sprintf("%s has %d bytes, vde.json says %d", im.path, im.size, p.run.info.Size)
		if uint64(im.size) < p.run.info.Size {
			p.addFix(finding{Finding: Finding{Kind: KindImage, What: what}, stage: stageImage, alone: true, fix: (*fixer).rewriteSuper})
		} else {
			p.counts.Notes = append(p.counts.Notes, what)
		}
	}
	var supers [2]layout.Superblock
	var errs [2]error
	for i, block := range []uint64{0, geometry.Blocks - 1} {
		supers[i], errs[i] = im.readSuper(block)
		var v *layout.VersionError
		if errors.As(errs[i], &v) {
			return nil, errors.Join(fmt.Errorf("store %s: %w", p.run.dir, v), file.Close())
		}
	}
	names := [2]string{"first", "last"}
	heal := func(format string, args ...any) {
		p.addFix(finding{Finding: Finding{Kind: KindSuperblock, What: fmt.Sprintf(format, args...)}, stage: stageImage, alone: true, fix: (*fixer).rewriteSuper})
	}
	switch {
	case errs[0] != nil && errs[1] != nil:
		p.add(KindSuperblock, "both superblocks of %s are damaged: first: %v; last: %v", im.path, errs[0], errs[1])
		return im, nil
	case errs[0] != nil || errs[1] != nil:
		bad := 0
		if errs[1] != nil {
			bad = 1
		}
		im.super = supers[1-bad]
		heal("the %s superblock is damaged: %v", names[bad], errs[bad])
	default:
		im.super = supers[0]
		if supers[1].Generation > supers[0].Generation {
			im.super = supers[1]
		}
		a, b := supers[0].Generation, supers[1].Generation
		switch {
		case a == b && supers[0] != supers[1]:
			heal("the two superblocks differ, but have the same generation %d", a)
		case max(a, b)-min(a, b) > 1:
			// A crash between the two writes leaves them one apart.
			heal("the superblocks are of generations %d and %d, which no crash leaves", a, b)
		}
	}
	im.known = true
	s := im.super
	if s.Blocks != geometry.Blocks {
		p.add(KindSuperblock, "%s is of an image of %d blocks, vde.json tells of %d", im.path, s.Blocks, geometry.Blocks)
		im.known = false
	}
	if got := layout.FormatUUID(s.UUID); got != p.run.info.UUID {
		p.add(KindSuperblock, "%s belongs to store %s, not to %s", im.path, got, p.run.info.UUID)
		im.known = false
	}
	p.counts.Clean = im.known && s.Clean
	return im, nil
}

func (im *imageFile) readSuper(block uint64) (layout.Superblock, error) {
	b := make([]byte, layout.BlockSize)
	if err := im.readAt(b, block*layout.BlockSize); err != nil {
		return layout.Superblock{}, err
	}
	return layout.DecodeSuperblock(b)
}

// readAt fills b; what lies behind the end of a sparse file is zeros.
func (im *imageFile) readAt(b []byte, off uint64) error {
	n, err := im.file.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s at %d: %w", im.path, off, err)
	}
	clear(b[n:])
	return nil
}

const factUUID, factClean = "uuid", "clean"

// judgeBitmap compares the bitmap of a store that was closed with the extents. That of another one is not used.
func (p *pass) judgeBitmap(geometry layout.Superblock) error {
	im := p.image
	if !im.known || !im.super.Clean {
		return nil
	}
	fix := func(format string, args ...any) {
		p.fixable(KindBitmap, stageImage, (*fixer).rewriteBitmap, format, args...)
	}
	id := p.facts[factClean]
	if len(id) != 8 || binary.LittleEndian.Uint64(id) != im.super.CleanID {
		fix("the superblock and the metadata were not closed together (%016x, %x): the bitmap is not theirs", im.super.CleanID, id)
		return nil
	}
	page := make([]byte, layout.BlockSize)
	crc := uint32(0)
	var lost, leaked, firstLost, firstLeaked uint64
	pages := geometry.ChecksumStart - geometry.BitmapStart
	for i := range pages {
		if err := im.readAt(page, (geometry.BitmapStart+i)*layout.BlockSize); err != nil {
			return err
		}
		crc = crc32.Update(crc, layout.Castagnoli, page)
		want := p.bitmapPage(i, geometry)
		for j, w := range want {
			if w == page[j] {
				continue
			}
			for bit := uint64(0); bit < 8; bit++ {
				block := i*bitsPerPage + uint64(j)*8 + bit
				is, should := page[j]>>bit&1, w>>bit&1
				switch {
				case is < should:
					if lost == 0 {
						firstLost = block
					}
					lost++
				case is > should:
					if leaked == 0 {
						firstLeaked = block
					}
					leaked++
				}
			}
		}
	}
	switch {
	case crc != im.super.BitmapCRC:
		fix("the bitmap has checksum %08x, the superblock says %08x", crc, im.super.BitmapCRC)
		return nil
	case lost > 0:
		fix("the bitmap has %d blocks free that are in use, the first is %d", lost, firstLost)
	}
	if leaked > 0 {
		fix("the bitmap has %d blocks in use that are free, the first is %d", leaked, firstLeaked)
	}
	return nil
}

// bitmapPage returns a page of the bitmap as it should be. What cannot be given out counts as in use.
func (p *pass) bitmapPage(page uint64, geometry layout.Superblock) []byte {
	b := make([]byte, layout.BlockSize)
	if w := p.used[page]; w != nil {
		for i, x := range w {
			binary.LittleEndian.PutUint64(b[i*8:], x)
		}
	}
	first := page * bitsPerPage
	for block := first; block < min(geometry.DataStart, first+bitsPerPage); block++ {
		b[(block-first)/8] |= 1 << (block % 8)
	}
	for block := max(first, geometry.DataEnd()); block < first+bitsPerPage; block++ {
		b[(block-first)/8] |= 1 << (block % 8)
	}
	return b
}

const (
	dataRun  = 256 // blocks read at once
	maxNamed = 256 // bad runs whose files are looked up
)

// badRun is a run of blocks of a file that fail their checksum.
type badRun struct {
	ino    meta.Ino
	offset uint64 // in the file, in bytes
	start  uint64 // image block
	count  uint64 // blocks
}

// addBadRuns notes bad blocks by the names of their files.
func (p *pass) addBadRuns(runs []badRun) error {
	inos := map[meta.Ino]bool{}
	for _, b := range runs {
		inos[b.ino] = true
	}
	paths, err := p.paths(inos)
	if err != nil {
		return err
	}
	for _, b := range runs {
		path := paths[b.ino]
		shown := "no name"
		if path != "" {
			shown = strconv.Quote(path)
		}
		p.addFix(finding{Finding: Finding{Kind: KindBlock, Path: path, What: fmt.Sprintf(
			"inode %d (%s), offset %d: %d blocks fail their checksum, the first is image block %d", b.ino, shown, b.offset, b.count, b.start)}})
	}
	return nil
}

// verifyData compares every block that holds data with its checksum.
func (p *pass) verifyData() error {
	im := p.image
	if !im.known || p.run.info.BlockDevice == "" && uint64(im.size) < p.run.info.Size && im.size == 0 {
		return nil
	}
	total := p.written.len()
	buf, sums := make([]byte, dataRun*layout.BlockSize), make([]byte, dataRun*4)
	type run struct{ start, count uint64 }
	var bad []run
	var failed error
	said := uint64(0)
	p.written.runs(0, uint64(len(p.written))*bitsPerPage, func(start, count uint64) {
		for failed == nil && count > 0 {
			n := min(count, dataRun)
			b, s := buf[:n*layout.BlockSize], sums[:n*4]
			failed = errors.Join(im.readAt(b, start*layout.BlockSize), im.readAt(s, im.super.ChecksumStart*layout.BlockSize+start*4))
			if failed != nil {
				return
			}
			for i := range n {
				if layout.CRC(b[i*layout.BlockSize:(i+1)*layout.BlockSize]) == binary.LittleEndian.Uint32(s[i*4:]) {
					continue
				}
				p.counts.BadBlocks++
				if k := len(bad); k > 0 && bad[k-1].start+bad[k-1].count == start+i {
					bad[k-1].count++
				} else if k < maxNamed {
					bad = append(bad, run{start + i, 1})
				}
			}
			p.counts.CheckedBlocks += n
			if p.counts.CheckedBlocks-said >= progressEvery {
				said = p.counts.CheckedBlocks
				p.run.o.Progress(said, total, "data blocks")
			}
			start, count = start+n, count-n
		}
	})
	if failed != nil {
		return failed
	}
	p.run.o.Progress(total, total, "data blocks")
	if len(bad) == 0 {
		return nil
	}
	if p.run.restricted {
		p.counts.Notes = append(p.counts.Notes, fmt.Sprintf(
			"%d blocks, the first is %d, fail their checksum; the log may hold their contents", p.counts.BadBlocks, bad[0].start))
		return nil
	}
	isBad := newBitset(uint64(len(p.written)) * bitsPerPage)
	named := uint64(0)
	for _, b := range bad {
		isBad.add(b.start, b.count)
		named += b.count
	}
	if p.db == nil {
		return nil
	}
	var found []badRun
	err := p.scan([]byte{'e'}, []byte{'e' + 1}, "files of bad blocks", func(k meta.Key, v []byte) {
		x, err := meta.DecodeExtent(k.Number, v)
		if err != nil || x.Unwritten || x.Phys+x.Count > uint64(len(p.written))*bitsPerPage {
			return
		}
		isBad.runs(x.Phys, x.Count, func(start, count uint64) {
			if len(found) <= maxFindings {
				found = append(found, badRun{k.Ino, (x.FileBlock + start - x.Phys) * layout.BlockSize, start, count})
			}
		})
	})
	if err == nil {
		err = p.addBadRuns(found)
	}
	if named < p.counts.BadBlocks {
		p.counts.Notes = append(p.counts.Notes, fmt.Sprintf("%d more blocks fail their checksum", p.counts.BadBlocks-named))
	}
	return err
}
