package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

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
		if err := volume.leftovers(); err != nil {
			t.Error(err)
		}
	})
	return dir, server, volume
}

// leftovers is an error if something is still referenced, or there without a name.
func (v *memVolume) leftovers() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for ino, in := range v.inodes {
		if in.references != 0 || in.Nlink == 0 {
			return fmt.Errorf("inode %d is left with %d references and %d links", ino, in.references, in.Nlink)
		}
	}
	return nil
}

func TestMain(m *testing.M) {
	posix.ServeApart(serveMem)
	os.Exit(m.Run())
}

// serveMem mounts a memVolume.
func serveMem(variant, base string) (wait func() error, err error) {
	options := variants[variant]
	options.AllowOther, options.DefaultPermissions, options.Suid, options.Dev = true, true, true, true
	volume := newMemVolume()
	server, err := Mount(volume, filepath.Join(base, "mnt"), options)
	if err != nil {
		return nil, err
	}
	return func() error {
		server.Wait()
		return volume.leftovers()
	}, nil
}

// variants are the two places where locks can be. What the kernel may cache is varied by the tests on stores.
var variants = map[string]MountOptions{
	"writeback":   {},
	"serverlocks": {ServerLocks: true, NoWriteback: true},
}

func TestPosixtest(t *testing.T) {
	for variant := range variants {
		t.Run(variant, func(t *testing.T) { posix.Posixtest(t, posix.Apart(t, variant), false) })
	}
}

func TestOperations(t *testing.T) {
	for variant := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			posix.RunOperations(t, posix.Apart(t, variant))
		})
	}
}

func TestPjdfstest(t *testing.T) {
	for variant := range variants {
		t.Run(variant, func(t *testing.T) {
			posix.Pjdfstest(t, func() string { return posix.Apart(t, variant) })
		})
	}
}
