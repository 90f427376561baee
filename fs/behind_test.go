package fs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// lazy is a shared volume that does what it may do later when it is asked to, unless it is told to lose it.
type lazy struct {
	*memVolume
	mu     sync.Mutex
	noted  map[meta.Ino][]func() error
	loses  bool
	behind int    // writes that were noted
	set    []bool // of each change of attributes: whether it might be noted
}

var _ SharedVolume = (*lazy)(nil)

func (v *lazy) AttachKernel(Kernel) {}

func (v *lazy) Peek(parent meta.Ino, name string) (meta.Inode, error) {
	return v.Lookup(context.Background(), parent, name)
}

func (v *lazy) PeekInode(ino meta.Ino) (meta.Inode, error) {
	return v.Inode(context.Background(), ino)
}

func (v *lazy) MayHaveSetID(ino meta.Ino) bool {
	in, err := v.PeekInode(ino)
	return err != nil || in.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0
}

func (v *lazy) Write(ctx context.Context, ino meta.Ino, off uint64, data []byte, how WriteFlags) (meta.Inode, error) {
	if how&WriteBehind == 0 {
		if err := v.Settle(ctx, ino); err != nil {
			return meta.Inode{}, err
		}
		return v.memVolume.Write(ctx, ino, off, data, how)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	data = append([]byte(nil), data...)
	v.behind++
	v.noted[ino] = append(v.noted[ino], func() error {
		_, err := v.memVolume.Write(ctx, ino, off, data, 0)
		return err
	})
	return meta.Inode{Ino: ino}, nil
}

func (v *lazy) SetAttr(ctx context.Context, ino meta.Ino, change SetAttr) (meta.Inode, error) {
	if err := v.Settle(ctx, ino); err != nil {
		return meta.Inode{}, err
	}
	v.mu.Lock()
	v.set = append(v.set, change.Behind)
	v.mu.Unlock()
	return v.memVolume.SetAttr(ctx, ino, change)
}

// notedWrites is how many writes have been noted.
func (v *lazy) notedWrites() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.behind
}

func (v *lazy) SetACLBehind(meta.Ino, []byte, bool) bool { return false }

func (v *lazy) Settle(_ context.Context, ino meta.Ino) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	noted := v.noted[ino]
	delete(v.noted, ino)
	if v.loses && noted != nil {
		return syscall.EIO
	}
	for _, write := range noted {
		if err := write(); err != nil {
			return err
		}
	}
	return nil
}

