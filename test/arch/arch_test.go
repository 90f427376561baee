// Package arch holds the walls between the rooms of this module as a test: who may import whom, and which calls are made nowhere.
// The house is drawn in docs/design.md.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "vdefs"

// room is a directory of packages and what its code (tests aside) may import of this module and of outside libraries.
type room struct {
	dir string // a package, or with /... also everything below it
	// may lists the packages of this module that may be imported, written like dir.
	may []string
	// never lists import paths, or prefixes of them ending in /..., that have no business here, with the reason.
	never []ban
	// rules are calls that are not made here.
	rules []ban
}

type ban struct{ what, why string }

// Libraries that show which layer a room belongs to.
var (
	noRaft   = ban{"go.etcd.io/raft/v3/...", "this room knows nothing of replication: the log is its caller's"}
	noFUSE   = ban{"github.com/hanwen/go-fuse/v2/...", "only the mount speaks FUSE: what it needs crosses fs.Volume"}
	noPebble = ban{"github.com/cockroachdb/pebble/v2", "metadata is vde/meta's business; a file goes through vfs"}
	noCobra  = ban{"github.com/spf13/cobra", "the command line ends in cmd/vde"}
	noHTTP   = ban{"net/http", "the control socket ends in cmd/vde"}
)

// Calls that hide what a room does from its tests or its caller.
var (
	noPrint = []ban{
		{"fmt.Print", "a library does not write to the terminal: log through the given logger"},
		{"fmt.Printf", "a library does not write to the terminal: log through the given logger"},
		{"fmt.Println", "a library does not write to the terminal: log through the given logger"},
		{"log.Print", "log through the given logger"},
		{"log.Printf", "log through the given logger"},
		{"log.Fatal", "a library does not end the process: return an error"},
		{"log.Fatalf", "a library does not end the process: return an error"},
		{"os.Exit", "a library does not end the process: return an error"},
	}
	noFiles = []ban{
		{"os.Open", "files are opened through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.OpenFile", "files are opened through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.Create", "files are made through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.ReadFile", "files are read through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.WriteFile", "files are written through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.Remove", "files are removed through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.RemoveAll", "files are removed through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.Rename", "files are renamed through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.Mkdir", "directories are made through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.MkdirAll", "directories are made through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.ReadDir", "directories are read through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.Stat", "files are looked at through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
		{"os.Truncate", "files are cut through vfs.FS, so that a whole node can run on a disk that fails and crashes"},
	}
	noClock = []ban{
		{"time.Now", "applying an entry must give the same result on every replica and at every replay: times come with the entry"},
		{"time.Since", "applying an entry must give the same result on every replica and at every replay: times come with the entry"},
	}
)

// house lists the rooms, the lowest first. A package belongs to the last room that holds it.
var house = []room{
	{dir: "vde/layout", never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles, noClock)},
	{dir: "vde/rangelock", never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},
	{dir: "vde/alloc", may: []string{"vde/layout"}, never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},
	{dir: "vde/image", may: []string{"vde/layout"}, never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},
	{dir: "vde/meta", may: []string{"vde/layout"}, never: []ban{noRaft, noFUSE, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},
	{dir: "vde", may: []string{"vde/layout", "vde/rangelock", "vde/alloc", "vde/image", "vde/meta"},
		never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},
	// The checker judges a store by what is documented; code shared with the writer would share its mistakes.
	{dir: "vde/check/...", may: []string{"vde", "vde/layout", "vde/meta", "vde/image", "consensus/logstore"},
		never: []ban{noRaft, noFUSE, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},

	{dir: "media/...", may: []string{"media/..."}, never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},

	{dir: "consensus/...", may: []string{"consensus/..."}, never: []ban{noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},

	{dir: "fs/advisory", never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles, noClock)},
	// Inode numbers and attributes are the words that the mount and the volume share.
	{dir: "fs", may: []string{"vde/meta", "fs/advisory"}, never: []ban{noRaft, noPebble, noCobra, noHTTP}, rules: noPrint},
	// A write by reference carries the extents that its data already lies in.
	{dir: "fs/command", may: []string{"vde/meta", "vde/alloc", "fs"}, never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles, noClock)},
	{dir: "fs/posix", may: []string{"vde", "vde/meta", "vde/alloc", "fs", "fs/advisory", "fs/command"}, never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP},
		rules: concat(noPrint, noFiles, noClock)},
	{dir: "fs/recode", may: []string{"media/...", "vde/meta", "fs", "fs/command"}, never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},
	// Keys and certificates are files of the operating system, with modes that vfs.FS does not have.
	{dir: "fs/cluster", may: []string{"consensus/transport"}, never: []ban{noRaft, noFUSE, noPebble, noCobra, noHTTP}, rules: noPrint},
	{dir: "fs/replica", may: []string{"consensus/...", "vde/...", "media/...", "fs", "fs/advisory", "fs/cluster", "fs/command", "fs/posix", "fs/recode"},
		never: []ban{noFUSE, noCobra, noHTTP}, rules: concat(noPrint, noFiles)},

	{dir: "cmd/...", may: []string{"media/...", "fs", "fs/cluster", "fs/replica", "vde", "vde/check", "vde/layout", "vde/meta"}},
	{dir: "test/..."},
}

