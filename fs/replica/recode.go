package replica

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"vdefs/fs"
	"vdefs/fs/command"
	"vdefs/fs/recode"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// PNGStats is what re-encoding PNG files has done.
type PNGStats = recode.Stats

// StartPNG has the volume re-encode PNG files, with a mode of async, sync or off for what no directory has a mode of its
// own. memory is the budget of the whole volume in bytes, as in Options (0: vde.DefaultMemory): pictures get the third of it that
// the engine leaves, which is also what limits their size. It is called once, after Open and before the volume is mounted; it ends with Close. While the volume is read-only
// it does nothing.
func (v *Volume) StartPNG(mode string, memory int64) error {
	m, err := recode.ParseMode(mode)
	if err != nil {
		return err
	}
	if memory == 0 {
		memory = vde.DefaultMemory
	}
	o := recode.Options{Mode: m, Memory: max(1, memory/3), Logger: v.log}
	if !v.readOnly.Load() {
		o.FS, o.Queue = v.fs, v.fs.PathJoin(v.dir, "png-queue")
	}
	r := recode.New(recodeStore{v}, o)
	v.Watch(r)
	v.workers.Go(func() { r.Run(v.stop) })
	return nil
}

// recoder returns the volume's Recoder, nil before StartPNG.
func (v *Volume) recoder() *recode.Recoder {
	r, _ := v.watch.get().(*recode.Recoder)
	return r
}

// PNGStats returns what re-encoding has done since StartPNG; the zero value before.
func (v *Volume) PNGStats() PNGStats {
	if r := v.recoder(); r != nil {
		return r.Stats()
	}
	return PNGStats{}
}

var _ fs.SelfChanger = (*Volume)(nil)

// Attach implements fs.SelfChanger.
func (v *Volume) Attach(mount fs.Announcer) {
	v.attachFreezes(mount)
	if r := v.recoder(); r != nil {
		r.Attach(mount)
	}
}

// WaitsAtClose implements fs.SelfChanger.
func (v *Volume) WaitsAtClose() bool {
	r := v.recoder()
	return r != nil && r.WaitsAtClose()
}

// Closing implements fs.SelfChanger.
func (v *Volume) Closing(ino meta.Ino) {
	if r := v.recoder(); r != nil {
		r.Closing(ino)
	}
}

// recodeStore is the volume as re-encoding needs it.
type recodeStore struct{ v *Volume }

func (s recodeStore) Inode(ctx context.Context, ino meta.Ino) (meta.Inode, error) {
	return s.v.Inode(ctx, ino)
}

func (s recodeStore) Read(ctx context.Context, ino meta.Ino, off uint64, dst []byte) (int, error) {
	return s.v.Read(ctx, ino, off, dst)
}

func (s recodeStore) Xattr(_ context.Context, in *meta.Inode, name string) ([]byte, error) {
	if in.Flags&meta.FlagXattr == 0 {
		return nil, nil
	}
	value, err := s.v.eng.Meta().Xattr(in.Ino, name)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, nil
	}
	return value, err
}

func (s recodeStore) RemoveXattr(ctx context.Context, ino meta.Ino, name string) error {
	return s.v.RemoveXattr(ctx, ino, name)
}

func (s recodeStore) Entry(_ context.Context, dir meta.Ino, name string) (meta.Ino, error) {
	e, err := s.v.eng.Meta().Dirent(dir, name)
	if errors.Is(err, meta.ErrNotFound) {
		return 0, nil
	}
	return e.Ino, err
}

// Swap proposes the swap while the inode is held, so that nobody opens the file between the swap and its announcement.
func (s recodeStore) Swap(ctx context.Context, c *command.Replace, begin func(), applied func(meta.Inode)) error {
	done, err := s.v.reserve(ctx, vde.BlocksFor(0, uint64(len(c.Data))))
	if err != nil {
		return fmt.Errorf("swap of inode %d: %w", c.Ino, err)
	}
	defer done()
	if !s.v.opens.hold(c.Ino) {
		return recode.ErrBusy
	}
	defer s.v.opens.release(c.Ino)
	if n := s.v.node; n != nil && len(c.Data) > 0 {
		if err := n.freeze(ctx, c.Ino, c.Version); err != nil {
			return err
		}
	}
	begin()
	res, err := s.v.change(ctx, c)
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ESTALE):
		if n := s.v.node; n != nil {
			n.unfreeze(c.Ino)
		}
		return recode.ErrChanged
	case err != nil:
		if n := s.v.node; n != nil {
			n.unfreeze(c.Ino)
		}
		// It may have been applied all the same: then the kernel has to know.
		if in, e := s.v.Inode(ctx, c.Ino); e == nil && in.Version > c.Version {
			applied(in)
		}
		return fmt.Errorf("swap of inode %d: %w", c.Ino, err)
	}
	applied(res.Inode)
	return nil
}
