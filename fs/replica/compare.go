package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"vdefs/vde"
	"vdefs/vde/meta"
)

// A scrub of a node in a cluster compares what it has with what the others have, file by file. Two fingerprints are compared if they
// are of one moment; one that changes in between is asked for again, and left out if it never rests.

// Difference is an inode of which another node has something else.
type Difference struct {
	Ino    meta.Ino `json:"inode"`
	Node   uint64   `json:"node"`
	Offset uint64   `json:"offset"` // of the part of the file, in bytes
}

// Comparison is what comparing with the other nodes has come to.
type Comparison struct {
	Compared  uint64       `json:"compared"`  // parts of files, with each node
	Skipped   uint64       `json:"skipped"`   // because they changed all the time, or a node did not answer
	Different []Difference `json:"different"` // the first of them
	More      uint64       `json:"more"`      // that are not listed
}

const (
	comparePart    = 64 << 20 / blockSize // blocks that are summed up for one question, at most
	compareBatch   = 256                  // parts in one question, at most
	compareTimeout = 2 * time.Minute      // for a node to answer one
	compareTries   = 4
	maxDifferences = 10_000
)

// part is a part of a file that is to be compared.
type part struct {
	ino  meta.Ino
	from uint64 // block
}

const (
	partSize  = 16 // in a question: inode8 from8
	printSize = 29 // in the answer: state1 version8 ctime-seconds8 ctime-nanoseconds4 sum8
)

// The states of an answer about a part.
const (
	printGood = iota
	printGone
	printUnknown // it was changed meanwhile, or cannot be read
)

// fingerprint sums up a part as this node has it.
func (v *Volume) fingerprint(ctx context.Context, p part) (byte, vde.Fingerprint) {
	f, err := v.eng.Fingerprint(ctx, p.ino, p.from, comparePart)
	switch {
	case err == nil:
		return printGood, f
	case errors.Is(err, meta.ErrNotFound):
		return printGone, f
	default:
		return printUnknown, f
	}
}

// answerPrints answers a question about parts: the first byte was read.
func (n *node) answerPrints(ctx context.Context, q []byte) ([]byte, error) {
	if len(q)%partSize != 0 || len(q) > compareBatch*partSize {
		return nil, fmt.Errorf("a question about files of %d bytes", len(q))
	}
	answer := make([]byte, 0, len(q)/partSize*printSize)
	for ; len(q) > 0; q = q[partSize:] {
		p := part{meta.Ino(binary.LittleEndian.Uint64(q)), binary.LittleEndian.Uint64(q[8:])}
		if p.from > vde.MaxFileSize/blockSize {
			return nil, fmt.Errorf("no file has a block %d", p.from)
		}
		state, f := n.v.fingerprint(ctx, p)
		answer = append(answer, state)
		answer = binary.LittleEndian.AppendUint64(answer, f.Version)
		answer = binary.LittleEndian.AppendUint64(answer, uint64(f.Ctime.Sec))
		answer = binary.LittleEndian.AppendUint32(answer, f.Ctime.Nsec)
		answer = binary.LittleEndian.AppendUint64(answer, f.Sum)
	}
	return answer, ctx.Err()
}

// ask asks a node about parts.
func (n *node) ask(ctx context.Context, id uint64, parts []part) ([]byte, error) {
	q := append(make([]byte, 0, 1+len(parts)*partSize), askPrints)
	for _, p := range parts {
		q = binary.LittleEndian.AppendUint64(q, uint64(p.ino))
		q = binary.LittleEndian.AppendUint64(q, p.from)
	}
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	answer, err := n.transport.Call(ctx, id, q)
	if err == nil && len(answer) != len(parts)*printSize {
		err = fmt.Errorf("node %d answers with %d bytes to %d questions", id, len(answer), len(parts))
	}
	return answer, err
}

// comparing is one comparison.
type comparing struct {
	Comparison
	v     *Volume
	group *group
	rate  uint64          // bytes that are read here in a second, at most; 0: as many as there are
	away  map[uint64]bool // nodes that have not answered: they are not asked again

	parts  []part // collected, to be asked together
	blocks uint64 // that they have, at most
}

