package check

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// scratchFS is a file system that begins as a copy of another one and keeps every change in memory: what is below is
// only ever read. It lets a log be applied to see what comes out, without writing to the store.
//
// Invariant: a path is in names if and only if it was changed: to a file or directory of the scratch, or to nil, which
// means that it is gone. Whatever is below a path that is gone is gone too. Paths are cleaned by the caller: the file
// system below joins them.
type scratchFS struct {
	base vfs.FS

	mu    sync.Mutex
	names map[string]*scratchNode // guarded by mu
	locks map[string]bool         // guarded by mu
}

func newScratchFS(base vfs.FS) *scratchFS {
	return &scratchFS{base: base, names: map[string]*scratchNode{}, locks: map[string]bool{}}
}

// scratchNode is a file, or a directory that is not below.
type scratchNode struct {
	name string // as it was when the node was made, for messages
	dir  bool

	mu    sync.RWMutex
	base  vfs.File         // what lies below pages; nil: zeros. Guarded by mu
	size  int64            // guarded by mu
	pages map[int64][]byte // of scratchPage bytes each, by number; guarded by mu
}

const scratchPage = 4096

func notExist(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

// lookupLocked returns the node of a path: below tells that it must be looked for below instead. s.mu must be held.
func (s *scratchFS) lookupLocked(name string) (n *scratchNode, below bool) {
	if n, ok := s.names[name]; ok {
		return n, false
	}
	for d := name; ; {
		up := s.base.PathDir(d)
		if up == d {
			return nil, true
		}
		if n, ok := s.names[up]; ok {
			// Below a directory that is gone or is of the scratch alone there is nothing.
			_ = n
			return nil, false
		}
		d = up
	}
}

// nodeLocked returns the file of a path, bringing it up from below if need be. s.mu must be held.
func (s *scratchFS) nodeLocked(op, name string) (*scratchNode, error) {
	n, below := s.lookupLocked(name)
	if n != nil {
		return n, nil
	}
	if !below {
		return nil, notExist(op, name)
	}
	st, err := s.base.Stat(name)
	if err != nil {
		return nil, err
	}
	n = &scratchNode{name: name, dir: st.IsDir(), pages: map[int64][]byte{}}
	if !n.dir {
		if n.base, err = s.base.Open(name); err != nil {
			return nil, err
		}
		if n.size, err = sizeBelow(n.base, st); err != nil {
			return nil, errors.Join(&fs.PathError{Op: op, Path: name, Err: err}, n.base.Close())
		}
		s.names[name] = n
	}
	return n, nil
}

// sizeBelow is how much can be read from a file, which stat does not tell of a block device.
func sizeBelow(file vfs.File, st vfs.FileInfo) (int64, error) {
	fd := file.Fd()
	if fd == vfs.InvalidFd {
		return st.Size(), nil
	}
	var sys unix.Stat_t
	if err := unix.Fstat(int(fd), &sys); err != nil || sys.Mode&unix.S_IFMT != unix.S_IFBLK {
		return st.Size(), err
	}
	return unix.Seek(int(fd), 0, io.SeekEnd)
}

func (s *scratchFS) createLocked(name string) (*scratchNode, error) {
	if err := s.parentLocked(name); err != nil {
		return nil, err
	}
	n := &scratchNode{name: name, pages: map[int64][]byte{}}
	s.names[name] = n
	return n, nil
}

// parentLocked refuses a path in a directory that is not there.
func (s *scratchFS) parentLocked(name string) error {
	up := s.base.PathDir(name)
	n, err := s.nodeLocked("open", up)
	if err == nil && !n.dir {
		err = &fs.PathError{Op: "open", Path: name, Err: unix.ENOTDIR}
	}
	return err
}

func (s *scratchFS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.createLocked(name)
	if err != nil {
		return nil, err
	}
	return &scratchFile{n: n}, nil
}

func (s *scratchFS) Open(name string, _ ...vfs.OpenOption) (vfs.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.nodeLocked("open", name)
	if err != nil {
		return nil, err
	}
	return &scratchFile{n: n}, nil
}

func (s *scratchFS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.nodeLocked("open", name)
	if errors.Is(err, fs.ErrNotExist) {
		n, err = s.createLocked(name)
	}
	if err != nil {
		return nil, err
	}
	return &scratchFile{n: n}, nil
}

func (s *scratchFS) OpenDir(name string) (vfs.File, error) { return s.Open(name) }

func (s *scratchFS) Link(oldname, newname string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.nodeLocked("link", oldname)
	if err != nil {
		return err
	}
	if m, err := s.nodeLocked("link", newname); err == nil && m != nil {
		return &fs.PathError{Op: "link", Path: newname, Err: fs.ErrExist}
	}
	s.names[newname] = n
	return s.parentLocked(newname)
}

func (s *scratchFS) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.nodeLocked("remove", name)
	if err != nil {
		return err
	}
	if n.dir {
		if names, err := s.listLocked(name); err != nil || len(names) > 0 {
			return errors.Join(&fs.PathError{Op: "remove", Path: name, Err: unix.ENOTEMPTY}, err)
		}
	}
	s.names[name] = nil
	return nil
}

