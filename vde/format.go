package vde

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde/image"
	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// Names in a store directory.
const (
	infoName  = "vde.json"
	imageName = "disk.vde"
	metaName  = "meta"
	lockName  = "LOCK"
	logsName  = "raft" // of whoever keeps the logs
)

// errNotEmpty is the ErrStoreExists of a directory with other files.
var errNotEmpty error = &notEmpty{}

type notEmpty struct{}

func (*notEmpty) Error() string { return "the directory is not empty" }
func (*notEmpty) Unwrap() error { return ErrStoreExists }

// MinSize is the smallest image in bytes.
const MinSize = 1 << 20

// Info tells what a store is.
type Info = layout.Info

// FormatOptions say how a store is made.
type FormatOptions struct {
	Size        uint64 // bytes of the image, rounded down to whole blocks; 0 with a block device: all of it
	BlockDevice string // absolute path of a device to use instead of disk.vde
	NodeID      uint64 // 0: 1
	FS          vfs.FS // nil: the operating system's
	Now         time.Time
	// Owner of the root directory.
	UID, GID uint32
}

// Format makes a store in dir, which must be missing or empty. vde.json is written last: a crash before that leaves
// no store, only files that the next Format of the directory refuses and names.
func Format(dir string, o FormatOptions) (Info, error) {
	f := o.FS
	if f == nil {
		f = vfs.Default
	}
	if o.NodeID == 0 {
		o.NodeID = 1
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	names, err := f.List(dir)
	switch {
	case err == nil && len(names) > 0:
		for _, n := range names {
			if n == infoName {
				return Info{}, fmt.Errorf("%s: %w; remove it first if its files are not needed any more", dir, ErrStoreExists)
			}
		}
		return Info{}, fmt.Errorf("%s: %w: it holds %q; choose another directory", dir, errNotEmpty, names[0])
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Info{}, fmt.Errorf("look into %s: %w", dir, err)
	}
	sb, err := geometry(o)
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w", dir, err)
	}
	o.Size = sb.Blocks * layout.BlockSize
	if _, err := rand.Read(sb.UUID[:]); err != nil {
		return Info{}, fmt.Errorf("make a uuid: %w", err)
	}
	// RFC 9562, section 5.4: a random UUID says so in two places.
	sb.UUID[6], sb.UUID[8] = sb.UUID[6]&0x0f|0x40, sb.UUID[8]&0x3f|0x80

	if err := f.MkdirAll(dir, 0o700); err != nil {
		return Info{}, fmt.Errorf("make %s: %w", dir, err)
	}
	if err := formatImage(f, dir, o.BlockDevice, sb); err != nil {
		return Info{}, err
	}
	if err := formatMeta(f, f.PathJoin(dir, metaName), layout.FormatUUID(sb.UUID), o); err != nil {
		return Info{}, err
	}
	info := Info{
		FormatVersion: layout.Newest, UUID: layout.FormatUUID(sb.UUID), NodeID: o.NodeID, BlockSize: layout.BlockSize,
		Size: o.Size, BlockDevice: o.BlockDevice, Created: o.Now.UTC().Truncate(time.Second),
	}
	return info, writeInfo(f, dir, info)
}

// Room tells how many bytes of data blocks a store that Format makes has. The errors are Format's: ErrTooSmall, or those of the block device.
func Room(o FormatOptions) (uint64, error) {
	sb, err := geometry(o)
	if err != nil {
		return 0, err
	}
	return (sb.DataEnd() - sb.DataStart) * layout.BlockSize, nil
}

// geometry places the regions of the image that Format makes.
func geometry(o FormatOptions) (layout.Superblock, error) {
	if o.Size == 0 && o.BlockDevice == "" {
		return layout.Superblock{}, fmt.Errorf("%w: a size is needed", ErrTooSmall)
	}
	if o.BlockDevice != "" {
		size, err := deviceSize(o.BlockDevice)
		if err != nil {
			return layout.Superblock{}, err
		}
		if o.Size == 0 {
			o.Size = size
		}
		if o.Size > size {
			return layout.Superblock{}, fmt.Errorf("size %d is larger than the %d bytes of %s", o.Size, size, o.BlockDevice)
		}
	}
	if o.Size < MinSize {
		return layout.Superblock{}, fmt.Errorf("size %d: %w: the least is %d bytes", o.Size, ErrTooSmall, MinSize)
	}
	sb, err := layout.Geometry(o.Size / layout.BlockSize)
	if err != nil {
		return layout.Superblock{}, fmt.Errorf("size %d: %w: %w", o.Size, ErrTooSmall, err)
	}
	return sb, nil
}