// compare compares all files of this node with what the others have; progress is told now and then how many inodes are done.
func (v *Volume) compare(ctx context.Context, rate uint64, progress func(done uint64)) (Comparison, error) {
	c := comparing{Comparison: Comparison{Different: []Difference{}}, v: v, rate: rate, away: map[uint64]bool{}}
	done := uint64(0)
	for _, g := range v.all() {
		if !g.Replicated() {
			continue
		}
		c.group = g
		for behind := meta.MakeIno(g.slot, 0); ; {
			inos, err := v.eng.NextInodes(g.slot, behind, compareBatch)
			if err != nil {
				return c.Comparison, err
			}
			if len(inos) == 0 {
				break
			}
			behind = inos[len(inos)-1]
			for _, ino := range inos {
				if err := c.add(ctx, ino); err != nil {
					return c.Comparison, err
				}
			}
			done += uint64(len(inos))
			progress(done)
		}
		if err := c.flush(ctx); err != nil {
			return c.Comparison, err
		}
	}
	return c.Comparison, nil
}

// add compares an inode, at the latest with the next flush.
func (c *comparing) add(ctx context.Context, ino meta.Ino) error {
	in, err := c.v.eng.Meta().Inode(ino)
	if errors.Is(err, meta.ErrNotFound) {
		return nil // freed meanwhile
	}
	if err != nil {
		return err
	}
	for from := uint64(0); from == 0 || from*blockSize < in.Size; from += comparePart {
		blocks := min(comparePart, in.Blocks)
		if len(c.parts) > 0 && (len(c.parts) == compareBatch || c.blocks+blocks > comparePart) {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
		c.parts, c.blocks = append(c.parts, part{ino, from}), c.blocks+blocks
	}
	return nil
}

// flush compares what was collected.
func (c *comparing) flush(ctx context.Context) error {
	parts, blocks := c.parts, c.blocks
	c.parts, c.blocks = nil, 0
	began := time.Now()
	for _, id := range c.group.Status().Voters {
		if id == c.v.node.cfg.NodeID {
			continue
		}
		if c.away[id] {
			c.Skipped += uint64(len(parts))
			continue
		}
		if err := c.with(ctx, id, parts); err != nil {
			return err
		}
	}
	if c.rate == 0 {
		return nil
	}
	due := began.Add(time.Duration(float64(blocks*blockSize) / float64(c.rate) * float64(time.Second)))
	return c.v.pause(ctx, time.Until(due))
}

// pause waits, unless the context or the volume ends.
func (v *Volume) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-v.stop:
		return vde.ErrClosed
	case <-timer.C:
		return nil
	}
}

// with compares parts with what a node has; those that are not of one moment again.
func (c *comparing) with(ctx context.Context, id uint64, parts []part) error {
	v := c.v
	for try := range compareTries {
		if try > 0 {
			if err := v.pause(ctx, 100*time.Millisecond<<try); err != nil {
				return err
			}
		}
		answer, err := v.node.ask(ctx, id, parts)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.log.WithError(err).WithField("node", id).Warn("a node could not be compared with this one")
			c.away[id] = true
			break
		}
		var again []part
		for i, p := range parts {
			a := answer[i*printSize:]
			state, mine := v.fingerprint(ctx, p)
			theirs := vde.Fingerprint{
				Version: binary.LittleEndian.Uint64(a[1:]),
				Ctime:   meta.Time{Sec: int64(binary.LittleEndian.Uint64(a[9:])), Nsec: binary.LittleEndian.Uint32(a[17:])},
				Sum:     binary.LittleEndian.Uint64(a[21:]),
			}
			switch {
			case state == printGone && a[0] == printGone:
			case state != printGood || a[0] != printGood || mine.Version != theirs.Version || mine.Ctime != theirs.Ctime:
				again = append(again, p)
			case mine.Sum != theirs.Sum:
				c.differs(Difference{p.ino, id, p.from * blockSize})
			default:
				c.Compared++
			}
		}
		if parts = again; len(parts) == 0 {
			return nil
		}
	}
	c.Skipped += uint64(len(parts))
	return nil
}

func (c *comparing) differs(d Difference) {
	c.v.log.WithField("ino", uint64(d.Ino)).WithField("offset", d.Offset).WithField("node", d.Node).Error("another node has something else")
	if len(c.Different) < maxDifferences {
		c.Different = append(c.Different, d)
	} else {
		c.More++
	}
}
