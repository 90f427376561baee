package alloc

// NoHint as a hint says that the blocks may lie anywhere. It is the number of a superblock, never of a block to
// be given out.
const NoHint = 0

// placement chooses where blocks are taken from, so that files grow in one piece, even many at the same time, and
// small files lie together. It is guarded by the mu of its allocator.
//
// The policy: blocks are taken at the hint if they are free there. If not,
//
//   - without a hint (a new file) they are taken at the cursor, where the last such ones ended. A new place for
//     the cursor, when it meets a block in use, has cursorRoom free blocks if possible.
//   - with a hint where the allocations of a growing file ended lately, the file has met its neighbour. It is moved to the
//     cursor, and the cursor jumps ahead, so that behind the file there is room for twice its growth so far. So two
//     files that grow block by block meet each other at 1, 3, 9, 27, … blocks and not at every one, and what
//     is set aside for a file that stops growing is in proportion to its size.
//   - with any other hint (a write into a hole of an old file) they are taken where they fit best near it.
//
// Room is only a gap that the cursor leaves. It stays free and counts as free, and whoever needs it gets it.
type placement struct {
	tree    *ExtentTree
	cursor  uint64
	streams streams
}

const (
	cursorRoom = 256   // 1 MiB of 4-KiB blocks
	maxRoom    = 32768 // 128 MiB
)

// room is how many blocks are kept free behind a file that was given run blocks one after the other.
func room(run uint64) uint64 { return min(2*run, maxRoom) }

// place finds count contiguous free blocks and takes note that they will be taken. It returns false if no free
// extent is long enough.
func (p *placement) place(count, hint uint64) (Extent, bool) {
	e, ok := p.find(count, hint)
	if ok {
		p.placed(e, hint)
	}
	return e, ok
}

func (p *placement) find(count, hint uint64) (Extent, bool) {
	if hint == NoHint {
		if p.tree.freeAt(p.cursor) >= count {
			return Extent{p.cursor, count}, true
		}
		return p.findWithRoom(count, cursorRoom)
	}
	if p.tree.freeAt(hint) >= count {
		return Extent{hint, count}, true
	}
	if run := p.streams.runs[hint]; run > 0 {
		e, ok := p.findWithRoom(count, room(run))
		if ok {
			p.cursor = e.End() + room(run)
		}
		return e, ok
	}
	return p.tree.FindFreeExtent(count, hint)
}

// findWithRoom finds count free blocks at the cursor or near it, with room more behind them, or as many as there are.
func (p *placement) findWithRoom(count, room uint64) (Extent, bool) {
	longest := p.tree.Largest().Count
	if longest < count {
		return Extent{}, false
	}
	e, ok := p.tree.FindFreeExtent(count+min(room, longest-count), p.cursor)
	return Extent{e.Start, count}, ok
}

// placed takes note that e was given to who asked for hint.
func (p *placement) placed(e Extent, hint uint64) {
	if hint == NoHint {
		p.streams.add(e.End(), e.Count)
		p.cursor = e.End()
		return
	}
	run := p.streams.take(hint) + e.Count
	p.streams.add(e.End(), run)
	if e.Start <= p.cursor && p.cursor < e.End() {
		p.cursor = e.End() + room(run)
	}
}

// streams remembers the files that were given blocks lately, and so may be growing.
type streams struct {
	// runs has the number of blocks that a file was given one after the other, each time asking for the block where it
	// ended, by the block where it ends now.
	runs map[uint64]uint64
	// recent has the keys that were added last, in a ring. The one at oldest is forgotten next.
	recent [256]uint64
	oldest int
}

func (s *streams) add(end, run uint64) {
	delete(s.runs, s.recent[s.oldest])
	s.recent[s.oldest] = end
	s.oldest = (s.oldest + 1) % len(s.recent)
	s.runs[end] = run
}

// take forgets the file that ends at a block and returns its run, 0 if there is none.
func (s *streams) take(end uint64) uint64 {
	run := s.runs[end]
	delete(s.runs, end)
	return run
}
