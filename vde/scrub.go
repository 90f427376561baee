package vde

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"vdefs/vde/meta"
	"vdefs/vde/rangelock"
)

// ScrubOptions say how a scrub goes about it.
type ScrubOptions struct {
	// Rate is how many bytes are read in a second at most; 0: as many as the disk gives.
	Rate uint64
	// Progress is told how far the scrub is, a few times a second, and at the end. nil: nobody is.
	Progress func(ScrubProgress)
}

// ScrubProgress is how far a scrub is.
type ScrubProgress struct {
	Blocks uint64 `json:"blocks"` // read so far
	Total  uint64 `json:"total"`  // in use: an estimate, as files are changed meanwhile
	Bad    uint64 `json:"bad"`    // found so far
	// Of a store in a cluster, after all blocks were read: inodes that were compared with those of the other nodes, of about so many.
	Compared uint64 `json:"compared,omitempty"`
	Inodes   uint64 `json:"inodes,omitempty"`
}

// BadBlock is a block of a file that cannot be read.
type BadBlock struct {
	Ino    meta.Ino `json:"inode"`
	Offset uint64   `json:"offset"` // in the file, in bytes
	Block  uint64   `json:"block"`  // of the image
	Error  string   `json:"error"`
}

// ScrubReport is what a scrub found.
type ScrubReport struct {
	Blocks uint64     `json:"blocks"` // read; a block that files share counts for each of them
	Bad    []BadBlock `json:"bad"`    // by group, inode and offset
	More   uint64     `json:"more"`   // bad blocks beyond those that are listed
	// Tables is how many files of the metadata were read; BadTables are those that are not what was written. What they hold of files, names
	// and attributes cannot be read.
	Tables    int             `json:"tables"`
	BadTables []meta.BadTable `json:"bad_tables"`

	Elapsed time.Duration `json:"elapsed_ns"`
}

// BadBlocks is the number of bad blocks, listed or not.
func (r *ScrubReport) BadBlocks() uint64 { return uint64(len(r.Bad)) + r.More }

const (
	maxBadBlocks  = 10_000 // listed in a report
	scrubExtents  = 512    // looked up at once
	progressEvery = 200 * time.Millisecond
)

// Scrub reads the tables of the metadata, and every block that a file maps and has written, from the disk and not from what the kernel remembers, and
// compares it with its checksum. It runs beside everything else: a block that is being written is waited for. What is
// written where the scrub has been is not read. Bad blocks are in the report, not an error; they are logged. With an
// error (of ctx, or the store stopped) the report tells what was found until then.
func (e *Engine) Scrub(ctx context.Context, o ScrubOptions) (ScrubReport, error) {
	end, err := e.beginJob()
	if err != nil {
		return ScrubReport{}, err
	}
	defer end()
	start := time.Now()
	total, free := e.Usage()
	s := &scrubber{e: e, o: o, total: total - free, due: start, buf: make([]byte, dataChunk*blockSize)}
	s.report.Bad = []BadBlock{}
	err = s.tables(ctx)
	for _, slot := range e.Groups() {
		if err == nil {
			err = s.group(ctx, slot)
		}
		if len(s.report.BadTables) > 0 && meta.IsDamage(err) {
			err = nil // it is told; what comes behind it is not read
		}
	}
	if err != nil {
		err = fmt.Errorf("scrub: %w", err)
	}
	s.tell(true)
	s.report.Elapsed = time.Since(start)
	return s.report, err
}

// scrubber is one scrub.
type scrubber struct {
	e      *Engine
	o      ScrubOptions
	report ScrubReport
	total  uint64
	buf    []byte
	due    time.Time // when the next blocks may be read
	told   time.Time
}

func (s *scrubber) tell(now bool) {
	if s.o.Progress == nil || !now && time.Since(s.told) < progressEvery {
		return
	}
	s.told = time.Now()
	s.o.Progress(ScrubProgress{Blocks: s.report.Blocks, Total: max(s.total, s.report.Blocks), Bad: s.report.BadBlocks()})
}

// group reads the files of a group. Extents are looked up a few at a time, so that nothing is held for hours.
func (s *scrubber) group(ctx context.Context, slot uint16) error {
	type item struct {
		ino meta.Ino
		meta.Extent
	}
	ino, fileBlock := meta.MakeIno(slot, 0), uint64(0)
	for {
		var items []item
		err := s.e.meta.NextExtents(slot, ino, fileBlock, func(ino meta.Ino, x meta.Extent) (bool, error) {
			items = append(items, item{ino, x})
			return len(items) < scrubExtents, nil
		})
		if err != nil || len(items) == 0 {
			return err
		}
		for _, x := range items {
			ino, fileBlock = x.ino, x.End()
			if x.Unwritten {
				continue
			}
			for at := x.FileBlock; at < x.End(); at += dataChunk {
				if err := s.pace(ctx); err != nil {
					return err
				}
				if err := s.blocks(ctx, x.ino, at, min(dataChunk, x.End()-at)); err != nil {
					return err
				}
				s.tell(false)
			}
		}
	}
}

// tables reads those of the metadata.
func (s *scrubber) tables(ctx context.Context) error {
	if err := s.pace(ctx); err != nil {
		return err // of a store that has stopped, Pebble may hold its locks for good
	}
	n, bad, err := s.e.meta.VerifyTables(func(bytes uint64) error {
		s.tell(false)
		if err := s.pace(ctx); err != nil {
			return err
		}
		s.reads(bytes)
		return nil
	})
	s.report.Tables, s.report.BadTables = n, bad
	for _, t := range bad {
		s.e.checksumErrors.Add(1)
		s.e.log.WithField("table", t.Name).Error("bad metadata table: " + t.Error)
	}
	return err
}