// deviceSize tells the size of a block device in bytes.
func deviceSize(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("block device %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%s is not a block device", path)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open block device %s: %w", path, err)
	}
	defer unix.Close(fd)
	end, err := unix.Seek(fd, 0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size of block device %s: %w", path, err)
	}
	return uint64(end), nil
}

func formatImage(f vfs.FS, dir, device string, sb layout.Superblock) error {
	path := f.PathJoin(dir, imageName)
	var file vfs.File
	var err error
	if device != "" {
		path = device
		file, err = f.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	} else {
		file, err = f.Create(path, vfs.WriteCategoryUnspecified)
	}
	if err != nil {
		return fmt.Errorf("make the image %s: %w", path, err)
	}
	if err := image.Create(file, sb); err != nil {
		return errors.Join(fmt.Errorf("make the image %s: %w", path, err), file.Close())
	}
	return file.Close()
}

func formatMeta(f vfs.FS, dir, uuid string, o FormatOptions) error {
	if err := f.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	m, err := meta.Open(dir, meta.Options{FS: f, Create: true, Barrier: func() error { return nil }, Logger: quietLogger{}})
	if err != nil {
		return err
	}
	now := meta.TimeOf(o.Now)
	b := m.NewBatch()
	b.SetInode(&meta.Inode{
		Ino: meta.RootIno, Mode: unix.S_IFDIR | 0o755, Nlink: 2, UID: o.UID, GID: o.GID, Parent: meta.RootIno, NextCookie: firstCookie,
		Atime: now, Mtime: now, Ctime: now, Btime: now,
	})
	b.SetGroup(0, meta.Group{NextSeq: uint64(meta.RootIno) + 1, Inodes: 1})
	b.SetFact(factUUID, []byte(uuid))
	if err := b.Commit(); err != nil {
		return errors.Join(err, m.Close())
	}
	if err := m.Flush(); err != nil {
		return errors.Join(fmt.Errorf("write metadata: %w", err), m.Close())
	}
	return m.Close()
}

// writeInfo makes vde.json appear whole or not at all.
func writeInfo(f vfs.FS, dir string, info Info) error {
	b, err := layout.EncodeInfo(info)
	if err != nil {
		return fmt.Errorf("encode %s: %w", infoName, err)
	}
	path := f.PathJoin(dir, infoName)
	file, err := f.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	_, err = file.Write(b)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Rename(path+".new", path); err != nil {
		return fmt.Errorf("name %s: %w", path, err)
	}
	for _, d := range []string{dir, f.PathDir(dir)} {
		if err := syncDir(f, d); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(f vfs.FS, dir string) error {
	d, err := f.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// storeWithoutInfo names what tells that a directory without vde.json was a store; "" if it was none. A format that was interrupted, which
// leaves no log, has not made one yet.
func storeWithoutInfo(f vfs.FS, dir string) string {
	for _, name := range []string{metaName, logsName} {
		if _, err := f.Stat(f.PathJoin(dir, name)); err != nil {
			return ""
		}
	}
	return metaName + " and " + logsName
}

// ReadInfo reads vde.json of a store that may be open elsewhere. f nil: the operating system's.
func ReadInfo(f vfs.FS, dir string) (Info, error) {
	if f == nil {
		f = vfs.Default
	}
	file, err := f.Open(f.PathJoin(dir, infoName))
	if errors.Is(err, fs.ErrNotExist) {
		if rest := storeWithoutInfo(f, dir); rest != "" {
			return Info{}, fmt.Errorf("store %s: %w: it has %s, but its %s is missing", dir, ErrDamaged, rest, infoName)
		}
		return Info{}, fmt.Errorf("%s: %w (it has no %s); make one with vde format", dir, ErrNotAStore, infoName)
	}
	if err != nil {
		return Info{}, fmt.Errorf("open store %s: %w", dir, err)
	}
	b, err := io.ReadAll(io.LimitReader(file, 1<<16))
	if err = errors.Join(err, file.Close()); err != nil {
		return Info{}, fmt.Errorf("read %s of %s: %w", infoName, dir, err)
	}
	info, err := layout.DecodeInfo(b)
	var v *layout.VersionError
	if err != nil && !errors.As(err, &v) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return Info{}, fmt.Errorf("store %s: %w", dir, err)
	}
	return info, nil
}
