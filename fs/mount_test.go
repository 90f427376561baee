package fs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/test/posix"
)

// needMount skips a test where nothing can be mounted.
func needMount(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("mounting takes /dev/fuse: ", err)
	}
}

// mountMem mounts a memVolume for the length of a test.
func mountMem(t *testing.T, options MountOptions) (string, *Server, *memVolume) {
	t.Helper()
	needMount(t)
	options.AllowOther, options.DefaultPermissions, options.Suid, options.Dev = true, true, true, true
	if options.Logger == nil {
		logger := logrus.New()
		logger.SetOutput(t.Output())
		options.Logger = logger
	}
	volume := newMemVolume()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for the users that tests turn into
		t.Fatal(err)
	}
	server, err := Mount(volume, dir, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
			return
		}
		volume.mu.Lock()
		defer volume.mu.Unlock()
		for ino, in := range volume.inodes {
			if in.references != 0 || in.Nlink == 0 {
				t.Errorf("inode %d is left with %d references and %d links", ino, in.references, in.Nlink)
			}
		}
	})
	return dir, server, volume
}

// variants are the ways of caching that behave differently in the kernel.
var variants = map[string]MountOptions{
	"writeback":    {},
	"writethrough": {NoWriteback: true},
	"nocache":      {NoCache: true},
	"serverlocks":  {ServerLocks: true},
}

func TestPosix(t *testing.T) {
	for variant, options := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			for name, test := range posixtest.All {
				t.Run(name, func(t *testing.T) {
					if name == "FcntlFlockLocksFile" {
						t.Skip("wants a process to be kept out by its own POSIX lock; fails on every disk filesystem")
					}
					dir, _, _ := mountMem(t, options)
					test(t, dir)
				})
			}
		})
	}
}

func TestOperations(t *testing.T) {
	for variant, options := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			dir, _, _ := mountMem(t, options)
			posix.RunOperations(t, dir)
		})
	}
}

func TestPjdfstest(t *testing.T) {
	for variant, options := range variants {
		t.Run(variant, func(t *testing.T) {
			dir, _, _ := mountMem(t, options)
			posix.Pjdfstest(t, dir)
		})
	}
}
