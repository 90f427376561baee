package fs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRequests counts what ordinary operations cost: on one thread a request takes longer than most of what is done for it.
func TestRequests(t *testing.T) {
	for variant, options := range map[string]MountOptions{"writeback": {}, "writethrough": {NoWriteback: true}} {
		t.Run(variant, func(t *testing.T) {
			dir, server, _ := mountMem(t, options)
			if minor := server.fuse.KernelSettings().Minor; minor < 39 {
				t.Skipf("the numbers are those of Linux 6.6 and later (FUSE 7.39), this one has 7.%d", minor)
			}
			at := func(name string) string { return filepath.Join(dir, name) }
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			read := func() {
				if data, err := os.ReadFile(at("f")); err != nil || len(data) != 5 {
					t.Fatal(data, err)
				}
			}
			list := func() {
				_, err := os.ReadDir(dir)
				must(err)
			}
			var st unix.Stat_t
			list() // what is asked once per mount: OPENDIR, FLUSH
			must(os.WriteFile(at("first"), nil, 0o644))
			must(unix.Stat(dir, &st))
			steps := []struct {
				name                    string
				do                      func()
				writeback, writethrough string // RELEASE and FORGET come when they like and are left out
			}{
				// After a change in a directory the kernel asks for its attributes before it goes through it again.
				{"mkdir", func() { must(unix.Mkdir(at("d"), 0o755)) }, "lookup mkdir", "lookup mkdir"},
				{"create", func() { must(os.WriteFile(at("f"), nil, 0o644)) }, "create getattr lookup", "create getattr lookup"},
				{"stat of nothing", func() { _ = unix.Stat(at("none"), &st) }, "getattr lookup", "getattr lookup"},
				{"again", func() { _ = unix.Stat(at("none"), &st) }, "", ""},
				// A close makes the kernel ask for st_blocks, once, if it has a writeback cache.
				{"stat", func() { must(unix.Stat(at("f"), &st)) }, "getattr", ""},
				{"stat again", func() { must(unix.Stat(at("f"), &st)) }, "", ""},
				// It asks for capabilities when a file is changed after its attributes were asked for.
				{"write", func() { must(os.WriteFile(at("f"), []byte("hello"), 0o644)) },
					"getxattr getxattr open setattr write", "getxattr getxattr open write"},
				{"first read", read, "getattr open", "getattr open read"},
				{"chmod", func() { must(unix.Chmod(at("f"), 0o600)) }, "setattr", "setattr"},
				{"utimes", func() { must(os.Chtimes(at("f"), time.Unix(1, 0), time.Unix(2, 0))) }, "setattr", "setattr"},
				{"read", read, "open", "open"},
				{"first listing", list, "readdirplus readdirplus", "readdirplus readdirplus"},
				{"listing", list, "", ""},
				// It writes the ctime of a file back at once if it has a writeback cache.
				{"rename", func() { must(unix.Rename(at("f"), at("g"))) }, "lookup rename setattr", "lookup rename"},
				{"link", func() { must(os.Link(at("g"), at("h"))) }, "getattr link lookup setattr", "getattr link lookup"},
				{"unlink", func() { must(unix.Unlink(at("h"))) }, "getattr setattr unlink", "getattr unlink"},
				{"unlink the last", func() { must(unix.Unlink(at("g"))) }, "getattr setattr unlink", "getattr unlink"},
				{"rmdir", func() { must(unix.Rmdir(at("d"))) }, "getattr rmdir", "getattr rmdir"},
			}
			for _, step := range steps {
				before := server.Stats().Requests
				time.Sleep(12 * time.Millisecond) // the kernel's clock has ticked: times do change
				step.do()
				var came []string
				for op, n := range server.Stats().Requests {
					if op != "release" && op != "forget" {
						came = append(came, slices.Repeat([]string{op}, int(n-before[op]))...)
					}
				}
				slices.Sort(came)
				want := step.writeback
				if variant == "writethrough" {
					want = step.writethrough
				}
				if got := strings.Join(came, " "); got != want {
					t.Errorf("%s: %q, want %q", step.name, got, want)
				}
			}
		})
	}
}
