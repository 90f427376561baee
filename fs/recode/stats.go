package recode

import "maps"

// Stats is what was done since the volume was opened.
type Stats struct {
	Mode        string            `json:"mode"`         // of the mount: async, sync, off
	MemoryLimit int64             `json:"memory_limit"` // bytes that all pictures may take that are worked on at a time
	Queued      int               `json:"queued"`
	Done        uint64            `json:"done"`         // files made smaller
	BytesBefore uint64            `json:"bytes_before"` // of those
	BytesAfter  uint64            `json:"bytes_after"`
	Skipped     map[string]uint64 `json:"skipped,omitempty"` // files that stayed, by reason
}

// Reasons of this package why a file stays; the others are those of package png.
const (
	skipMode    = "off"        // of the mount, the directory, or a work tree
	skipGone    = "gone"       // removed or renamed meanwhile
	skipChanged = "changed"    // written again meanwhile: it is looked at when it is closed
	skipBusy    = "busy"       // open all the time: it is looked at when it is closed
	skipQueue   = "queue-full" // there were too many at once
	skipError   = "error"      // the volume answered with an error; it is in the log
)

// Stats returns the counters.
func (r *Recoder) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Mode, s.MemoryLimit = r.options.Mode.String(), r.options.Memory
	s.Queued = len(r.queued) + len(r.prepared)
	s.Skipped = maps.Clone(r.stats.Skipped)
	return s
}

func (r *Recoder) skip(reason string) {
	r.mu.Lock()
	r.skipLocked(reason)
	r.mu.Unlock()
}

func (r *Recoder) skipLocked(reason string) { r.stats.Skipped[reason]++ }
