package vde

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// op is a change of a group that depends on nothing but what transactions show, so that it does the same on every
// replica: what a log entry is.
type op struct {
	kind string
	seed uint64
}

var opKinds = []string{"new", "write", "write", "write", "write", "overwrite", "overwrite", "truncate", "zero", "preallocate", "share", "share", "names", "facts", "free"}

// makeOps returns changes, the first of which make files.
func makeOps(rng *rand.Rand, n int) []op {
	ops := []op{{"new", 1}, {"new", 2}, {"new", 3}}
	for len(ops) < n {
		ops = append(ops, op{opKinds[rng.IntN(len(opKinds))], rng.Uint64()})
	}
	return ops
}

// opFiles is how many files take part: the youngest ones of the group.
const opFiles = 3

func (o op) apply(tx *Tx) error {
	rng := rand.New(rand.NewPCG(o.seed, 99))
	const maxBlocks = 24
	pick := func() (*meta.Inode, error) {
		for range 20 {
			in, err := tx.Inode(meta.MakeIno(tx.slot, tx.group.NextSeq-1-rng.Uint64N(opFiles)))
			if !errors.Is(err, meta.ErrNotFound) && (err != nil || in.Mode&unix.S_IFMT == unix.S_IFREG) {
				return in, err
			}
		}
		return nil, nil
	}
	if o.kind == "new" {
		in := tx.NewInode()
		in.Mode, in.Nlink = unix.S_IFREG|0o600, 1
		return nil
	}
	in, err := pick()
	if err != nil || in == nil {
		return err
	}
	off := rng.Uint64N(maxBlocks * blockSize)
	if rng.IntN(2) == 0 {
		off &^= blockSize - 1
	}
	end := off + 1 + rng.Uint64N(5*blockSize)
	switch o.kind {
	case "write":
		err = tx.WriteData(in, off, bytes.Repeat([]byte{byte(o.seed)}, int(end-off)))
	case "overwrite": // whole blocks: in place where they are mapped
		err = tx.WriteData(in, off&^(blockSize-1), bytes.Repeat([]byte{byte(o.seed)}, int(1+rng.Uint64N(4))*blockSize))
	case "truncate":
		err = tx.Truncate(in, off)
	case "zero":
		err = tx.zeroRange(in, off, end, rng.IntN(2) == 0)
	case "preallocate":
		err = tx.Preallocate(in, off, end)
	case "share":
		var dst *meta.Inode
		if dst, err = pick(); err != nil || dst == nil {
			return err
		}
		from, to := rng.Uint64N(maxBlocks), rng.Uint64N(maxBlocks)
		blocks := in.Size / blockSize
		n := min(1+rng.Uint64N(8), blocks-min(from, blocks))
		if n == 0 || in == dst && from < to+n && to < from+n {
			return nil
		}
		dst.Size = max(dst.Size, (to+n)*blockSize)
		tx.SetInode(dst)
		err = tx.Share(in, from, dst, to, n)
	case "names":
		name := fmt.Sprint("n", rng.IntN(4))
		if e, derr := tx.Dirent(in.Ino, name); derr == nil {
			tx.RemoveDirent(in, e)
			tx.RemoveXattr(in.Ino, name)
			tx.ClearOrphan(in.Ino)
		} else {
			tx.AddDirent(in, name, in.Ino, in.Mode)
			tx.SetXattr(in.Ino, name, []byte(name))
			tx.SetOrphan(in.Ino)
		}
		in.Size = max(in.Size, 1)
	case "facts":
		name := fmt.Sprint("f", rng.IntN(4))
		if _, ferr := tx.Fact(name); ferr == nil {
			tx.DeleteFact(name)
		} else {
			return tx.SetFact(name, bytes.Repeat([]byte{1}, int(o.seed%1000)))
		}
	case "free":
		if rng.IntN(4) > 0 {
			return nil
		}
		in.Flags |= meta.FlagXattr
		err = tx.FreeInode(in)
		return err
	}
	if err == nil {
		tx.SetInode(in)
	}
	return err
}
