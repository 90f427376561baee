package replica

import (
	"context"

	"vdefs/vde"
	"vdefs/vde/meta"
)

// ScrubReport is what a scrub has found.
type ScrubReport struct {
	vde.ScrubReport
	Comparison Comparison
}

// Scrub reads every block of every file of this node and compares it with its checksum: see vde.Engine.Scrub. Closing the
// volume ends it with vde.ErrClosed. On a node of a cluster blocks that are bad are replaced by what another node has;
// the report lists those that could not be; and then all files are compared with what the other nodes have, if the metadata
// can be read.
func (v *Volume) Scrub(ctx context.Context, o vde.ScrubOptions) (ScrubReport, error) {
	r, err := v.eng.Scrub(ctx, o)
	report := ScrubReport{ScrubReport: r}
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
	if err := ctx.Err(); err != nil || len(report.BadTables) > 0 {
		return report, err // this copy is bad as a whole: comparing it tells nothing more
	}
	inodes := uint64(0)
	for _, g := range v.all() {
		state, _ := v.eng.Group(g.slot)
		inodes += state.Inodes
	}
	report.Comparison, err = v.compare(ctx, o.Rate, func(done uint64) {
		if o.Progress != nil {
			o.Progress(vde.ScrubProgress{Blocks: report.Blocks, Total: report.Blocks, Bad: report.BadBlocks(), Compared: done, Inodes: max(done, inodes)})
		}
	})
	return report, err
}

// Paths names inodes for reports: see vde.Engine.Paths.
func (v *Volume) Paths(inos []meta.Ino) (map[meta.Ino]string, error) { return v.eng.Paths(inos) }
