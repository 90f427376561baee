package replica

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vdefs/fs/command"
	"vdefs/fs/posix"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// Computed attributes, readable on every file and listed on none: user.vde tells all as one JSON object,
// user.vde.inode and so on its fields one by one.
const computed = "user.vde"

// FileInfo is what user.vde tells of an inode.
type FileInfo struct {
	Inode     uint64       `json:"inode"`
	Group     string       `json:"group"`
	Size      uint64       `json:"size"`
	Blocks    uint64       `json:"blocks"` // of 4096 bytes
	Version   uint64       `json:"version"`
	Extents   int          `json:"extents"`
	ExtentMap []ExtentInfo `json:"extent_map,omitempty"` // the first of them
	Checksums string       `json:"checksums"`            // "ok", "bad: ...", "none", or "not checked: ..."
	PNG       string       `json:"png,omitempty"`        // what re-encoding did, as stored
}

// ExtentInfo is one extent.
type ExtentInfo struct {
	FileBlock uint64 `json:"file_block"`
	Block     uint64 `json:"block"`
	Count     uint64 `json:"count"`
	Unwritten bool   `json:"unwritten,omitempty"`
	Shared    bool   `json:"shared,omitempty"`
}

const (
	infoExtents  = 200      // extents listed
	infoVerified = 64 << 20 // bytes: larger files are not read through to tell their state
)

// fileInfo describes an inode.
func (v *Volume) fileInfo(ctx context.Context, ino meta.Ino) (FileInfo, error) {
	in, err := v.Inode(ctx, ino)
	if err != nil {
		return FileInfo{}, err
	}
	g, err := v.group(ino)
	if err != nil {
		return FileInfo{}, err
	}
	f := FileInfo{Inode: uint64(ino), Group: string(g.Name()), Size: in.Size, Blocks: in.Blocks, Version: in.Version, Checksums: "none"}
	err = v.eng.Meta().Extents(ino, 0, 1<<62, func(x meta.Extent) (bool, error) {
		if f.Extents++; f.Extents <= infoExtents {
			f.ExtentMap = append(f.ExtentMap, ExtentInfo{x.FileBlock, x.Phys, x.Count, x.Unwritten, v.eng.Shared(x.Phys, x.Count)})
		}
		return true, nil
	})
	if err != nil {
		return FileInfo{}, err
	}
	if in.Mode&unix.S_IFMT == unix.S_IFREG && in.Blocks > 0 {
		f.Checksums = v.checksums(ctx, &in)
	}
	if p, err := v.eng.Meta().Xattr(ino, pngXattr); err == nil {
		f.PNG = string(p)
	}
	return f, nil
}

// checksums reads a file that is not too large and tells whether its blocks are good.
func (v *Volume) checksums(ctx context.Context, in *meta.Inode) string {
	if in.Blocks*4096 > infoVerified {
		return "not checked: the file is large, use vde scrub or vde fsck --data"
	}
	buf := make([]byte, 1<<20)
	for off := uint64(0); off < in.Size; {
		at, found, err := v.eng.Seek(in.Ino, off, false)
		if err != nil || !found {
			break
		}
		n, err := v.eng.Read(ctx, in.Ino, at, buf)
		if errors.Is(err, vde.ErrBadBlock) {
			return "bad: " + err.Error()
		}
		if err != nil || n == 0 {
			break
		}
		off = at + uint64(n)
	}
	return "ok"
}

// pngXattr is what re-encoding leaves on a file, and a directory's switch for it.
const pngXattr = "user.vde.png"

// Xattr implements fs.Volume.
func (v *Volume) Xattr(ctx context.Context, ino meta.Ino, name string) ([]byte, error) {
	if name == computed || strings.HasPrefix(name, computed+".") && !posix.UserSettable(name) {
		return v.computedXattr(ctx, ino, name)
	}
	if err := v.barrier(ctx, ino); err != nil {
		return nil, err
	}
	in, err := v.eng.Meta().Inode(ino)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, syscall.ESTALE
	}
	if err != nil {
		return nil, err
	}
	if in.Flags&meta.FlagXattr == 0 {
		return nil, syscall.ENODATA
	}
	value, err := v.eng.Meta().Xattr(ino, name)
	if errors.Is(err, meta.ErrNotFound) {
		err = syscall.ENODATA
	}
	return value, err
}

func (v *Volume) computedXattr(ctx context.Context, ino meta.Ino, name string) ([]byte, error) {
	f, err := v.fileInfo(ctx, ino)
	if err != nil {
		return nil, err
	}
	switch strings.TrimPrefix(strings.TrimPrefix(name, computed), ".") {
	case "":
		return json.Marshal(f)
	case "inode":
		return strconv.AppendUint(nil, f.Inode, 10), nil
	case "group":
		return []byte(f.Group), nil
	case "blocks":
		return strconv.AppendUint(nil, f.Blocks, 10), nil
	case "extents":
		return json.Marshal(f.ExtentMap)
	case "checksums":
		return []byte(f.Checksums), nil
	case "version":
		return strconv.AppendUint(nil, f.Version, 10), nil
	}
	return nil, syscall.ENODATA
}

// Xattrs implements fs.Volume.
func (v *Volume) Xattrs(ctx context.Context, ino meta.Ino) (names []string, err error) {
	if err := v.barrier(ctx, ino); err != nil {
		return nil, err
	}
	in, err := v.eng.Meta().Inode(ino)
	if errors.Is(err, meta.ErrNotFound) {
		return nil, syscall.ESTALE
	}
	if err != nil || in.Flags&meta.FlagXattr == 0 {
		return nil, err
	}
	err = v.eng.Meta().Xattrs(ino, func(name string, _ []byte) (bool, error) {
		names = append(names, name)
		return true, nil
	})
	return names, err
}

// SetXattr implements fs.Volume.
func (v *Volume) SetXattr(ctx context.Context, ino meta.Ino, name string, value []byte, flags uint32, clearSGID bool) error {
	v.settled(ino)
	_, err := v.change(ctx, &command.SetXattr{Ino: ino, Name: name, Value: value, Flags: flags, ClearSGID: clearSGID})
	v.aclTold(ctx, ino, name, err)
	return err
}

// RemoveXattr implements fs.Volume.
func (v *Volume) RemoveXattr(ctx context.Context, ino meta.Ino, name string) error {
	v.settled(ino)
	_, err := v.change(ctx, &command.RemoveXattr{Ino: ino, Name: name})
	v.aclTold(ctx, ino, name, err)
	return err
}

// aclTold returns when the other mounts know of a change to the ACLs of a directory.
func (v *Volume) aclTold(ctx context.Context, ino meta.Ino, name string, err error) {
	if err != nil || v.node == nil || !posix.IsACL(name) {
		return
	}
	if in, err := v.inode(ino); err != nil || isDir(&in) {
		v.othersTold(ctx, false)
	}
}
