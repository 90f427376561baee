package check

import "fmt"

// Kind names what sort of thing is wrong. Tools may depend on the words.
type Kind string

// The kinds, by what they speak of.
const (
	// The store's files.
	KindInfo       Kind = "info"       // vde.json cannot be read
	KindSuperblock Kind = "superblock" // a copy is damaged, or it is of another store
	KindImage      Kind = "image"      // the image is missing or too small
	KindBitmap     Kind = "bitmap"     // the bitmap is not what the extents say
	KindMetadata   Kind = "metadata"   // meta/ cannot be read
	KindLog        Kind = "log"        // a log cannot be read, or does not fit the metadata
	KindReplay     Kind = "replay"     // the log cannot be applied

	// Single keys.
	KindKey   Kind = "key"   // a key of no known form
	KindValue Kind = "value" // a value that cannot be decoded

	// Inodes.
	KindInode   Kind = "inode"   // an inode contradicts itself
	KindMissing Kind = "missing" // things belong to an inode that is lost
	KindUnnamed Kind = "unnamed" // an inode has no name
	KindOrphan  Kind = "orphan"  // the list of inodes to be freed is wrong
	KindLinks   Kind = "links"   // a link count is wrong
	KindXattr   Kind = "xattr"   // an inode does not know of its attributes

	// Directories.
	KindEntry  Kind = "entry"  // an entry points nowhere, or stands where none may
	KindPlace  Kind = "place"  // an entry by name and by place do not agree
	KindName   Kind = "name"   // a name that no entry can have
	KindType   Kind = "type"   // an entry tells another type than its inode
	KindCookie Kind = "cookie" // places of a directory are used twice or may be
	KindSize   Kind = "size"   // a directory's number of entries is wrong
	KindParent Kind = "parent" // a directory does not know where it is
	KindTree   Kind = "tree"   // a directory has two names, or is inside itself

	// Blocks.
	KindExtent  Kind = "extent"  // an extent that cannot be
	KindOverlap Kind = "overlap" // blocks belong to several files without being shared
	KindRefs    Kind = "refs"    // a reference count is wrong
	KindBlocks  Kind = "blocks"  // an inode's number of blocks is wrong
	KindBlock   Kind = "block"   // a block fails its checksum

	// Groups.
	KindGroup    Kind = "group"    // the state of a group is missing or wrong
	KindSequence Kind = "sequence" // the next inode would get a number that is in use
	KindFact     Kind = "fact"     // a fact of the store or of a group is missing or wrong
)

// maxFindings bounds the findings of a pass, and of a report.
const maxFindings = 10_000

// stage is when a repair is made: before those of higher stages, which build on it.
type stage int

const (
	stageFacts   stage = iota // so that the metadata can be opened by others
	stageEntries              // the two records of each entry agree
	stageMissing              // what belongs to a lost inode gets one
	stageDrop                 // entries that point nowhere go
	stageTree                 // directories have one name, and none is inside itself
	stageAttach               // what has no name gets one
	stageCounts
	stageRefs
	stageImage
)

// finding is a finding and how it is repaired.
type finding struct {
	Finding
	stage stage
	fix   func(*fixer) error // nil: not by us
	// numbers: the fix makes inodes or changes which number the next one gets, so the log must have been replayed.
	numbers bool
	// alone: the fix needs to know nothing of the metadata.
	alone bool
}

// own tells whether a repair changes only what each node has for itself. All else is the same on all nodes, and what the log brings builds on
// it: changed on one of them, inodes get other numbers there than on the others.
func (f *finding) own() bool { return f.alone || f.Kind == KindFact || f.stage >= stageRefs }

// add notes a finding that cannot be repaired.
func (p *pass) add(k Kind, format string, args ...any) {
	p.addFix(finding{Finding: Finding{Kind: k, What: fmt.Sprintf(format, args...)}})
}

// fixable notes a finding that fix repairs.
func (p *pass) fixable(k Kind, s stage, fix func(*fixer) error, format string, args ...any) {
	p.addFix(finding{Finding: Finding{Kind: k, What: fmt.Sprintf(format, args...)}, stage: s, fix: fix})
}

func (p *pass) addFix(f finding) {
	if p.run.shared && !f.own() {
		f.fix = nil
	}
	f.Repairable = f.fix != nil
	if len(p.findings) >= maxFindings {
		p.counts.More++
		return
	}
	p.findings = append(p.findings, f)
}

// nextStage returns the findings of the lowest stage that can be repaired.
func (p *pass) nextStage(restricted bool) (fixes []finding) {
	for _, f := range p.findings {
		switch {
		case f.fix == nil, restricted && f.numbers:
			continue
		case p.incomplete && !f.alone:
			continue // what could not be read must not be taken for absent
		}
		if len(fixes) > 0 && f.stage < fixes[0].stage {
			fixes = fixes[:0]
		}
		if len(fixes) == 0 || f.stage == fixes[0].stage {
			fixes = append(fixes, f)
		}
	}
	return fixes
}
