package meta

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// barrierFS is rule R1: nothing in meta/ becomes durable before what it depends on. Pebble runs without a log of its
// own, so what is new becomes reachable after a crash only through its MANIFEST (the edit that adds a flushed table);
// before anything is written there the barrier makes the Raft logs and the image durable. Before the write, not only
// before the sync: what was written may reach the disk at any time after.
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

func (f barrierFile) Write(p []byte) (int, error) {
	if err := f.barrier(); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f barrierFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.barrier(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}
