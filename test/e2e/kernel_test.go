package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestTextBusy: a program that runs cannot be written to, and goes on running when another one takes its name.
func TestTextBusy(t *testing.T) {
	d := mounted(t, "64M")
	program := d.path("sleep")
	d.sh("cp /bin/sleep $MNT/sleep")
	running := exec.Command(program, "60")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	defer running.Wait()
	defer running.Process.Kill()
	if f, err := os.OpenFile(program, os.O_WRONLY, 0); !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("writing to a program that runs: %v, want ETXTBSY", err)
		f.Close()
	}
	if err := os.Truncate(program, 0); !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("truncating a program that runs: %v, want ETXTBSY", err)
	}
	d.sh("cp /bin/true $MNT/new && mv $MNT/new $MNT/sleep && $MNT/sleep")
	if err := running.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the program that lost its name: %v", err)
	}
}

// TestSwapRefused: the kernel would map the blocks of a swap file itself.
func TestSwapRefused(t *testing.T) {
	need(t, "mkswap")
	d := mounted(t, "64M")
	path := d.path("swap")
	write(t, path, make([]byte, 8<<20))
	d.sh("chmod 600 $MNT/swap && mkswap -q $MNT/swap && sync $MNT/swap")
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0); errno != unix.EINVAL {
		t.Errorf("swapon: %v, want EINVAL", errno)
		if errno == 0 {
			unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(name)), 0, 0)
		}
	}
}

// TestFilesystemInside keeps an ext4 in a file of the mount, on a loop device.
func TestFilesystemInside(t *testing.T) {
	need(t, "mkfs.ext4", "e2fsck")
	d := mounted(t, "256M")
	inside := t.TempDir()
	d.sh("truncate -s 64M $MNT/image && mkfs.ext4 -q -F $MNT/image")
	data := bytes.Repeat([]byte("inside "), 1<<20)
	for round := range 2 {
		if out, err := exec.Command("mount", "-o", "loop", d.path("image"), inside).CombinedOutput(); err != nil {
			t.Skipf("no loop device can be had: %v, %s", err, out)
		}
		if round == 0 {
			write(t, filepath.Join(inside, "file"), data)
		}
		if got := read(t, filepath.Join(inside, "file")); !bytes.Equal(got, data) {
			t.Errorf("round %d: other contents", round)
		}
		d.sh("umount " + inside)
		d.sh("e2fsck -fn $MNT/image")
		eventually(t, "the loop device holds the file", func() bool { _, _, code := vde("umount", d.mnt); return code == 0 })
		d.mount()
	}
}

// TestSendfileSplice moves data without a buffer of the program's: file to file, and through a pipe.
func TestSendfileSplice(t *testing.T) {
	d := mounted(t, "64M")
	data := make([]byte, 3<<20+123)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	write(t, d.path("from"), data)
	open := func(name string, flags int) int {
		t.Helper()
		fd, err := unix.Open(d.path(name), flags|unix.O_CLOEXEC, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	same := func(name string) {
		t.Helper()
		if !bytes.Equal(read(t, d.path(name)), data) {
			t.Errorf("%s has other contents", name)
		}
	}
	from, sent, spliced := open("from", unix.O_RDONLY), open("sent", unix.O_WRONLY|unix.O_CREAT), open("spliced", unix.O_WRONLY|unix.O_CREAT)
	for total := 0; total < len(data); {
		n, err := unix.Sendfile(sent, from, nil, len(data))
		if n <= 0 || err != nil {
			t.Fatalf("sendfile: %d, %v", n, err)
		}
		total += n
	}
	same("sent")
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	var off int64
	for {
		n, err := unix.Splice(from, &off, pipe[1], nil, 64<<10, 0)
		if err != nil {
			t.Fatalf("splice out of a file: %v", err)
		}
		if n == 0 {
			break
		}
		for n > 0 {
			written, err := unix.Splice(pipe[0], nil, spliced, nil, int(n), 0)
			if err != nil || written <= 0 {
				t.Fatalf("splice into a file: %d, %v", written, err)
			}
			n -= written
		}
	}
	same("spliced")
	for _, fd := range []int{from, sent, spliced} {
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	d.remount()
	same("sent")
	same("spliced")
}

// writer writes to a file of the mount until it fails or is stopped. Each write is synced: the kernel takes others into its cache for a
// mount that has ended as well, and tells at the next fsync.
func writer(d *disk) (cmd *exec.Cmd, ended chan error) {
	d.t.Helper()
	cmd = exec.Command("dd", "if=/dev/zero", "of="+d.path("written"), "bs=64k", "oflag=dsync")
	cmd.Stderr = io.Discard
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cmd.Process.Kill() })
	ended = make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(d.t, "dd writes nothing", func() bool {
		info, err := os.Stat(d.path("written"))
		return err == nil && info.Size() > 1<<20
	})
	return cmd, ended
}

// gone waits for a process, which must not hang.
func gone(t *testing.T, what string, ended chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("%s hangs", what)
		return nil
	}
}

