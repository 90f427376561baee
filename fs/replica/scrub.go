package replica

import (
	"context"

	"vdefs/vde"
	"vdefs/vde/meta"
)

// Scrub reads every block of every file of this node and compares it with its checksum: see vde.Engine.Scrub. Closing the
// volume ends it with vde.ErrClosed. On a node of a cluster blocks that are bad are replaced by what another node has;
// the report lists those that could not be.
func (v *Volume) Scrub(ctx context.Context, o vde.ScrubOptions) (vde.ScrubReport, error) {
	report, err := v.eng.Scrub(ctx, o)
	if err != nil || v.node == nil {
		return report, err
	}
	bad := report.Bad
	report.Bad = report.Bad[:0]
	for _, b := range bad {
		if rerr := v.repairBlock(ctx, b.Ino, b.Offset/blockSize); rerr != nil {
			b.Error = rerr.Error()
			report.Bad = append(report.Bad, b)
		}
	}
	return report, ctx.Err()
}

// Paths names inodes for reports: see vde.Engine.Paths.
func (v *Volume) Paths(inos []meta.Ino) (map[meta.Ino]string, error) { return v.eng.Paths(inos) }
