package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A repository is cloned, checked, packed and switched between branches in the mount, and a program built from it runs.
func TestGitAndGo(t *testing.T) {
	need(t, "git", "go")
	d := mounted(t, "2G")
	origin := filepath.Join(t.TempDir(), "origin")
	d.sh(`mkdir -p $ORIGIN && cp -r $SRC/net $SRC/encoding $SRC/go $ORIGIN && cd $ORIGIN && git init -q -b main . && `+
		gitAs+` git add . && `+gitAs+` git commit -q -m one && git checkout -q -b other && rm -r net && echo changed >go/README && `+
		gitAs+` git add -A . && `+gitAs+` git commit -q -m two && git checkout -q main`, "ORIGIN="+origin, "SRC="+realTree(t))

	clone := d.path("clone")
	d.sh("git clone -q --no-local $ORIGIN $MNT/clone", "ORIGIN="+origin)
	for _, check := range []string{"git fsck --strict", "git checkout -q other", "git checkout -q main", "git gc -q", "git fsck --full"} {
		d.sh("cd $MNT/clone && " + check)
		if status := d.sh("cd $MNT/clone && git status --porcelain"); status != "" {
			t.Errorf("after %s: git status says\n%s", check, status)
		}
	}
	d.remount()
	if status := d.sh("cd $MNT/clone && git status --porcelain && git fsck"); status != "" {
		t.Errorf("after mounting again: %s", status)
	}
	if a, b := d.sh("git -C $ORIGIN rev-parse main:", "ORIGIN="+origin), d.sh("git -C "+clone+" write-tree"); a != b {
		t.Errorf("tree %s, should be %s", b, a)
	}

	// The source, the compiler's cache, its scratch files and the program are all in the mount.
	module := d.path("hello")
	if err := os.MkdirAll(module, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(module, "go.mod"), []byte("module hello\n\ngo 1.21\n"))
	write(t, filepath.Join(module, "main.go"), []byte("package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(\"hello from the mount\\n\") }\n"))
	output := d.sh("mkdir $MNT/tmp && cd $MNT/hello && CGO_ENABLED=0 go build -o hello . && ./hello && go vet . && go test .",
		"GOCACHE="+d.path("cache"), "GOTMPDIR="+d.path("tmp"), "GOFLAGS=-buildvcs=false")
	if !strings.Contains(output, "hello from the mount") {
		t.Errorf("the program printed %q", output)
	}
}

// gitAs names an author, whatever the machine's configuration.
const gitAs = "GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org"
