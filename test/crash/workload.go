package crash

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/replica"
	"vdefs/vde/meta"
)

// workload makes random changes on a volume.
type workload struct {
	v   *replica.Volume
	rng *rand.Rand
}

// entry is one name that the workload may work on.
type entry struct {
	dir  meta.Ino
	name string
	ino  meta.Ino
	mode uint32
}

// entries lists all names of the volume.
func entries(v *replica.Volume) (dirs []meta.Ino, all []entry, err error) {
	var walk func(dir meta.Ino) error
	walk = func(dir meta.Ino) error {
		dirs = append(dirs, dir)
		var sub []meta.Ino
		err := v.ReadDir(context.Background(), dir, 0, false, func(e meta.Dirent, _ *meta.Inode) bool {
			all = append(all, entry{dir, e.Name, e.Ino, e.Type})
			if e.Type == unix.S_IFDIR {
				sub = append(sub, e.Ino)
			}
			return true
		})
		if err != nil {
			return err
		}
		for _, d := range sub {
			if err := walk(d); err != nil {
				return err
			}
		}
		return nil
	}
	err = walk(meta.RootIno)
	return dirs, all, err
}

// step does one random change. Refusals that POSIX allows are no errors: the state is compared, not the answer.
func (w *workload) step() (what string, err error) {
	ctx := context.Background()
	dirs, all, err := entries(w.v)
	if err != nil {
		return "list", err
	}
	r := w.rng
	dir := dirs[r.IntN(len(dirs))]
	name := string(rune('a' + r.IntN(6)))
	var files []entry
	for _, e := range all {
		if e.mode == unix.S_IFREG {
			files = append(files, e)
		}
	}
	n := r.IntN(100)
	switch {
	case n < 10 || len(files) == 0:
		_, err = w.v.Make(ctx, fs.NewNode{Parent: dir, Name: name, Mode: unix.S_IFREG | 0o644})
		return fmt.Sprintf("create %s in %d: %v", name, dir, err), nil
	case n < 15:
		_, err = w.v.Make(ctx, fs.NewNode{Parent: dir, Name: name, Mode: unix.S_IFDIR | 0o755})
		return fmt.Sprintf("mkdir %s in %d: %v", name, dir, err), nil
	case n < 18:
		_, err = w.v.Make(ctx, fs.NewNode{Parent: dir, Name: name, Mode: unix.S_IFLNK, Target: "to/" + name})
		return fmt.Sprintf("symlink %s in %d: %v", name, dir, err), nil
	}
	e := all[r.IntN(len(all))]
	f := files[r.IntN(len(files))]
	const maxOff = 64 << 10
	off := uint64(r.IntN(maxOff))
	if r.IntN(2) == 0 {
		off &^= 4095
	}
	switch {
	case n < 25:
		if e.mode == unix.S_IFDIR {
			_, err = w.v.Rmdir(ctx, e.dir, e.name)
		} else {
			_, err = w.v.Unlink(ctx, e.dir, e.name)
		}
		return fmt.Sprintf("remove %s of %d: %v", e.name, e.dir, err), nil
	case n < 35:
		flags := []uint32{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[r.IntN(4)]
		err = w.v.Rename(ctx, e.dir, e.name, dir, name, flags)
		return fmt.Sprintf("rename %s of %d to %s of %d, flags %d: %v", e.name, e.dir, name, dir, flags, err), nil
	case n < 39:
		_, err = w.v.Link(ctx, f.ino, dir, name)
		return fmt.Sprintf("link %d as %s in %d: %v", f.ino, name, dir, err), nil
	case n < 75:
		size := 1 + r.IntN(12<<10)
		if r.IntN(2) == 0 {
			size = (size + 4095) &^ 4095
		}
		b := make([]byte, size)
		fill := byte(r.IntN(255) + 1)
		for i := range b {
			b[i] = fill + byte(i>>9)
		}
		how := fs.WriteFlags(0)
		if r.IntN(6) == 0 {
			how = fs.WriteAppend
		}
		_, err = w.v.Write(ctx, f.ino, off, b, how)
		return fmt.Sprintf("write %d at %d of %d, %d: %v", size, off, f.ino, how, err), nil
	case n < 82:
		_, err = w.v.SetAttr(ctx, f.ino, fs.SetAttr{Size: &off})
		return fmt.Sprintf("truncate %d to %d: %v", f.ino, off, err), nil
	case n < 87:
		mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}[r.IntN(4)]
		_, err = w.v.Fallocate(ctx, f.ino, mode, off, uint64(1+r.IntN(16<<10)))
		return fmt.Sprintf("fallocate %d mode %d at %d: %v", f.ino, mode, off, err), nil
	case n < 92:
		// Whole blocks only: the rest of a copy is a change of its own.
		to := files[r.IntN(len(files))]
		in, ierr := w.v.Inode(ctx, f.ino)
		if ierr != nil {
			return "copy", ierr
		}
		off &^= 4095
		n := min(uint64(1+r.IntN(8))*4096, (in.Size-min(in.Size, off))&^4095)
		_, _, err = w.v.CopyRange(ctx, f.ino, off, to.ino, uint64(r.IntN(16))*4096, n)
		return fmt.Sprintf("copy %d to %d: %v", f.ino, to.ino, err), nil
	case n < 95:
		err = w.v.SetXattr(ctx, e.ino, "user."+name, []byte(name+name), 0, false)
		return fmt.Sprintf("setxattr user.%s of %d: %v", name, e.ino, err), nil
	case n < 96:
		err = w.v.RemoveXattr(ctx, e.ino, "user."+name)
		return fmt.Sprintf("removexattr user.%s of %d: %v", name, e.ino, err), nil
	default:
		mode := uint32(r.IntN(0o1000))
		_, err = w.v.SetAttr(ctx, e.ino, fs.SetAttr{Mode: &mode})
		return fmt.Sprintf("chmod %d: %v", e.ino, err), nil
	}
}

// dump tells all that can be seen of a volume, as text: equal text, equal state.
func dump(v *replica.Volume) (string, error) {
	ctx := context.Background()
	var lines []string
	_, all, err := entries(v)
	if err != nil {
		return "", err
	}
	all = append(all, entry{ino: meta.RootIno, name: "/", mode: unix.S_IFDIR})
	for _, e := range all {
		in, err := v.Inode(ctx, e.ino)
		if err != nil {
			return "", fmt.Errorf("entry %s of %d: %w", e.name, e.dir, err)
		}
		line := fmt.Sprintf("%d/%s ino=%d mode=%o nlink=%d size=%d blocks=%d mtime=%v ctime=%v target=%q", e.dir, e.name, in.Ino, in.Mode,
			in.Nlink, in.Size, in.Blocks, in.Mtime, in.Ctime, in.Target)
		if e.mode == unix.S_IFREG {
			b := make([]byte, in.Size)
			n, err := v.Read(ctx, in.Ino, 0, b)
			if err != nil || n != len(b) {
				return "", fmt.Errorf("read of %s (inode %d): %d of %d bytes: %w", e.name, in.Ino, n, in.Size, err)
			}
			line += fmt.Sprintf(" data=%x", sha256.Sum256(b))
		}
		names, err := v.Xattrs(ctx, in.Ino)
		if err != nil {
			return "", err
		}
		for _, n := range names {
			x, err := v.Xattr(ctx, in.Ino, n)
			if err != nil {
				return "", err
			}
			line += fmt.Sprintf(" %s=%q", n, x)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n"), nil
}
