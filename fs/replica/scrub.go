package replica

import (
	"context"

	"vdefs/vde"
	"vdefs/vde/meta"
)

// Scrub reads every block of every file of this node and compares it with its checksum: see vde.Engine.Scrub. Closing the
// volume ends it with vde.ErrClosed.
func (v *Volume) Scrub(ctx context.Context, o vde.ScrubOptions) (vde.ScrubReport, error) {
	return v.eng.Scrub(ctx, o)
}

// Paths names inodes for reports: see vde.Engine.Paths.
func (v *Volume) Paths(inos []meta.Ino) (map[meta.Ino]string, error) { return v.eng.Paths(inos) }
