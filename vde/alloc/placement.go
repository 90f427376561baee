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
	tree   *ExtentTree
	cursor uint64
	// streams remembers where the last allocations ended: each in the slot that its end hashes to.
	streams [256]stream
}

// stream is a file that may be growing.
type stream struct {
	end uint64 // behind the last block it was given; 0 in an empty slot
	run uint64 // blocks it was given one after the other, each time asking for end
}

const (
	cursorRoom = 256   // 1 MiB of 4-KiB blocks
	maxRoom    = 32768 // 128 MiB
)

// room is what is kept free behind a stream.
func (s stream) room() uint64 { return min(2*s.run, maxRoom) }

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
	if s := p.stream(hint); s.run > 0 {
		room := s.room()
		e, ok := p.findWithRoom(count, room)
		if ok {
			p.cursor = e.End() + room
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
	s := stream{end: e.End(), run: e.Count}
	if old := p.slot(hint); hint != NoHint && old.end == hint {
		s.run += old.run
		*old = stream{}
	}
	*p.slot(s.end) = s

	if hint == NoHint {
		p.cursor = e.End()
	} else if e.Start <= p.cursor && p.cursor < e.End() {
		p.cursor = e.End() + s.room()
	}
}

// stream returns the stream that ended at a block; its run is 0 if none is remembered.
func (p *placement) stream(end uint64) stream {
	if s := *p.slot(end); s.end == end {
		return s
	}
	return stream{}
}

func (p *placement) slot(end uint64) *stream {
	return &p.streams[end*0x9e3779b97f4a7c15>>56] // the golden ratio spreads neighbours over the slots
}
