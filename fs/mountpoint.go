package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// prepareMountpoint checks that a directory can be mounted on, and removes what a dead daemon left there.
func prepareMountpoint(path string, logger logrus.FieldLogger) error {
	// statfs always asks the daemon, while stat may be answered from what the kernel has kept since it died.
	answers := func() error { return unix.Statfs(path, new(unix.Statfs_t)) }
	err := answers()
	// A daemon may have died on top of a daemon that died.
	for tries := 0; errors.Is(err, unix.ENOTCONN) && tries < 8; tries++ {
		if e := unmount(path, true); e != nil {
			return fmt.Errorf("mount on %s: a dead mount is there and cannot be removed (try umount -l): %w", path, e)
		}
		logger.WithField("mountpoint", path).Warn("removed a mount whose daemon had died")
		err = answers()
	}
	var stat unix.Stat_t
	if err == nil {
		err = unix.Stat(path, &stat)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("mount on %s: there is no such directory: create it first: %w", path, err)
	case err != nil:
		return fmt.Errorf("mount on %s: %w", path, err)
	case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("mount on %s: it is not a directory: %w", path, unix.ENOTDIR)
	}
	kind, source, err := mountedOn(path)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", path, err)
	}
	if kind == "fuse."+typeName {
		return fmt.Errorf("mount on %s: %s is already mounted there: unmount it first: %w", path, source, unix.EBUSY)
	}
	return nil
}

// mountedOn tells the type and source of the filesystem that is mounted on a directory, "" if none is.
func mountedOn(path string) (kind, source string, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(table)) {
		// 36 35 98:0 /root /mount/point options [tags] - type source superoptions
		before, after, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) > 4 && len(rest) > 1 && unescapeMountinfo(fields[4]) == path {
			kind, source = rest[0], unescapeMountinfo(rest[1]) // the last one covers the others
		}
	}
	return kind, source, nil
}

var mountinfoEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")

func unescapeMountinfo(s string) string { return mountinfoEscapes.Replace(s) }

// unmount takes the topmost mount at path out of the tree; lazily: even if it is in use or dead.
func unmount(path string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(path, flags)
	}
	arguments := []string{"-u", "--", path}
	if lazy {
		arguments = append([]string{"-z"}, arguments...)
	}
	for _, helper := range []string{"fusermount3", "fusermount"} {
		if _, err := exec.LookPath(helper); err != nil {
			continue
		}
		output, err := exec.Command(helper, arguments...).CombinedOutput()
		if err != nil && strings.Contains(string(output), "busy") {
			return fmt.Errorf("%s: %w", helper, unix.EBUSY)
		} else if err != nil {
			return fmt.Errorf("%s: %w: %s", helper, err, strings.TrimSpace(string(output)))
		}
		return nil
	}
	return errors.New("neither fusermount3 nor fusermount is there: install the package fuse3")
}

// mountDirect mounts by itself, as root may, and returns the device that the kernel is to be answered on. It is closed on
// exec from the start: a child that inherited it would keep the mount waiting for answers after the daemon has died.
func mountDirect(path string, o *MountOptions) (device int, err error) {
	device, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,max_read=%d", device, unix.S_IFDIR, maxWrite)
	if o.AllowOther {
		data += ",allow_other"
	}
	if o.DefaultPermissions {
		data += ",default_permissions"
	}
	if err := unix.Mount(o.FsName, path, "fuse."+typeName, o.mountFlags(), data); err != nil {
		unix.Close(device)
		return -1, err
	}
	return device, nil
}

// firstRequest waits until the mount answers. It opens a name that go-fuse answers for by itself, and polls it: a POLL that
// came later, when all threads of the Go runtime wait for the mount, could block the whole daemon, and after the first one
// the kernel does not ask again.
func firstRequest(mountpoint string) error {
	fd, err := unix.Open(filepath.Join(mountpoint, ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return unix.Close(fd)
}

// explainMountError says what to do about the usual reasons.
func explainMountError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("/dev/fuse is not there: load the kernel module with modprobe fuse: %w", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("it is not allowed (in a container it takes /dev/fuse and CAP_SYS_ADMIN): %w", err)
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("without root it takes fusermount3: install the package fuse3: %w", err)
	}
	return err
}
