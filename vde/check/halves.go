package check

import (
	"encoding/binary"
	"fmt"
	"strings"

	"vdefs/vde/meta"
)

// A file that lies in another group than its name is made, linked and removed with an entry in each group. Between the two it counts a name that
// is not there: then a fact says so, and the next mount, or another node, ends the operation. And where other nodes hold the same, this one may
// have heard more of one group than of another when it stopped, so that names and files do not fit, without a fact and without a fault: it hears
// the rest when it runs again.

// readHalf notes what a fact says of an operation under way. The words are those of docs/formats.md.
func (p *pass) readHalf(name string, value []byte) {
	const number = 8 // bytes
	of := func(word string, numbers int) (string, bool) {
		rest, ok := strings.CutPrefix(name, word)
		return rest, ok && len(rest) == numbers*number
	}
	ino := func() meta.Ino {
		if len(value) != number {
			return 0
		}
		return meta.Ino(binary.LittleEndian.Uint64(value))
	}
	if tx, ok := of("pend", 2); ok {
		p.pending[tx] = ino()
	} else if tx, ok := of("drop", 2); ok {
		p.dropped[tx] = ino()
	} else if tx, ok := of("placed", 3); ok {
		p.placed[tx] = true
	} else if tx, ok := of("did", 2); ok {
		p.did[tx] = true
	}
}

// countHalves counts the names that inodes have too many of while an operation is under way.
func (p *pass) countHalves() {
	for tx, ino := range p.pending {
		if !p.placed[string(binary.BigEndian.AppendUint64(nil, uint64(ino)))+tx] {
			p.halfway[ino]++
		}
	}
	for tx, ino := range p.dropped {
		if !p.did[tx] {
			p.halfway[ino]++
		}
	}
}

// isApart tells whether an inode may differ from its names because its group is further than that of the names, or less far. It counts those.
func (p *pass) isApart(ino meta.Ino) bool {
	if !p.run.shared || ino.Group() == 0 {
		return false
	}
	p.apart++
	return true
}

// noteHalves says how many there are: they are no faults.
func (p *pass) noteHalves() {
	note := func(n uint64, what string) {
		if n > 0 {
			p.counts.Notes = append(p.counts.Notes, fmt.Sprintf(what, n))
		}
	}
	note(p.halves, "%d files are in the middle of being made, linked or removed: the next mount ends that")
	note(p.apart, "%d files do not fit their names, which lie in another group: this node has heard more of one of the groups than of the other, and hears the rest when it runs")
}
