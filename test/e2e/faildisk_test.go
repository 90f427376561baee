package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// storeOn makes a store of size below a directory, which is on a disk that can be made to fail.
func storeOn(t *testing.T, dir, size string) *disk {
	t.Helper()
	d := &disk{t: t, store: filepath.Join(dir, "store"), mnt: t.TempDir()}
	d.vde("format", d.store, "--size", size)
	t.Cleanup(d.finish)
	return d
}

// mountBelow mounts what a store is to lie on, until the end of the test.
func mountBelow(t *testing.T, args ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v, %s", dir, err, out)
		}
	})
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Skipf("mount %s: %v, %s", strings.Join(args, " "), err, out)
	}
	return dir
}

// afterFailure checks what has to hold while the disk below is gone: every open file that was written to hears of it at fsync, so does a
// new one at some call, the status says it, and the daemon lives.
func afterFailure(t *testing.T, d *disk, open []*os.File, pid int, want ...syscall.Errno) {
	t.Helper()
	isWanted := func(err error) bool {
		for _, errno := range want {
			if errors.Is(err, errno) {
				return true
			}
		}
		return false
	}
	for i, f := range open {
		if err := f.Sync(); !isWanted(err) {
			t.Errorf("fsync of open file %d: %v, want one of %v", i, err, want)
		}
	}
	err := func() error {
		f, err := os.Create(d.path("after"))
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 1<<20))
		return errors.Join(err, f.Sync(), f.Close())
	}()
	if !isWanted(err) {
		t.Errorf("a new file on a store that has stopped: %v, want one of %v", err, want)
	}
	var f struct {
		PID   int
		Error string
	}
	decode(t, d.vde("status", d.mnt, "--json"), &f)
	if f.PID != pid || f.Error == "" {
		t.Errorf("the status says %+v; want that the daemon %d goes on and why the store stopped", f, pid)
	}
}

// synced writes a file whose contents are promised.
func synced(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// dirty opens one file several times, and writes to it without a sync.
func dirty(t *testing.T, path string, times int) (open []*os.File) {
	t.Helper()
	for range times {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		open = append(open, f)
	}
	if _, err := open[0].Write(bytes.Repeat([]byte("lost"), 100<<10)); err != nil {
		t.Fatal(err)
	}
	return open
}

// TestDiskFails takes the disk away under a mount: the filesystem that the store lies on is shut down as by a power cut, and answers every
// call with EIO. Whoever wrote hears of it, the daemon lives, and what was synced is there when the disk is back.
func TestDiskFails(t *testing.T) {
	need(t, "mkfs.ext4")
	image := filepath.Join(t.TempDir(), "image")
	write(t, image, nil)
	if err := os.Truncate(image, 1<<30); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v, %s", err, out)
	}
	for _, cache := range []string{"writeback", "writethrough"} {
		t.Run(cache, func(t *testing.T) {
			below := mountBelow(t, "-o", "loop", image)
			if err := os.RemoveAll(filepath.Join(below, "store")); err != nil {
				t.Fatal(err)
			}
			d := storeOn(t, below, "256M")
			d.mount("cache=" + cache)
			kept := bytes.Repeat([]byte("kept"), 1<<20)
			synced(t, d.path("kept"), kept)
			pid := d.status().PID
			open := dirty(t, d.path("kept"), 2)
			shutDown(t, below)
			afterFailure(t, d, open, pid, unix.EIO)
			for _, f := range open {
				f.Close()
			}
			vde("umount", d.mnt) // says that not everything could be written
			waitGone(t, pid)
			if d.isMounted() {
				t.Fatal("a failed store cannot be unmounted")
			}

			// The kernel may take a moment to let go what a process had open.
			eventually(t, "the disk is still in use", func() bool { return exec.Command("umount", below).Run() == nil })
			if out, err := exec.Command("mount", "-o", "loop", image, below).CombinedOutput(); err != nil {
				t.Fatalf("mount %s again: %v, %s", image, err, out)
			}
			d.fsck("--data") // as the failure left it
			d.mount()
			got := read(t, d.path("kept"))
			if lost := []byte("lost"); len(got) != len(kept) || !bytes.Equal(bytes.ReplaceAll(got, lost, []byte("kept")), kept) {
				t.Error("what was synced is not there")
			}
			synced(t, d.path("again"), kept)
		})
	}
}

// shutDown ends a filesystem as a power cut would: EXT4_IOC_SHUTDOWN without a flush of its journal.
func shutDown(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const shutdown, noLogFlush = 0x8004587d, 2
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		t.Skipf("ext4 cannot be shut down: %v", err)
	}
}

// TestDiskFull fills up the disk below a store that is not full: the writer is told, nothing that was synced is lost, and with room again
// the store is mounted again.
func TestDiskFull(t *testing.T) {
	below := mountBelow(t, "-t", "tmpfs", "-o", "size=160M", "tmpfs")
	d := storeOn(t, below, "1G")
	d.mount()
	kept := bytes.Repeat([]byte("kept"), 1<<20)
	synced(t, d.path("kept"), kept)
	pid := d.status().PID
	ballast := filepath.Join(below, "ballast")
	for size := int64(160 << 20); ; size -= 1 << 20 { // all but a little of the room that is left
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		f.Close()
		if err == nil {
			break
		}
	}
	open := dirty(t, d.path("more"), 2)
	var err error
	for i := 0; err == nil && i < 200; i++ {
		if _, err = open[0].WriteAt(make([]byte, 1<<20), int64(i)<<20); err == nil {
			err = open[0].Sync()
		}
	}
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		t.Errorf("writing to a disk that is full: %v, want ENOSPC or EIO", err)
	}
	if got := d.status().PID; got != pid {
		t.Errorf("the daemon %d has become %d", pid, got)
	}
	for _, f := range open {
		f.Close()
	}
	vde("umount", d.mnt)
	waitGone(t, pid)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	d.fsck("--data")
	d.mount()
	if !bytes.Equal(read(t, d.path("kept")), kept) {
		t.Error("what was synced is not there")
	}
	synced(t, d.path("again"), kept)
}
