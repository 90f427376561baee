package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"vdefs/vde"
	"vdefs/vde/meta"
)

const blockSize = 4096

// The first byte of a question from node to node.
const (
	askBlock  = 'b' // inode8 fileblock8: the contents of a block
	askPrints = 'f' // {inode8 fileblock8}: the fingerprints of parts of files, see compare.go
	askMember = 'm' // without more: whether the asker is a member, see removed.go
)

// answer answers what other nodes ask.
func (n *node) answer(ctx context.Context, from uint64, q []byte) ([]byte, error) {
	if len(q) == 1 && q[0] == askMember {
		return n.answerMember(from)
	}
	if len(q) == 1 && q[0] == askLevel && n.levels.known > 0 {
		return binary.LittleEndian.AppendUint64(nil, n.levels.known), nil
	}
	if len(q) > 0 && q[0] == askPrints {
		return n.answerPrints(ctx, q[1:])
	}
	if len(q) == 2 && q[0] == askTold && n.levels.known > 0 {
		return n.answerTold(ctx, q[1] == 1), nil
	}
	if len(q) != 17 || q[0] != askBlock {
		return nil, errors.New("a question of another version of the program")
	}
	ino, block := meta.Ino(binary.LittleEndian.Uint64(q[1:])), binary.LittleEndian.Uint64(q[9:])
	if block > vde.MaxFileSize/blockSize {
		return nil, fmt.Errorf("no file has a block %d", block)
	}
	// Not older than what the asker has applied, or it would take a change back.
	if err := n.v.barrier(ctx, ino); err != nil {
		return nil, err
	}
	b := make([]byte, blockSize)
	_, err := n.v.eng.Read(ctx, ino, block*blockSize, b) // what is behind the end of a file is zeros
	return b, err
}

// repair reads blocks of a file from this node's disk one by one, and has those that fail their checksum replaced by what
// another node has. It returns an error for the first that nobody has.
func (v *Volume) repair(ctx context.Context, ino meta.Ino, off, length uint64) error {
	b := make([]byte, blockSize)
	for block := off / blockSize; block*blockSize < off+length; block++ {
		_, err := v.eng.Read(ctx, ino, block*blockSize, b)
		if errors.Is(err, vde.ErrBadBlock) {
			err = errors.Join(v.repairBlock(ctx, ino, block), ctx.Err())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// repairBlock replaces one block that fails its checksum.
func (v *Volume) repairBlock(ctx context.Context, ino meta.Ino, block uint64) error {
	if v.node == nil || !v.replicated(ino.Group()) {
		return fmt.Errorf("%w: there is no other copy", vde.ErrBadBlock)
	}
	q := make([]byte, 17)
	q[0] = askBlock
	binary.LittleEndian.PutUint64(q[1:], uint64(ino))
	binary.LittleEndian.PutUint64(q[9:], block)
	errs := vde.ErrBadBlock
	for _, id := range v.inSlot(ino.Group()).Status().Voters {
		if id == v.node.cfg.NodeID {
			continue
		}
		data, err := v.node.transport.Call(ctx, id, q)
		if err == nil && len(data) != blockSize {
			err = fmt.Errorf("node %d answers with %d bytes", id, len(data))
		}
		if err == nil {
			err = v.eng.RepairBlock(ino, block, data)
		}
		if err == nil || errors.Is(err, vde.ErrBlockGood) {
			v.node.repaired.Add(1)
			v.log.WithField("ino", uint64(ino)).WithField("offset", block*blockSize).WithField("node", id).Warn("a bad block was replaced by what another node has")
			return nil
		}
		errs = errors.Join(errs, err)
	}
	return errs
}
