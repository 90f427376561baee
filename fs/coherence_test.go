package fs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// TestCoherence does random things and looks after each at everything: what stat(2) tells, mostly out of the kernel's
// cache, has to be what the volume has.
func TestCoherence(t *testing.T) {
	for variant, options := range map[string]MountOptions{"writeback": {}, "writethrough": {NoWriteback: true}} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			dir, _, volume := mountMem(t, options)
			random := rand.New(rand.NewPCG(7, 7))
			name := func() string {
				path := dir
				for range random.IntN(3) {
					path = filepath.Join(path, fmt.Sprint("d", random.IntN(2)))
				}
				return filepath.Join(path, fmt.Sprint([]string{"d", "f"}[random.IntN(2)], random.IntN(3)))
			}
			for step := range 400 {
				a, b := name(), name()
				var did string
				switch random.IntN(13) {
				case 0:
					did = fmt.Sprint("mkdir ", os.Mkdir(a, 0o755))
				case 1, 2:
					did = fmt.Sprint("write ", os.WriteFile(a, make([]byte, random.IntN(9000)), 0o644))
				case 3:
					did = fmt.Sprint("remove ", os.Remove(a))
				case 4:
					did = fmt.Sprint("rename ", os.Rename(a, b))
				case 5:
					did = fmt.Sprint("exchange ", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
				case 6:
					did = fmt.Sprint("link ", os.Link(a, b))
				case 7:
					did = fmt.Sprint("chmod ", os.Chmod(a, os.FileMode(random.IntN(0o1000))))
				case 8:
					did = fmt.Sprint("chown ", os.Chown(a, random.IntN(9), random.IntN(9)))
				case 9:
					did = fmt.Sprint("truncate ", os.Truncate(a, int64(random.IntN(20000))))
				case 10:
					did = fmt.Sprint("setxattr ", unix.Setxattr(a, "user.x", []byte{byte(step)}, 0))
				case 11:
					ts := unix.Timespec{Sec: int64(random.IntN(1e9)), Nsec: int64(random.IntN(1e9))}
					did = fmt.Sprint("utimes ", unix.UtimesNanoAt(unix.AT_FDCWD, a, []unix.Timespec{ts, ts}, 0))
				case 12:
					did = fmt.Sprint("symlink ", os.Symlink("target", a))
				}
				compare(t, volume, meta.RootIno, dir, fmt.Sprintf("step %d: %s: %s, %s", step, did, a, b))
				if t.Failed() {
					return
				}
			}
		})
	}
}

// compare looks at an inode and all below it.
func compare(t *testing.T, volume *memVolume, ino meta.Ino, path, what string) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		// Its times and size are the kernel's until they are written back.
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Fsync(fd)
			unix.Close(fd)
		}
		if err != nil {
			t.Errorf("%s: sync %s: %v", what, path, err)
		}
	}
	inode, err := volume.Inode(context.Background(), ino)
	if err != nil {
		t.Errorf("%s: %s: %v", what, path, err)
		return
	}
	type facts struct {
		ino          meta.Ino
		mode, nlink  uint32
		uid, gid     uint32
		size         uint64
		mtime, ctime meta.Time
	}
	got := facts{
		meta.Ino(st.Ino), st.Mode, uint32(st.Nlink), st.Uid, st.Gid, uint64(st.Size),
		meta.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}, meta.Time{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)},
	}
	want := facts{inode.Ino, inode.Mode, inode.Nlink, inode.UID, inode.GID, inode.Size, inode.Mtime, inode.Ctime}
	if got != want {
		t.Errorf("%s:\n%s: stat says %+v\nbut it is %+v", what, path, got, want)
	}
	if inode.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return
	}
	var names []string
	children := map[string]meta.Ino{}
	_ = volume.ReadDir(context.Background(), ino, 0, false, func(e meta.Dirent, _ *meta.Inode) bool {
		children[e.Name] = e.Ino
		return true
	})
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
		if _, ok := children[e.Name()]; !ok {
			t.Errorf("%s: %s is listed and not there", what, filepath.Join(path, e.Name()))
		}
	}
	if len(names) != len(children) {
		t.Errorf("%s: %s lists %v, but has %v", what, path, names, children)
	}
	for name, child := range children {
		compare(t, volume, child, filepath.Join(path, name), what)
	}
}
