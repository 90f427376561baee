package posix

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"

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

func TestMain(m *testing.M) {
	ServeApart(serve)
	os.Exit(m.Run())
}

// serve makes a store and mounts it.
func serve(variant, base string) (wait func() error, err error) {
	logger := logrus.New()
	logger.SetLevel(logrus.WarnLevel)
	store := filepath.Join(base, "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: 1 << 30}); err != nil {
		return nil, err
	}
	volume, err := replica.Open(store, replica.Options{Logger: logger})
	if err != nil {
		return nil, err
	}
	options := variants[variant]
	options.AllowOther, options.DefaultPermissions, options.Suid, options.Dev = true, true, true, true
	options.Logger = logger
	server, err := fs.Mount(volume, filepath.Join(base, "mnt"), options)
	if err != nil {
		return nil, errors.Join(err, volume.Close())
	}
	return func() error {
		server.Wait()
		return volume.Close()
	}, nil
}

func TestOperations(t *testing.T) {
	for variant := range variants {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			RunOperations(t, Apart(t, variant))
		})
	}
}

func TestPosixtest(t *testing.T) {
	for variant := range variants {
		t.Run(variant, func(t *testing.T) { Posixtest(t, Apart(t, variant), variant == "writeback") })
	}
}

func TestPjdfstest(t *testing.T) {
	for variant := range variants {
		t.Run(variant, func(t *testing.T) { Pjdfstest(t, func() string { return Apart(t, variant) }) })
	}
}
