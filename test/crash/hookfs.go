// Package crash pulls the plug: it runs a node on a file system in memory, takes the state that a power cut at any
// write or sync could leave, opens it again, and compares with what was done and what was promised.
package crash

import (
	"errors"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// hookFS calls hook before every operation that changes the file system below. An error of the hook is the operation's,
// which is then not done; a write that fails with a shortWrite is done by half.
type hookFS struct {
	vfs.FS
	hook func(op, name string) error
}

// shortWrite is the error of a write that wrote a part.
type shortWrite struct{ error }

func (e shortWrite) Unwrap() error { return e.error }

func (f *hookFS) do(op, name string, act func() error) error {
	if err := f.hook(op, name); err != nil {
		return &os.PathError{Op: op, Path: name, Err: err}
	}
	return act()
}

func (f *hookFS) open(op, name string, act func() (vfs.File, error)) (vfs.File, error) {
	var file vfs.File
	err := f.do(op, name, func() (err error) { file, err = act(); return err })
	if err != nil {
		return nil, err
	}
	return &hookFile{file, f, name}, nil
}

func (f *hookFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open("create", name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *hookFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.open("open", name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, o...) })
}

func (f *hookFS) OpenDir(name string) (vfs.File, error) {
	return f.open("opendir", name, func() (vfs.File, error) { return f.FS.OpenDir(name) })
}

func (f *hookFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open("reuse", newname, func() (vfs.File, error) { return f.FS.ReuseForWrite(oldname, newname, c) })
}

func (f *hookFS) Link(oldname, newname string) error {
	return f.do("link", newname, func() error { return f.FS.Link(oldname, newname) })
}

func (f *hookFS) Remove(name string) error {
	return f.do("remove", name, func() error { return f.FS.Remove(name) })
}

func (f *hookFS) Rename(oldname, newname string) error {
	return f.do("rename", newname, func() error { return f.FS.Rename(oldname, newname) })
}

func (f *hookFS) MkdirAll(name string, perm os.FileMode) error {
	return f.do("mkdir", name, func() error { return f.FS.MkdirAll(name, perm) })
}

func (f *hookFS) Unwrap() vfs.FS { return f.FS }

type hookFile struct {
	vfs.File
	fs   *hookFS
	name string
}

// write does a write, all of it or the half that the hook lets through.
func (f *hookFile) write(p []byte, act func(p []byte) (int, error)) (n int, err error) {
	err = f.fs.do("write", f.name, func() (err error) { n, err = act(p); return err })
	var short shortWrite
	if errors.As(err, &short) && len(p) > 1 {
		if n, werr := act(p[:len(p)/2]); werr != nil {
			return n, werr
		}
		return len(p) / 2, err
	}
	return n, err
}

func (f *hookFile) Write(p []byte) (n int, err error) { return f.write(p, f.File.Write) }

func (f *hookFile) WriteAt(p []byte, off int64) (n int, err error) {
	return f.write(p, func(p []byte) (int, error) { return f.File.WriteAt(p, off) })
}

func (f *hookFile) Sync() error {
	return f.fs.do("sync", f.name, f.File.Sync)
}

func (f *hookFile) SyncData() error {
	return f.fs.do("sync", f.name, f.File.SyncData)
}

func (f *hookFile) SyncTo(length int64) (full bool, err error) {
	err = f.fs.do("sync", f.name, func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, err
}
