package check_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"vdefs/vde"
	"vdefs/vde/check"
)

// closedFS lets nobody open a file.
type closedFS struct{ vfs.FS }

func (f closedFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if strings.HasSuffix(name, "vde.json") {
		return nil, unix.EACCES
	}
	return f.FS.Open(name, opts...)
}

// A store that may not be read is not said to be in use.
func TestMayNotRead(t *testing.T) {
	s := makeSample(t)
	_, err := check.Run(storeDir, check.Options{FS: closedFS{s.MemFS}})
	if !errors.Is(err, unix.EACCES) || errors.Is(err, vde.ErrStoreInUse) {
		t.Errorf("%v, want %v", err, unix.EACCES)
	}
}
