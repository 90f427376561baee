package vde

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Hold takes the store in dir for the caller until it is closed: nobody else opens, checks or repairs it meanwhile. While
// another process has it the error is ErrStoreInUse. Open does it by itself; who has to read or change files of a store before opening
// it holds it first and tells Open so. f is nil for the operating system's files.
func Hold(f vfs.FS, dir string) (io.Closer, error) {
	if f == nil {
		f = vfs.Default
	}
	// The lock's file is made by whoever takes it, but not in what is no store.
	if _, err := ReadInfo(f, dir); err != nil {
		return nil, err
	}
	lock, err := f.Lock(f.PathJoin(dir, lockName))
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = ErrStoreInUse
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	return lock, nil
}

// heldElsewhere is the lock of an engine whose store the caller of Open holds.
type heldElsewhere struct{}

func (heldElsewhere) Close() error { return nil }