// reads notes that bytes are read now: what comes next has to wait accordingly.
func (s *scrubber) reads(bytes uint64) {
	if s.due = time.Now(); s.o.Rate > 0 {
		s.due = s.due.Add(time.Duration(float64(bytes) / float64(s.o.Rate) * float64(time.Second)))
	}
}

// pace waits until more may be read.
func (s *scrubber) pace(ctx context.Context) error {
	if err := s.e.Err(); err != nil {
		return err
	}
	wait := time.Duration(0)
	if s.o.Rate > 0 {
		wait = max(0, time.Until(s.due))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-s.e.stop:
		return ErrClosed
	case <-ctx.Done():
	case <-timer.C:
	}
	return ctx.Err()
}

// blocks reads file blocks that are mapped now, and were a moment ago.
func (s *scrubber) blocks(ctx context.Context, ino meta.Ino, start, count uint64) error {
	e := s.e
	e.readGate.RLock()
	defer e.readGate.RUnlock()
	f := e.files.use(ino)
	defer e.files.done(ino, f)
	m, err := e.lockMapped(ctx, f, ino, start, count, rangelock.Shared)
	if errors.Is(err, meta.ErrNotFound) {
		return nil // freed meanwhile
	}
	if err != nil {
		return err
	}
	defer m.ticket.Release()
	s.reads(count * blockSize)
	for _, x := range m.extents {
		if x.Unwritten {
			continue
		}
		e.img.Uncache(x.Phys, x.Count)
		err := e.readEach(x.Phys, s.buf[:x.Count*blockSize], func(i uint64, err error) error {
			s.bad(BadBlock{Ino: ino, Offset: (x.FileBlock + i) * blockSize, Block: x.Phys + i, Error: err.Error()})
			return nil
		})
		if err != nil {
			return err
		}
		e.img.Uncache(x.Phys, x.Count) // nobody asked for it
		s.report.Blocks += x.Count
	}
	return nil
}

func (s *scrubber) bad(b BadBlock) {
	s.e.checksumErrors.Add(1)
	s.e.log.WithFields(logrus.Fields{"inode": uint64(b.Ino), "offset": b.Offset, "block": b.Block}).Error("bad block: " + b.Error)
	if len(s.report.Bad) < maxBadBlocks {
		s.report.Bad = append(s.report.Bad, b)
	} else {
		s.report.More++
	}
}

// Why RepairBlock refuses.
var (
	// ErrBlockGood: the block is good, or there is none (a hole).
	ErrBlockGood = errors.New("the block is not damaged")
	// ErrNotContents: the contents cannot be shown to be right for everybody who maps the block.
	ErrNotContents = errors.New("these are not the contents of the block")
)

// RepairBlock gives a block of a file that cannot be read its contents back, which were read elsewhere: data, one block,
// as another replica has it. It is no transaction, as only this replica does it. Durable when it returns.
//
// The block is written where it is. That is no change of the state, so R1 and R3 do not apply, and R2 holds: what is
// written is whole, and depends on nothing that the block held; torn by a crash it is as bad as before. The contents may
// be newer than what this replica has applied, as those of a snapshot may. But where files share the block, newer contents of
// one are wrong for another: then data must have the checksum that the block should have, or it is ErrNotContents.
// ErrBlockGood if the block can be read: whoever overwrote it meanwhile knows better.
func (e *Engine) RepairBlock(ino meta.Ino, fileBlock uint64, data []byte) error {
	if len(data) != blockSize {
		return fmt.Errorf("repair of inode %d: %d bytes, a block has %d", ino, len(data), blockSize)
	}
	if err := e.Err(); err != nil {
		return err
	}
	name := func(err error) error {
		return fmt.Errorf("repair of inode %d, offset %d: %w", ino, fileBlock*blockSize, err)
	}
	e.readGate.RLock() // the block stays this file's
	defer e.readGate.RUnlock()
	f := e.files.use(ino)
	defer e.files.done(ino, f)
	m, err := e.lockMapped(context.Background(), f, ino, fileBlock, 1, rangelock.Exclusive)
	if err != nil {
		return name(err)
	}
	defer m.ticket.Release()
	var found meta.Extent
	if len(m.extents) > 0 {
		found = m.extents[0]
	}
	if found.Count == 0 || found.Unwritten {
		return name(ErrBlockGood)
	}
	good := true
	buf := make([]byte, blockSize)
	if err := e.readEach(found.Phys, buf, func(uint64, error) error { good = false; return nil }); err != nil {
		return name(err)
	}
	if good {
		return name(ErrBlockGood)
	}
	if e.Shared(found.Phys, 1) {
		ok, err := e.img.Matches(found.Phys, data)
		if err == nil && !ok {
			err = fmt.Errorf("%w: other files share it, and its checksum is another one", ErrNotContents)
		}
		if err != nil {
			return name(err)
		}
	}
	if err := e.img.Write(found.Phys, data); err != nil {
		return e.fail(err)
	}
	if err := e.img.Sync(); err != nil {
		return e.fail(err)
	}
	e.log.WithFields(logrus.Fields{"inode": uint64(ino), "offset": fileBlock * blockSize, "block": found.Phys}).Info("bad block repaired")
	return nil
}
