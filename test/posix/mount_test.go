package posix

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/fs"
	"vdefs/fs/replica"
	"vdefs/vde"
)

// variants are the ways of caching that behave differently in the kernel.
var variants = map[string]fs.MountOptions{
	"writeback":    {},
	"writethrough": {NoWriteback: true},
	"nocache":      {NoCache: true},
}

// mount makes a store and mounts it for the length of a test.
func mount(t *testing.T, options fs.MountOptions) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("mounting takes /dev/fuse: ", err)
	}
	unix.Umask(0o022)
	base := t.TempDir()
	// For the users that tests turn into.
	must(t, os.Chmod(base, 0o755))
	must(t, os.Chmod(filepath.Dir(base), 0o755))
	store, dir := filepath.Join(base, "store"), filepath.Join(base, "mnt")
	must(t, os.Mkdir(dir, 0o755))
	logger := logrus.New()
	logger.SetOutput(t.Output())
	_, err := vde.Format(store, vde.FormatOptions{Size: 1 << 30})
	must(t, err)
	volume, err := replica.Open(store, replica.Options{Logger: logger})
	must(t, err)
	options.AllowOther, options.DefaultPermissions, options.Suid, options.Dev = true, true, true, true
	options.Logger = logger
	server, err := fs.Mount(volume, dir, options)
	if err != nil {
		volume.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
			unix.Unmount(dir, unix.MNT_DETACH)
			server.Wait()
		}
		if err := volume.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestOperations(t *testing.T) {
	for variant, options := range variants {
		t.Run(variant, func(t *testing.T) { RunOperations(t, mount(t, options)) })
	}
}

func TestPosixtest(t *testing.T) {
	for variant, options := range variants {
		t.Run(variant, func(t *testing.T) {
			dir := mount(t, options)
			for name, test := range posixtest.All {
				t.Run(name, func(t *testing.T) {
					if name == "FcntlFlockLocksFile" {
						t.Skip("wants a process to be kept out by its own POSIX lock; fails on every disk filesystem")
					}
					test(t, sub(t, dir, name))
				})
			}
		})
	}
}

func TestPjdfstest(t *testing.T) {
	for variant, options := range variants {
		t.Run(variant, func(t *testing.T) { Pjdfstest(t, mount(t, options)) })
	}
}