func mountLazy(t *testing.T) (string, *lazy) {
	t.Helper()
	needMount(t)
	logger, _ := test.NewNullLogger()
	v := &lazy{memVolume: newMemVolume(), noted: map[meta.Ino][]func() error{}}
	dir := t.TempDir()
	server, err := Mount(v, dir, MountOptions{Logger: logger, Shared: true, AllowOther: true, DefaultPermissions: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir, v
}

// TestWriteBehind: what settles the writes of a file, and which writes are not behind.
func TestWriteBehind(t *testing.T) {
	t.Parallel()
	dir, v := mountLazy(t)
	content := func(path string) string {
		in, err := v.Lookup(context.Background(), meta.RootIno, filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, err := v.Read(context.Background(), in.Ino, 0, buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	for name, test := range map[string]struct {
		flags  int
		atOnce bool
		settle func(f *os.File) error
	}{
		"close": {0, false, (*os.File).Close},
		"fsync": {0, false, (*os.File).Sync},
		"flock": {0, false, func(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }},
		"fcntl": {0, false, func(f *os.File) error {
			return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
		}},
		"O_SYNC":   {unix.O_SYNC, true, nil},
		"O_DSYNC":  {unix.O_DSYNC, true, nil},
		"O_APPEND": {unix.O_APPEND, true, nil},
	} {
		path := filepath.Join(dir, name)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|test.flags, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if name == "flock" {
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
		}
		if name == "fcntl" {
			if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if done := content(path) == "x"; done != test.atOnce {
			t.Errorf("%s: the write is done when it returns: %v, want %v", name, done, test.atOnce)
		}
		if test.settle == nil {
			continue
		}
		if err := test.settle(f); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if content(path) != "x" {
			t.Errorf("the write is not done after %s", name)
		}
	}
}

// TestWriteBehindOfUsers: of a user whose writes drop set-id bits they are behind unless there are such bits.
//
// Not beside others: a program that is started closes what the test has open of other files, which settles them.
func TestWriteBehindOfUsers(t *testing.T) {
	dir, v := mountLazy(t)
	for _, above := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if err := os.Chmod(above, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		mode, want uint32
		behind     int
	}{
		"plain":  {0o666, 0o666, 1},
		"setuid": {0o4777, 0o777, 0},
		"setgid": {0o2777, 0o777, 0},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		before := v.notedWrites()
		cmd := exec.Command("dd", "of="+path, "conv=notrunc", "status=none")
		cmd.Stdin = strings.NewReader("x")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		if n := v.notedWrites() - before; n != test.behind {
			t.Errorf("%s: %d writes are behind, want %d", name, n, test.behind)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != test.want || st.Size != 1 {
			t.Errorf("%s: mode %o, %d bytes, want %o and 1: %v", name, st.Mode&0o7777, st.Size, test.want, err)
		}
	}
}

// TestWriteBehindFails: every file that was open is told once of what failed, others are not.
func TestWriteBehindFails(t *testing.T) {
	t.Parallel()
	dir, v := mountLazy(t)
	path := filepath.Join(dir, "f")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	writer, witness := open(), open()
	if _, err := writer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	v.mu.Lock()
	v.loses = true
	v.mu.Unlock()
	if err := writer.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync after a write that failed: %v", err)
	}
	if err := writer.Sync(); err != nil {
		t.Errorf("told twice: %v", err)
	}
	late := open()
	if err := late.Close(); err != nil {
		t.Errorf("a file that was opened afterwards was told: %v", err)
	}
	if err := witness.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("another open file at its close: %v", err)
	}
	if _, err := writer.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close after a write that failed: %v", err)
	}
	if err := open().Sync(); err != nil {
		t.Errorf("a file opened when all others were closed was told: %v", err)
	}
}

// TestWhatIsSetBehind: attributes of a file that was made here, until a descriptor of it is closed.
func TestWhatIsSetBehind(t *testing.T) {
	dir, v := mountLazy(t)
	path := filepath.Join(dir, "f")
	var want []bool
	expect := func(what string, err error, behind ...bool) {
		t.Helper()
		want = append(want, behind...)
		v.mu.Lock()
		defer v.mu.Unlock()
		if err != nil || !slices.Equal(v.set, want) {
			t.Fatalf("%s: %v, %v, want %v", what, err, v.set, want)
		}
	}
	f, err := os.Create(path)
	expect("create", err)
	expect("chmod", f.Chmod(0o640), true)
	expect("chmod by its path", os.Chmod(path, 0o600), true)
	expect("chown", f.Chown(1, 2), true)
	expect("utimes", os.Chtimes(path, time.Unix(1, 0), time.Unix(2, 0)), true)
	expect("truncate", f.Truncate(100), false)
	g, err := os.OpenFile(path, os.O_WRONLY, 0)
	expect("another open", err)
	expect("its close", g.Close())
	expect("chmod after a close", f.Chmod(0o644), false)
	expect("close", f.Close())
	expect("chmod after the close", os.Chmod(path, 0o600), false)
	f, err = os.OpenFile(path, os.O_RDWR|os.O_TRUNC, 0)
	expect("open and truncate", err, false)
	expect("chmod of a file that was there", f.Chmod(0o644), false)
	expect("close of that", f.Close())
	expect("mkdir", os.Mkdir(filepath.Join(dir, "d"), 0o755))
	expect("chmod of a directory", os.Chmod(filepath.Join(dir, "d"), 0o700), false)
}
