package posix

import (
	"os"
	"testing"
)

// TestControl runs the operations on the directory that $VDE_POSIX_CONTROL names (on ext4, say).
func TestControl(t *testing.T) {
	base := os.Getenv("VDE_POSIX_CONTROL")
	if base == "" {
		t.Skip("set VDE_POSIX_CONTROL to a directory on a disk filesystem to test the tests")
	}
	RunOperations(t, base)
}
