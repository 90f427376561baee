// Package crash pulls the plug: it runs a node on a file system in memory, takes the state that a power cut at any
// write or sync could leave, opens it again, and compares with what was done and what was promised.
package crash

import (
	"github.com/cockroachdb/pebble/v2/vfs"
)

// hookFS calls hook before and after every operation that changes the file system below.
type hookFS struct {
	vfs.FS
	hook func(op, name string)
}

func (f *hookFS) do(op, name string, act func() error) error {
	f.hook(op, name)
	return act()
}

func (f *hookFS) open(op, name string, act func() (vfs.File, error)) (vfs.File, error) {
	f.hook(op, name)
	file, err := act()
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

func (f *hookFS) Unwrap() vfs.FS { return f.FS }

type hookFile struct {
	vfs.File
	fs   *hookFS
	name string
}

func (f *hookFile) Write(p []byte) (n int, err error) {
	f.fs.hook("write", f.name)
	return f.File.Write(p)
}

func (f *hookFile) WriteAt(p []byte, off int64) (n int, err error) {
	f.fs.hook("write", f.name)
	return f.File.WriteAt(p, off)
}

func (f *hookFile) Sync() error {
	return f.fs.do("sync", f.name, f.File.Sync)
}

func (f *hookFile) SyncData() error {
	return f.fs.do("sync", f.name, f.File.SyncData)
}