func (s *scratchFS) RemoveAll(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetBelowLocked(name)
	s.names[name] = nil
	return nil
}

// forgetBelowLocked forgets every path below one.
func (s *scratchFS) forgetBelowLocked(name string) {
	prefix := s.base.PathJoin(name, "x")
	prefix = prefix[:len(prefix)-1]
	for p := range s.names {
		if strings.HasPrefix(p, prefix) {
			delete(s.names, p)
		}
	}
}

func (s *scratchFS) Rename(oldname, newname string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.nodeLocked("rename", oldname)
	if err != nil {
		return err
	}
	if n.dir {
		return &fs.PathError{Op: "rename", Path: oldname, Err: fmt.Errorf("%w: directories stay where they are in a scratch", errors.ErrUnsupported)}
	}
	if err := s.parentLocked(newname); err != nil {
		return err
	}
	s.names[oldname], s.names[newname] = nil, n
	return nil
}

func (s *scratchFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := s.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return s.OpenReadWrite(newname, c)
}

func (s *scratchFS) MkdirAll(dir string, _ os.FileMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []string
	for d := dir; ; d = s.base.PathDir(d) {
		n, err := s.nodeLocked("mkdir", d)
		if err == nil {
			if !n.dir {
				return &fs.PathError{Op: "mkdir", Path: d, Err: unix.ENOTDIR}
			}
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, d)
		if s.base.PathDir(d) == d {
			break
		}
	}
	for _, d := range missing {
		s.names[d] = &scratchNode{name: d, dir: true}
	}
	return nil
}

// Lock keeps users of the scratch apart; the store's own lock is the business of who made the scratch.
func (s *scratchFS) Lock(name string) (io.Closer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[name] {
		return nil, &fs.PathError{Op: "lock", Path: name, Err: unix.EAGAIN}
	}
	s.locks[name] = true
	return scratchLock{s, name}, nil
}

type scratchLock struct {
	s    *scratchFS
	name string
}

func (l scratchLock) Close() error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	delete(l.s.locks, l.name)
	return nil
}

func (s *scratchFS) List(dir string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listLocked(dir)
}

