package diff

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// magics of filesystems, as statfs tells them.
var magics = map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.TMPFS_MAGIC: "tmpfs", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs"}

func typeOf(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if name := magics[st.Type]; name != "" {
		return name
	}
	return fmt.Sprintf("%#x", st.Type)
}

// reference makes a directory on a filesystem to compare with, and names its type: the one of temporary files if that is
// ext4, else an ext4 image mounted on a loop device, else a tmpfs.
func reference(t *testing.T) (dir, kind string) {
	t.Helper()
	dir = t.TempDir()
	if *referenceDir != "" {
		var err error
		dir, err = os.MkdirTemp(*referenceDir, "vde-diff-")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir, typeOf(t, dir)
	}
	if typeOf(t, dir) == "ext4" {
		return dir, "ext4"
	}
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	image := filepath.Join(dir, "image")
	for _, command := range [][]string{
		{"truncate", "-s", "2G", image},
		{"mkfs.ext4", "-q", "-F", image},
		{"mount", "-o", "loop,relatime", image, mnt},
	} {
		if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Logf("no ext4 to compare with, a tmpfs must do: %s: %v: %s", command[0], err, output)
			must(t, unix.Mount("tmpfs", mnt, "tmpfs", unix.MS_RELATIME, ""))
			t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
			return mnt, "tmpfs"
		}
	}
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	return mnt, "ext4"
}
