package fs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// faulty is a volume that goes wrong when told.
type faulty struct {
	*memVolume
	writeError atomic.Pointer[error]
	panics     atomic.Bool
}

func (v *faulty) Write(ctx context.Context, ino meta.Ino, off uint64, data []byte, how WriteFlags) (meta.Inode, error) {
	if err := v.writeError.Load(); err != nil {
		return meta.Inode{}, *err
	}
	return v.memVolume.Write(ctx, ino, off, data, how)
}

func (v *faulty) StatFS(ctx context.Context) (StatFS, error) {
	if v.panics.Load() {
		panic("told to")
	}
	return v.memVolume.StatFS(ctx)
}

func mountFaulty(t *testing.T, options MountOptions) (string, *faulty, *test.Hook) {
	t.Helper()
	needMount(t)
	logger, hook := test.NewNullLogger()
	options.Logger = logger
	volume := &faulty{memVolume: newMemVolume()}
	dir := t.TempDir()
	server, err := Mount(volume, dir, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir, volume, hook
}

// What fails when the cache is written back is told to everybody who has the file open, once each.
func TestWriteErrorReachesFsync(t *testing.T) {
	dir, volume, hook := mountFaulty(t, MountOptions{})
	path := filepath.Join(dir, "f")
	var fds [2]int
	for i := range fds {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	for _, fault := range []struct {
		err    error
		want   syscall.Errno
		logged bool
	}{{syscall.ENOSPC, syscall.ENOSPC, false}, {errors.New("the disk is on fire"), syscall.EIO, true}} {
		hook.Reset()
		volume.writeError.Store(&fault.err)
		if _, err := unix.Pwrite(fds[0], []byte("data"), 0); err != nil {
			t.Fatal(err)
		}
		for i, fd := range fds {
			if err := unix.Fsync(fd); err != fault.want {
				t.Errorf("fsync of file %d: got %v, want %v", i, err, fault.want)
			}
		}
		volume.writeError.Store(nil)
		for i, fd := range fds {
			if err := unix.Fsync(fd); err != nil {
				t.Errorf("second fsync of file %d: %v", i, err)
			}
		}
		logged := hook.LastEntry() != nil && hook.LastEntry().Level == logrus.ErrorLevel
		if logged != fault.logged {
			t.Errorf("%v: logged is %v, want %v", fault.err, logged, fault.logged)
		}
	}
}

// Without the writeback cache it is the write that fails.
func TestWriteError(t *testing.T) {
	dir, volume, _ := mountFaulty(t, MountOptions{NoWriteback: true})
	var full error = syscall.ENOSPC
	volume.writeError.Store(&full)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("data"), 0o644); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
}

func TestPanic(t *testing.T) {
	dir, volume, hook := mountFaulty(t, MountOptions{})
	volume.panics.Store(true)
	if err := unix.Statfs(dir, new(unix.Statfs_t)); err != unix.EIO {
		t.Errorf("got %v, want EIO", err)
	}
	entry := hook.LastEntry()
	if entry == nil || !strings.Contains(entry.Message, "told to") || !strings.Contains(entry.Data["stack"].(string), "StatFS") {
		t.Errorf("logged %+v", entry)
	}
	volume.panics.Store(false)
	if err := unix.Statfs(dir, new(unix.Statfs_t)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestMountErrors(t *testing.T) {
	needMount(t)
	logger, _ := test.NewNullLogger()
	options := MountOptions{Logger: logger}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	used := filepath.Join(dir, "with space")
	if err := os.Mkdir(used, 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := Mount(newMemVolume(), used, options)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Unmount()
	for _, c := range []struct {
		name, path string
		options    MountOptions
		errno      error
		says       string
	}{
		{"missing", filepath.Join(dir, "nothing"), options, syscall.ENOENT, "create it first"},
		{"a file", file, options, syscall.ENOTDIR, "not a directory"},
		{"in use", used, options, syscall.EBUSY, "already mounted"},
		{"no protection", dir, MountOptions{Logger: logger, AllowOther: true}, nil, "add default_permissions"},
	} {
		_, err := Mount(newMemVolume(), c.path, c.options)
		if err == nil || c.errno != nil && !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %v, %q", c.name, err, c.errno, c.says)
		}
	}
}

// A mount whose daemon has died is replaced, however many lie upon each other and whatever the kernel remembers.
func TestDeadMount(t *testing.T) {
	needMount(t)
	logger, hook := test.NewNullLogger()
	options := MountOptions{Logger: logger, FsName: "dead"}
	dir := t.TempDir()
	for range 2 {
		device, err := mountDirect(dir, &options)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(device)
	}
	server, err := Mount(newMemVolume(), dir, options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(dir); err != nil {
		t.Error(err)
	}
	if len(hook.AllEntries()) != 2 {
		t.Errorf("%d mounts were said to be removed, not 2", len(hook.AllEntries()))
	}
	if err := server.Unmount(); err != nil {
		t.Error(err)
	}
	if kind, _, err := mountedOn(dir); kind != "" || err != nil {
		t.Errorf("still mounted: %q, %v", kind, err)
	}
}

func TestReadOnly(t *testing.T) {
	dir, _, _ := mountMem(t, MountOptions{ReadOnly: true})
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("got %v, want EROFS", err)
	}
}

func TestUnmount(t *testing.T) {
	needMount(t)
	logger, _ := test.NewNullLogger()
	volume := newMemVolume()
	dir := t.TempDir()
	server, err := Mount(volume, dir, MountOptions{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Unmount(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("with an open file: got %v, want EBUSY", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	stats := server.Stats()
	if stats.OpenFiles != 1 || stats.Requests["create"] != 1 || stats.Requests["unlink"] != 1 {
		t.Errorf("stats are %+v", stats)
	}
	// The connection goes while the file, which has no name any more, is still open: nothing of it may be left.
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("still there"); err != nil {
		t.Error(err)
	}
	f.Close()
	server.Wait()
	if err := server.Unmount(); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
	volume.mu.Lock()
	defer volume.mu.Unlock()
	if len(volume.inodes) != 1 {
		t.Errorf("%d inodes are left, want the root", len(volume.inodes))
	}
}