func (s *scratchFS) listLocked(dir string) ([]string, error) {
	n, below := s.lookupLocked(dir)
	if n == nil && !below {
		return nil, notExist("list", dir)
	}
	var names []string
	if below {
		var err error
		if names, err = s.base.List(dir); err != nil {
			return nil, err
		}
	}
	there := map[string]bool{}
	for _, name := range names {
		there[name] = true
	}
	for p, n := range s.names {
		if p != dir && s.base.PathDir(p) == dir {
			there[s.base.PathBase(p)] = n != nil
		}
	}
	names = names[:0]
	for name, is := range there {
		if is {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *scratchFS) Stat(name string) (vfs.FileInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, below := s.lookupLocked(name)
	if below {
		return s.base.Stat(name)
	}
	if n == nil {
		return nil, notExist("stat", name)
	}
	return n.stat(name), nil
}

func (s *scratchFS) PathBase(path string) string    { return s.base.PathBase(path) }
func (s *scratchFS) PathJoin(elem ...string) string { return s.base.PathJoin(elem...) }
func (s *scratchFS) PathDir(path string) string     { return s.base.PathDir(path) }

func (s *scratchFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	return s.base.GetDiskUsage(path)
}

// Unwrap is nil: what is below must not be reached past the scratch.
func (s *scratchFS) Unwrap() vfs.FS { return nil }

// close closes the files below. Nothing may use the scratch any more.
func (s *scratchFS) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, n := range s.names {
		if n != nil && n.base != nil {
			errs = append(errs, n.base.Close())
			n.base = nil
		}
	}
	return errors.Join(errs...)
}

func (n *scratchNode) stat(name string) vfs.FileInfo {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return scratchInfo{name, n.size, n.dir}
}

func (n *scratchNode) readAt(b []byte, off int64) (int, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if off >= n.size {
		return 0, io.EOF
	}
	short := int64(len(b)) > n.size-off
	if short {
		b = b[:n.size-off]
	}
	for done := 0; done < len(b); {
		at := off + int64(done)
		page, skip := at/scratchPage, at%scratchPage
		p, ok := n.pages[page]
		if ok {
			done += copy(b[done:], p[skip:])
			continue
		}
		// As far as no page is in the way, in one read.
		end := (page + 1) * scratchPage
		for end < off+int64(len(b)) && n.pages[end/scratchPage] == nil {
			end += scratchPage
		}
		part := b[done:min(int64(len(b)), end-off)]
		if err := n.readBelow(part, at); err != nil {
			return done, err
		}
		done += len(part)
	}
	if short {
		return len(b), io.EOF
	}
	return len(b), nil
}

// readBelow reads what lies below the pages. n.mu must be held.
func (n *scratchNode) readBelow(b []byte, off int64) error {
	got := 0
	if n.base != nil {
		var err error
		if got, err = n.base.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	clear(b[got:])
	return nil
}

func (n *scratchNode) writeAt(b []byte, off int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for done := 0; done < len(b); {
		at := off + int64(done)
		page, skip := at/scratchPage, at%scratchPage
		p, ok := n.pages[page]
		if !ok {
			p = make([]byte, scratchPage)
			if skip != 0 || len(b)-done < scratchPage {
				if err := n.readBelow(p, page*scratchPage); err != nil {
					return err
				}
			}
			n.pages[page] = p
		}
		done += copy(p[skip:], b[done:])
	}
	n.size = max(n.size, off+int64(len(b)))
	return nil
}

// scratchFile is an open file. pos belongs to whoever reads or writes in order.
type scratchFile struct {
	n   *scratchNode
	pos int64
}

func (f *scratchFile) Close() error { return nil }

func (f *scratchFile) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := f.n.readAt(b, f.pos)
	f.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (f *scratchFile) ReadAt(b []byte, off int64) (int, error) { return f.n.readAt(b, off) }

func (f *scratchFile) Write(b []byte) (int, error) {
	n, err := f.WriteAt(b, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *scratchFile) WriteAt(b []byte, off int64) (int, error) {
	if f.n.dir {
		return 0, &fs.PathError{Op: "write", Path: f.n.name, Err: unix.EISDIR}
	}
	if err := f.n.writeAt(b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (f *scratchFile) Preallocate(int64, int64) error { return nil }
func (f *scratchFile) Stat() (vfs.FileInfo, error)    { return f.n.stat(f.n.name), nil }
func (f *scratchFile) Sync() error                    { return nil }
func (f *scratchFile) SyncTo(int64) (bool, error)     { return false, nil }
func (f *scratchFile) SyncData() error                { return nil }
func (f *scratchFile) Prefetch(int64, int64) error    { return nil }
func (f *scratchFile) Fd() uintptr                    { return vfs.InvalidFd }

type scratchInfo struct {
	name string
	size int64
	dir  bool
}

func (i scratchInfo) Name() string           { return i.name }
func (i scratchInfo) Size() int64            { return i.size }
func (i scratchInfo) IsDir() bool            { return i.dir }
func (i scratchInfo) ModTime() time.Time     { return time.Time{} }
func (i scratchInfo) Sys() any               { return nil }
func (i scratchInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
func (i scratchInfo) Mode() os.FileMode {
	if i.dir {
		return os.ModeDir | 0o700
	}
	return 0o600
}
