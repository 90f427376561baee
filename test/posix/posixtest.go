package posix

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// Posixtest runs go-fuse's posixtest in a directory. Its OpenSymlinkRace takes longer than all the others and is of use once,
// where whole is set.
func Posixtest(t *testing.T, dir string, whole bool) {
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			switch name {
			case "FcntlFlockLocksFile":
				t.Skip("wants a process to be kept out by its own POSIX lock; fails on every disk filesystem")
			case "OpenSymlinkRace":
				if !whole {
					t.Skip("takes long and is run elsewhere")
				}
				t.Parallel()
			}
			test(t, sub(t, dir, name))
		})
	}
}
