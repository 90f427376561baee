// Command png compares the levels of media/png with the PNG optimisers that are installed: how many bytes are left, and how much processor
// time it takes, one thread each. The files are PNGs that Debian packages ship, or those below directories that are named: the same number out of
// each, so that the package with the most files does not decide.
//
// The files go in groups round all tools before the next group, so that what the machine does besides hits all alike; the times are
// the user time of the processes.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"vdefs/media/png"
)

// tool is a way to make files smaller.
type tool struct {
	name string
	// command gives what to run on the files, which are copies that may be overwritten; out is a directory for those who write
	// elsewhere.
	command func(files []string, out string) *exec.Cmd
	maxSize int64 // of a file that it is tried on, 0 for any
}

func external(name string, command func(files []string, out string) []string, maxSize int64) tool {
	return tool{name, func(files []string, out string) *exec.Cmd {
		args := command(files, out)
		return exec.Command(args[0], args[1:]...)
	}, maxSize}
}

// tools lists the levels, and the optimisers that are installed. slow is the size up to which zopflipng, which takes a hundred times as long as the others, is
// tried.
func tools(self string, slow int64) []tool {
	var list []tool
	for _, t := range []tool{
		external("optipng -o2", func(files []string, _ string) []string {
			return append([]string{"optipng", "-quiet", "-o2"}, files...)
		}, 0),
		external("oxipng -o2", func(files []string, _ string) []string {
			return append([]string{"oxipng", "-q", "-o2", "-t1"}, files...)
		}, 0),
		external("pngcrush", func(files []string, out string) []string {
			return append([]string{"pngcrush", "-s", "-d", out}, files...)
		}, 0),
	} {
		if _, err := exec.LookPath(strings.Fields(t.name)[0]); err == nil {
			list = append(list, t)
		}
	}
	for l := png.Fast; l <= png.Best; l++ {
		list = append(list, external("vde png, "+l.String(), func(files []string, _ string) []string {
			return append([]string{self, "-encode", l.String()}, files...)
		}, 0))
	}
	if _, err := exec.LookPath("zopflipng"); err == nil && slow > 0 {
		list = append(list, external("zopflipng", func(files []string, _ string) []string {
			return append([]string{"zopflipng", "-y", "--prefix=out/", "--keepchunks=" + strings.Join(ancillary, ",")}, files...)
		}, slow))
	}
	return list
}

// ancillary are the chunks that zopflipng drops unless it is told not to.
var ancillary = []string{"gAMA", "cHRM", "iCCP", "sBIT", "sRGB", "bKGD", "pHYs", "sPLT", "tIME", "tEXt", "zTXt", "iTXt", "eXIf"}

// result is one line of the table.
type result struct {
	Name    string  `json:"name"`
	Files   int     `json:"files"`
	In      int64   `json:"in_bytes"`
	Out     int64   `json:"out_bytes"` // a file that did not get smaller counts with its size
	Percent float64 `json:"percent"`
	User    float64 `json:"user_seconds"`
	Speed   float64 `json:"speed_to_first"` // on the files that both were tried on
	same    float64 // user seconds of the first tool on those
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench/png:", err)
		os.Exit(1)
	}
}

func run() error {
	files := flag.Int("files", 300, "how many files, evenly out of the packages or directories; 0 for all")
	names := flag.String("packages", "adwaita-icon-theme,desktop-base,pingus-data,tango-icon-theme", "Debian packages whose files are taken where no directory is named")
	least := flag.Int64("least", 0, "leave out files below so many bytes")
	groups := flag.Int("groups", 20, "in how many groups they go round the tools")
	slow := flag.Int64("zopfli", 0, "try zopflipng too, on files of at most so many bytes")
	asJSON := flag.Bool("json", false, "print JSON")
	encode := flag.String("encode", "", "used by the program itself: re-encode the files in place at a level")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./test/bench/png [flags] [DIRECTORY...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *encode != "" {
		return reencode(*encode, flag.Args())
	}
	var sources [][]string
	if flag.NArg() > 0 {
		for _, dir := range flag.Args() {
			paths, err := below(dir)
			if err != nil {
				return err
			}
			sources = append(sources, pictures(paths, *least))
		}
	} else {
		for _, name := range strings.Split(*names, ",") {
			paths, err := installed(name)
			if err != nil {
				return err
			}
			sources = append(sources, pictures(paths, *least))
		}
	}
	list := pick(sources, *files)
	if len(list) == 0 {
		return fmt.Errorf("no PNG files found: install the packages %s, or name a directory that has some", *names)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	results, err := measure(ctx, tools(self, *slow), list, max(1, min(*groups, len(list))))
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "tool\tfiles\tbytes in\tbytes out\tof input\tuser s\tspeed to %s\t\n", results[0].Name)
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.2f %%\t%.2f\t%.2f\t\n", r.Name, r.Files, r.In, r.Out, r.Percent, r.User, r.Speed)
	}
	return w.Flush()
}