// TestUmountUnderWriter takes the mount away from a process that writes, in each way there is. The process ends, so does the daemon, and the
// store is mounted again at the same place.
func TestUmountUnderWriter(t *testing.T) {
	d := mounted(t, "4G")
	again := func() {
		t.Helper()
		d.mount()
		synced(t, d.path("kept"), []byte("kept"))
		if err := os.Remove(d.path("written")); err != nil {
			t.Fatal(err)
		}
	}

	// umount -l: whoever has files open goes on, and the daemon with it.
	pid := d.status().PID
	cmd, ended := writer(d)
	if err := unix.Unmount(d.mnt, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if d.isMounted() {
		t.Error("umount -l left the mount in the tree")
	}
	select {
	case err := <-ended:
		t.Errorf("after umount -l the writer ended: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	cmd.Process.Signal(unix.SIGTERM)
	gone(t, "after umount -l the writer", ended)
	waitGone(t, pid)
	d.fsck()
	again()

	// umount -f: the connection ends, the writer with it.
	pid = d.status().PID
	_, ended = writer(d)
	if err := unix.Unmount(d.mnt, unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	if err := gone(t, "after umount -f the writer", ended); err == nil {
		t.Error("after umount -f the writer met no error")
	}
	waitGone(t, pid)
	again()

	// kill -9 of the daemon: ENOTCONN at once, for an open file and for names alike, and then a new mount over the dead one.
	pid = d.status().PID
	open, err := os.Open(d.path("kept"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	_, ended = writer(d)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := gone(t, "after the death of the daemon the writer", ended); err == nil {
		t.Error("after the death of the daemon the writer met no error")
	}
	waitGone(t, pid)
	if err := open.Sync(); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("fsync of a file of a dead mount: %v, want ENOTCONN", err)
	}
	if err := os.Mkdir(d.path("dir"), 0o755); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("mkdir in a dead mount: %v, want ENOTCONN", err)
	}
	again()
	if got := read(t, d.path("kept")); string(got) != "kept" {
		t.Errorf("what was synced is %q", got)
	}
}

// TestOverlay: an overlay can have a mount as its upper directory, for which the kernel wants whiteouts of a network filesystem.
func TestOverlay(t *testing.T) {
	d := mounted(t, "64M")
	lower := t.TempDir()
	for _, name := range []string{"lower/dir/sub/file", "lower/gone", "lower/moved", "merged"} {
		path := filepath.Join(lower, name)
		if name == "merged" {
			path = filepath.Join(path, "x")
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if name != "merged" {
			write(t, path, []byte(name))
		}
	}
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(d.path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(lower, "merged")
	mount := func() error {
		return unix.Mount("none", merged, "overlay", 0, "lowerdir="+filepath.Join(lower, "lower")+",upperdir="+d.path("upper")+",workdir="+d.path("work"))
	}
	if err := mount(); errors.Is(err, unix.ENODEV) {
		t.Skip("this kernel has no overlayfs")
	} else if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	d.sh("cd " + merged + ` && rm gone && mv moved new && echo changed >dir/sub/file && mv dir/sub/file dir/file && mkdir gone && touch gone/x && rm -r gone`)
	show := func() string {
		return d.sh("cd " + merged + " && find . | sort | tr '\n' ' ' && cat dir/file new")
	}
	const want = ". ./dir ./dir/file ./dir/sub ./new changed\nlower/moved"
	if got := show(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := unix.Unmount(merged, 0); err != nil {
		t.Fatal(err)
	}
	d.remount()
	if err := mount(); err != nil {
		t.Fatal(err)
	}
	if got := show(); got != want {
		t.Errorf("mounted again: %q, want %q", got, want)
	}
	if err := unix.Unmount(merged, 0); err != nil {
		t.Fatal(err)
	}
}
