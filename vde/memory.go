package vde

import "vdefs/vde/image"

// DefaultMemory is the budget of an engine that is not given one, in bytes.
const DefaultMemory = 1 << 30

// limits are what an engine holds in memory before writers wait. They follow from one budget, of which they leave a
// third to what has no limit of its own: requests under way, and the garbage that the runtime has not collected yet.
type limits struct {
	cache       int64  // bytes of metadata read from disk
	memTable    uint64 // bytes of one table of metadata not flushed
	unflushed   int64  // bytes of all of them: writers wait
	overlayHigh int    // blocks of contents that wait for the log: a sync of it is asked for
	overlayFull int    // blocks: writers wait
}

// limitsOf divides a budget in bytes (0: DefaultMemory). Below about 64 MiB the least sizes that work well count, above
// 4 GiB those that a flush can write in a time that writers may wait.
func limitsOf(memory int64) limits {
	if memory == 0 {
		memory = DefaultMemory
	}
	table := min(max(memory/32, 1<<20), 64<<20)
	full := min(max(memory/4, 16<<20), 1<<30)
	return limits{
		cache:       max(memory/16, 4<<20),
		memTable:    uint64(table),
		unflushed:   min(max(memory/4, 8*table), 1<<30),
		overlayHigh: int(full / 4 / image.BlockSize),
		overlayFull: int(full / image.BlockSize),
	}
}
