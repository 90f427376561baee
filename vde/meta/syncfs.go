package meta

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// barrierFS is rule R1: nothing in meta/ becomes durable before what it depends on. Pebble runs without a log of its
// own, so what is new becomes reachable after a crash only by a sync of its MANIFEST (the edit that adds a flushed
// table); before every such sync the barrier makes the Raft logs and the image durable.
type barrierFS struct {
	vfs.FS
	barrier func() error
}

func (f barrierFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil || !strings.HasPrefix(f.PathBase(name), "MANIFEST") {
		return file, err
	}
	return barrierFile{file, f.barrier}, nil
}

// Create, OpenReadWrite and ReuseForWrite are the ways a file becomes writable.
func (f barrierFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f barrierFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return f.wrap(name, file, err)
}

func (f barrierFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(oldname, newname, c)
	return f.wrap(newname, file, err)
}

// Unwrap gives Pebble the file system below, for its own checks.
func (f barrierFS) Unwrap() vfs.FS { return f.FS }

type barrierFile struct {
	vfs.File
	barrier func() error
}

func (f barrierFile) Sync() error {
	if err := f.barrier(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f barrierFile) SyncData() error {
	if err := f.barrier(); err != nil {
		return err
	}
	return f.File.SyncData()
}

// SyncTo may become a full sync, so it passes the barrier too.
func (f barrierFile) SyncTo(length int64) (bool, error) {
	if err := f.barrier(); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}