func concat(lists ...[]ban) []ban { return slices.Concat(lists...) }

// matches tells whether a path is what a pattern like vde/meta or media/... names.
func matches(pattern, path string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	return path == pattern
}

func roomOf(dir string) *room {
	for i := len(house) - 1; i >= 0; i-- {
		if matches(house[i].dir, dir) {
			return &house[i]
		}
	}
	return nil
}

// source is one file of the module that is not a test.
type source struct {
	dir  string // of its package, relative to the module
	name string
	ast  *ast.File
}

func sources(t *testing.T) ([]source, *token.FileSet) {
	t.Helper()
	output, err := exec.Command("go", "list", "-e", "-f", `{{$dir := .Dir}}{{$path := .ImportPath}}{{range .GoFiles}}{{$path}} {{$dir}}/{{.}}{{"\n"}}{{end}}`, module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	fset := token.NewFileSet()
	var files []source
	for line := range strings.Lines(string(output)) {
		pkg, file, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		parsed, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, source{strings.TrimPrefix(pkg, module+"/"), filepath.Base(file), parsed})
	}
	if len(files) == 0 {
		t.Fatal("no source was found")
	}
	return files, fset
}

// Every package is in a room, and imports what its room may.
func TestImports(t *testing.T) {
	files, fset := sources(t)
	for _, f := range files {
		r := roomOf(f.dir)
		if r == nil {
			t.Errorf("%s: the package is in no room: give it one in the table of this test and in docs/design.md", f.dir)
			continue
		}
		for _, spec := range f.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			at := fset.Position(spec.Pos())
			for _, b := range r.never {
				if matches(b.what, imported) {
					t.Errorf("%s: %s imports %s: %s", at, f.dir, imported, b.why)
				}
			}
			inner, ours := strings.CutPrefix(imported, module+"/")
			if ours && !strings.HasPrefix(r.dir, "test/") && !slices.ContainsFunc(r.may, func(p string) bool { return matches(p, inner) }) {
				t.Errorf("%s: %s imports %s: a room stands on what is below it, here on %s", at, f.dir, inner, orNothing(r.may))
			}
		}
	}
}

func orNothing(may []string) string {
	if len(may) == 0 {
		return "nothing of this module"
	}
	return strings.Join(may, ", ")
}

// Some calls are made nowhere in a room.
func TestCalls(t *testing.T) {
	files, fset := sources(t)
	for _, f := range files {
		r := roomOf(f.dir)
		if r == nil || len(r.rules) == 0 {
			continue
		}
		names := map[string]string{} // of imported packages in this file -> import path
		for _, spec := range f.ast.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			name := path.Base(imported)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			names[name] = imported
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			selector, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			name, ok := selector.X.(*ast.Ident)
			if !ok || names[name.Name] == "" {
				return true
			}
			call := names[name.Name] + "." + selector.Sel.Name
			for _, b := range r.rules {
				if b.what == call {
					t.Errorf("%s: %s: %s", fset.Position(n.Pos()), call, b.why)
				}
			}
			return true
		})
	}
}

// Input never ends the process: panic is for states that the code itself rules out, and says so where it stands.
func TestPanics(t *testing.T) {
	files, fset := sources(t)
	for _, f := range files {
		if strings.HasPrefix(f.dir, "test/") || strings.HasPrefix(f.dir, "cmd/") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if name, ok := call.Fun.(*ast.Ident); ok && name.Name == "panic" && knownPanics[f.dir+"/"+f.name] == "" {
				t.Errorf("%s: panic: return an error; if only a mistake in this program can lead here, name the file in knownPanics with the reason", fset.Position(n.Pos()))
			}
			return true
		})
	}
}

// knownPanics are files with panics that no input can reach, and why that is so.
var knownPanics = map[string]string{
	"consensus/raftlog.go": "raft's logger has Panic and Fatal for states that its own rules exclude; it relies on not going on",
	"vde/tx.go":            "only inodes that the same transaction gave out are stored with it",
	"vde/meta/batch.go":    "a batch in memory fails only when it is used after it was closed",
}