// below lists what is in a directory and those below it.
func below(dir string) (paths []string, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	return paths, err
}

// installed lists the files of a Debian package, none if it is not installed.
func installed(name string) ([]string, error) {
	data, err := os.ReadFile("/var/lib/dpkg/info/" + name + ".list")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Split(string(data), "\n"), err
}

// pictures gives the PNG files among paths, in the order of their paths.
func pictures(paths []string, least int64) (list []string) {
	for _, path := range paths {
		if !strings.HasSuffix(path, ".png") {
			continue
		}
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() >= least {
			list = append(list, path)
		}
	}
	slices.Sort(list)
	return list
}

// pick takes n files, as many from each source as it has and the others leave, evenly from its first to its last; 0 takes all.
func pick(sources [][]string, n int) (list []string) {
	slices.SortStableFunc(sources, func(a, b []string) int { return len(a) - len(b) }) // what the small ones leave goes to the others
	for i, source := range sources {
		share := len(source)
		if n > 0 {
			share = min(share, (n-len(list))/(len(sources)-i))
		}
		for k := range share {
			list = append(list, source[k*len(source)/share])
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// measure runs every tool on every group.
func measure(ctx context.Context, tools []tool, list []string, groups int) ([]result, error) {
	results := make([]result, len(tools))
	for i, t := range tools {
		results[i].Name = t.name
	}
	for g := range groups {
		first := 0.0 // user seconds of the first tool on the group
		for i, t := range tools {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			fmt.Fprintf(os.Stderr, "\r%-60s", fmt.Sprintf("group %d of %d: %s", g+1, groups, t.name))
			var files []string
			for k := g; k < len(list); k += groups {
				if info, err := os.Stat(list[k]); err == nil && (t.maxSize == 0 || info.Size() <= t.maxSize) {
					files = append(files, list[k])
				}
			}
			if len(files) == 0 {
				continue
			}
			in, out, user, err := one(ctx, t, files)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			r := &results[i]
			r.Files, r.In, r.Out, r.User = r.Files+len(files), r.In+in, r.Out+out, r.User+user
			same := first
			switch {
			case i == 0:
				first, same = user, user
			case t.maxSize > 0: // not all files
				if _, _, same, err = one(ctx, tools[0], files); err != nil {
					return nil, fmt.Errorf("%s: %w", tools[0].name, err)
				}
			}
			r.same += same
		}
	}
	fmt.Fprintf(os.Stderr, "\r%-60s\r", "")
	for i := range results {
		r := &results[i]
		r.Percent = 100 * float64(r.Out) / float64(max(r.In, 1))
		if r.User > 0 {
			r.Speed = r.same / r.User
		}
	}
	return results, nil
}

// one runs a tool on copies of files.
func one(ctx context.Context, t tool, files []string) (in, out int64, user float64, err error) {
	dir, err := os.MkdirTemp("", "vde-png-")
	if err != nil {
		return 0, 0, 0, err
	}
	defer os.RemoveAll(dir)
	elsewhere := filepath.Join(dir, "out")
	if err := os.Mkdir(elsewhere, 0o700); err != nil {
		return 0, 0, 0, err
	}
	copies := make([]string, len(files))
	sizes := make([]int64, len(files))
	for i, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, 0, 0, err
		}
		copies[i], sizes[i] = filepath.Join(dir, strconv.Itoa(i)+".png"), int64(len(data))
		in += sizes[i]
		if err := os.WriteFile(copies[i], data, 0o600); err != nil {
			return 0, 0, 0, err
		}
	}
	cmd := t.command(copies, elsewhere)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return 0, 0, 0, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	// Damaged files make some of them end with an error, after they have done the others.
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() < 0 {
		return 0, 0, 0, fmt.Errorf("%w: %s", err, said.String())
	}
	for i, path := range copies {
		size := sizes[i]
		for _, p := range []string{path, filepath.Join(elsewhere, filepath.Base(path))} {
			if info, err := os.Stat(p); err == nil && info.Size() > 0 {
				size = min(size, info.Size())
			}
		}
		out += size
	}
	return in, out, cmd.ProcessState.UserTime().Seconds(), nil
}

// reencode does the work of one of our levels, one file after the other.
func reencode(level string, files []string) error {
	o := png.DefaultOptions()
	o.Force = true
	o.Timeout = time.Hour
	if err := o.Level.UnmarshalText([]byte(level)); err != nil {
		return err
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		out, _, err := png.Reencode(context.Background(), data, o)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if out != nil {
			if err := os.WriteFile(path, out, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}
