package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"vdefs/vde/layout"
	"vdefs/vde/meta"
)

// readInfo reads vde.json, and with Repair makes it anew from what else is there if it is damaged. ok is false when the
// store cannot be judged without it.
func (r *run) readInfo() (ok bool, err error) {
	f := r.o.FS
	path := f.PathJoin(r.dir, infoName)
	var info layout.Info
	file, err := f.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("%s is missing", infoName)
	case err != nil:
		return false, fmt.Errorf("open store %s: %w", r.dir, err)
	default:
		b, rerr := io.ReadAll(io.LimitReader(file, 1<<16))
		if rerr = errors.Join(rerr, file.Close()); rerr != nil {
			return false, fmt.Errorf("read %s: %w", path, rerr)
		}
		info, err = layout.DecodeInfo(b)
	}
	var v *layout.VersionError
	if errors.As(err, &v) {
		return false, fmt.Errorf("store %s: %w", r.dir, err)
	}
	if err == nil {
		r.info = info
		return true, nil
	}
	found := finding{Finding: Finding{Kind: KindInfo, What: err.Error()}}
	info, gerr := r.guessInfo()
	if gerr != nil {
		found.What += "; it cannot be made anew: " + gerr.Error()
		r.find(found)
		return false, nil
	}
	r.info, found.Repairable = info, true
	if r.o.Repair {
		if err := r.writeInfo(info); err != nil {
			return false, err
		}
		found.Repaired = true
	}
	r.report.Findings = append(r.report.Findings, found.Finding)
	return true, nil
}

// guessInfo finds out what vde.json said from the image, the metadata and the log.
func (r *run) guessInfo() (layout.Info, error) {
	f := r.o.FS
	info := layout.Info{FormatVersion: layout.Newest, NodeID: 1, BlockSize: layout.BlockSize}
	path := f.PathJoin(r.dir, imageName)
	st, err := f.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return info, fmt.Errorf("there is no %s, and nothing tells which device is the image", imageName)
	}
	if err != nil {
		return info, err
	}
	file, err := f.Open(path)
	if err != nil {
		return info, err
	}
	im := &imageFile{file: file, path: path}
	sb, err := im.readSuper(0)
	if err != nil && st.Size() >= 2*layout.BlockSize {
		sb, err = im.readSuper(uint64(st.Size())/layout.BlockSize - 1)
	}
	if err = errors.Join(err, im.close()); err != nil {
		return info, err
	}
	info.UUID, info.Size = layout.FormatUUID(sb.UUID), sb.Blocks*layout.BlockSize
	if id := r.nodeID(); id != 0 {
		info.NodeID = id
	}
	err = r.peek(f, func(db *pebble.DB) error {
		uuid, err := getKey(db, []byte("s"+factUUID))
		if err != nil {
			return err
		}
		if string(uuid) != info.UUID {
			return fmt.Errorf("the metadata is of store %q, the image of %s", uuid, info.UUID)
		}
		// The root directory is as old as the store.
		v, err := getKey(db, binary.BigEndian.AppendUint64([]byte{'i'}, uint64(meta.RootIno)))
		if err != nil {
			return err
		}
		root, err := meta.DecodeInode(meta.RootIno, v)
		info.Created = time.Unix(root.Btime.Sec, 0).UTC()
		return err
	})
	return info, err
}

// writeInfo makes vde.json appear whole or not at all.
func (r *run) writeInfo(info layout.Info) error {
	b, err := layout.EncodeInfo(info)
	if err != nil {
		return fmt.Errorf("encode %s: %w", infoName, err)
	}
	f := r.o.FS
	path := f.PathJoin(r.dir, infoName)
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
	d, err := f.OpenDir(r.dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", r.dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", r.dir, err)
	}
	return nil
}
