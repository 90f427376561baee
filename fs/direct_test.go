package fs

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdefs/vde/meta"
)

// TestDirectSync: what is written with O_DIRECT and O_DSYNC moves the times that stat(2) tells, whoever keeps them, costs no
// FSYNC, and is seen by who reads through the cache.
func TestDirectSync(t *testing.T) {
	for variant, options := range map[string]MountOptions{"writeback": {}, "writethrough": {NoWriteback: true}, "strict": {NoCache: true}} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			dir, server, volume := mountMem(t, options)
			path := filepath.Join(dir, "f")
			if err := os.WriteFile(path, make([]byte, 64<<10), 0o644); err != nil {
				t.Fatal(err)
			}
			cached, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer cached.Close()
			buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Munmap(buf)
			for i, flags := range []int{unix.O_DIRECT | unix.O_DSYNC, unix.O_DIRECT | unix.O_SYNC} {
				fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				for round := range 3 {
					var before, after unix.Stat_t
					if err := unix.Fstat(fd, &before); err != nil {
						t.Fatal(err)
					}
					synced := server.fs.stats.requests[opFsync].Load()
					time.Sleep(15 * time.Millisecond) // the kernel's clock for files ticks slowly
					for j := range buf {
						buf[j] = byte(8*i + round + 1)
					}
					off := int64(16<<10 + round*48<<10) // the last is beyond the end
					if _, err := unix.Pwrite(fd, buf, off); err != nil {
						t.Fatal(err)
					}
					if n := server.fs.stats.requests[opFsync].Load(); n != synced {
						t.Errorf("the write cost %d FSYNC", n-synced)
					}
					if end, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil || end < off+4096 {
						t.Errorf("the file ends at %d, %v, behind a write to %d", end, err, off)
					}
					if err := unix.Stat(path, &after); err != nil {
						t.Fatal(err)
					}
					if after.Mtim.Nano() <= before.Mtim.Nano() || after.Ctim.Nano() <= before.Ctim.Nano() {
						t.Errorf("a write did not move the times: mtime %d, then %d; ctime %d, then %d",
							before.Mtim.Nano(), after.Mtim.Nano(), before.Ctim.Nano(), after.Ctim.Nano())
					}
					inode, err := volume.Lookup(context.Background(), meta.RootIno, "f")
					if err != nil || inode.Mtime.Sec != after.Mtim.Sec || int64(inode.Mtime.Nsec) != after.Mtim.Nsec {
						t.Errorf("the volume has the mtime %v, stat tells %v (%v)", inode.Mtime, after.Mtim, err)
					}
					got := make([]byte, 4096)
					if _, err := cached.ReadAt(got, off); err != nil || string(got) != string(buf) {
						t.Errorf("who reads through the cache does not see the write: %v", err)
					}
				}
			}
		})
	}
}

// TestDirectFlagIsChanged: O_DIRECT of an open file comes and goes; its O_DSYNC is kept all the same.
func TestDirectFlagIsChanged(t *testing.T) {
	t.Parallel()
	dir, _, volume := mountMem(t, MountOptions{})
	path := filepath.Join(dir, "f")
	for _, opened := range []int{unix.O_DIRECT, 0} {
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC|unix.O_DSYNC|opened, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if _, err := unix.FcntlInt(uintptr(fd), syscall.F_SETFL, unix.O_DIRECT&^opened); err != nil {
			t.Fatal(err)
		}
		buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(buf)
		synced := volume.syncs.Load()
		if _, err := unix.Pwrite(fd, buf, 0); err != nil {
			t.Fatal(err)
		}
		if volume.syncs.Load() == synced {
			t.Errorf("opened with O_DSYNC and %#x, O_DIRECT turned round: a write was not synced", opened)
		}
	}
}
