package check

import (
	"fmt"
	"slices"
)

// judgeGroups compares the state of groups, and what holds for the whole store, with what was found.
func (p *pass) judgeGroups() {
	slots := make([]uint16, 0, len(p.groups))
	for slot := range p.groups {
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	if len(slots) == 0 || slots[0] != 0 {
		p.add(KindGroup, "group 0, which every store has, is missing")
	}
	for _, slot := range slots {
		g := p.groups[slot]
		if !g.known {
			if g.count > 0 {
				p.add(KindGroup, "group %d has %d inodes, but no state", slot, g.count)
			}
			if g.facts > 0 {
				p.add(KindFact, "group %d has %d facts, but no state", slot, g.facts)
			}
			continue
		}
		if next := g.maxSeq + 1; g.NextSeq < next {
			p.addFix(finding{
				Finding: Finding{Kind: KindSequence, What: fmt.Sprintf("group %d: the next inode would get sequence %d, but those up to %d are in use", slot, g.NextSeq, g.maxSeq)},
				stage:   stageFacts, numbers: true,
				fix: func(f *fixer) error {
					g, err := f.group(slot)
					if err == nil {
						g.NextSeq = next
					}
					return err
				},
			})
		}
		if n := g.count; g.Inodes != n {
			p.fixable(KindGroup, stageCounts, func(f *fixer) error {
				g, err := f.group(slot)
				if err == nil {
					g.Inodes = n
				}
				return err
			}, "group %d: says that it has %d inodes, it has %d", slot, g.Inodes, n)
		}
	}
	uuid, ok := p.facts[factUUID]
	switch {
	case !ok:
		want := p.run.info.UUID
		p.fixable(KindFact, stageFacts, func(f *fixer) error { f.batch.SetFact(factUUID, []byte(want)); return nil },
			"the metadata does not say of which store it is")
	case string(uuid) != p.run.info.UUID:
		p.add(KindFact, "the metadata is of store %q, not of %s", uuid, p.run.info.UUID)
	}
}
