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
	comparePart    = 64 << 20 / blockSize // blocks of a file that are summed up together
	compareBatch   = 256                  // questions sent together
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

// print sums up a part as this node has it.
func (v *Volume) print(ctx context.Context, p part) (byte, vde.Fingerprint) {
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
		state, f := n.v.print(ctx, p)
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
	answer, err := n.transport.Call(ctx, id, q)
	if err == nil && len(answer) != len(parts)*printSize {
		err = fmt.Errorf("node %d answers with %d bytes to %d questions", id, len(answer), len(parts))
	}
	return answer, err
}

// compare compares all files of this node with what the others have. rate bounds the bytes that are read here in a second, 0: it does
// not; progress is told after each batch how many inodes are done.
func (v *Volume) compare(ctx context.Context, rate uint64, progress func(done uint64)) (Comparison, error) {
	c := Comparison{Different: []Difference{}}
	done := uint64(0)
	for _, g := range v.all() {
		if !g.Replicated() {
			continue
		}
		for behind := meta.MakeIno(g.slot, 0); ; {
			inos, err := v.eng.NextInodes(g.slot, behind, compareBatch/2)
			if err != nil || len(inos) == 0 {
				if err != nil {
					return c, err
				}
				break
			}
			behind = inos[len(inos)-1]
			var parts []part
			var blocks uint64
			for _, ino := range inos {
				in, err := v.eng.Meta().Inode(ino)
				if err != nil {
					continue // freed meanwhile
				}
				for from := uint64(0); from == 0 || from*blockSize < in.Size; from += comparePart {
					parts = append(parts, part{ino, from})
				}
				blocks += in.Blocks
			}
			began := time.Now()
			for len(parts) > 0 {
				batch := parts[:min(len(parts), compareBatch)]
				parts = parts[len(batch):]
				for _, id := range g.Status().Voters {
					if id != v.node.cfg.NodeID {
						if err := v.compareWith(ctx, &c, id, batch); err != nil {
							return c, err
						}
					}
				}
			}
			done += uint64(len(inos))
			progress(done)
			if rate > 0 {
				due := began.Add(time.Duration(float64(blocks*blockSize) / float64(rate) * float64(time.Second)))
				select {
				case <-ctx.Done():
					return c, ctx.Err()
				case <-v.stop:
					return c, vde.ErrClosed
				case <-time.After(time.Until(due)):
				}
			}
		}
	}
	return c, nil
}

// compareWith compares parts with what a node has; those that are not of one moment again.
func (v *Volume) compareWith(ctx context.Context, c *Comparison, id uint64, parts []part) error {
	for try := range compareTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-v.stop:
				return vde.ErrClosed
			case <-time.After(100 * time.Millisecond << try):
			}
		}
		answer, err := v.node.ask(ctx, id, parts)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.log.WithError(err).WithField("node", id).Warn("a node could not be compared with this one")
			break
		}
		var again []part
		for i, p := range parts {
			a := answer[i*printSize:]
			state, mine := v.print(ctx, p)
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
				v.differs(c, Difference{p.ino, id, p.from * blockSize})
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

func (v *Volume) differs(c *Comparison, d Difference) {
	v.log.WithField("ino", uint64(d.Ino)).WithField("offset", d.Offset).WithField("node", d.Node).Error("another node has something else")
	if len(c.Different) < maxDifferences {
		c.Different = append(c.Different, d)
	} else {
		c.More++
	}
}
