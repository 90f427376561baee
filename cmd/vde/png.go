package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sync/semaphore"
	"golang.org/x/term"

	"vdefs/media/png"
)

// pngMemory is how many bytes all pictures that `vde png` works on at once may take; one that needs more is done alone.
const pngMemory = 1 << 30

// pngReport is what `vde png --json` prints. Fields are added, never renamed.
type pngReport struct {
	Check       bool           `json:"check"` // nothing was changed
	Level       png.Level      `json:"level"`
	Files       []pngResult    `json:"files"`
	Smaller     int            `json:"smaller"`      // files that were made smaller, or could be
	BytesBefore int64          `json:"bytes_before"` // of those
	BytesAfter  int64          `json:"bytes_after"`
	Kept        map[string]int `json:"kept"` // files that stay, by reason
	Failed      int            `json:"failed"`
}

// pngResult is one file.
type pngResult struct {
	Path  string `json:"path"`
	Error string `json:"error,omitempty"`
	png.Report

	err error
}

func newPNGCommand(a *app) *cobra.Command {
	level := png.Default
	var check bool
	jobs := runtime.NumCPU()
	cmd := &cobra.Command{
		Use:   "png FILE|DIR...",
		Short: "Make PNG files smaller without changing the picture, anywhere",
		Long: `Encodes PNG files again, smaller, and puts each in place of the old one in one step. Every pixel keeps its exact value and all
that the file tells beside them is kept; the result is decoded and compared before it is used. Mode, owner, times, ACLs and
extended attributes stay. What is not a complete and valid PNG, or does not get smaller, stays as it is.

In a directory all files named *.png are done, in the directories below it too, except in those of version control (.git and
the like). Symbolic links are followed when they are named, not when they are found. A file with several hard links stays, as
only one of its names would get the new contents.`,
		Example: `  vde png assets/
  vde png --check --level best logo.png`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("FILE or DIR is missing")
			}
			return noEmptyArgs(args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if jobs < 1 {
				return usagef("--jobs %d: it takes at least one", jobs)
			}
			files, err := findPNGs(cmd.Context(), args)
			if err != nil {
				return err
			}
			options := png.DefaultOptions()
			options.Level = level
			results, err := doPNGs(cmd.Context(), files, jobs, cmd.ErrOrStderr(), func(ctx context.Context, path string, data []byte) (png.Report, error) {
				return recodePNG(ctx, path, data, options, check)
			})
			if err != nil {
				return err
			}
			report := summarize(results, level, check)
			if a.json {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printPNGs(cmd.OutOrStdout(), report)
			}
			for _, r := range results {
				if r.err != nil && err == nil {
					if a.json {
						return &codedError{codeOf(r.err), &silentError{}}
					}
					return failf(codeOf(r.err), "%d files could not be done", report.Failed)
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "change nothing, only tell what would be saved")
	cmd.Flags().Var(&levelFlag{&level}, "level", "how much time to spend on size: fast, default or best")
	cmd.Flags().IntVarP(&jobs, "jobs", "j", jobs, "files to work on at once")
	must(cmd.RegisterFlagCompletionFunc("level", cobra.FixedCompletions([]string{"fast", "default", "best"}, cobra.ShellCompDirectiveNoFileComp)))
	a.addJSONFlag(cmd)
	return cmd
}

// levelFlag is a png.Level on the command line.
type levelFlag struct{ level *png.Level }

func (f *levelFlag) String() string        { return f.level.String() }
func (f *levelFlag) Set(text string) error { return f.level.UnmarshalText([]byte(text)) }
func (f *levelFlag) Type() string          { return "level" }

// doPNGs does files with several workers and a bar on a terminal, and returns the results in the order of the files. The error is that of
// ctx; those of files are in their results.
func doPNGs(ctx context.Context, files []pngFile, jobs int, terminal io.Writer, do func(context.Context, string, []byte) (png.Report, error)) ([]pngResult, error) {
	var total int64
	for _, f := range files {
		total += f.size
	}
	bar := newPNGBar(terminal, total)
	memory := semaphore.NewWeighted(pngMemory)
	results := make([]pngResult, len(files))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(jobs, len(files)) {
		workers.Go(func() {
			for i := range next {
				results[i] = pngResult{Path: files[i].path}
				results[i].Report, results[i].err = doPNG(ctx, files[i].path, memory, do)
				bar.add(files[i].size)
			}
		})
	}
	for i := range files {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	workers.Wait()
	bar.done()
	for i := range results {
		if err := results[i].err; err != nil {
			results[i].Error = oneLine(err.Error())
		}
	}
	return results, ctx.Err()
}

// doPNG reads one file and does it, when there is memory for it.
func doPNG(ctx context.Context, path string, memory *semaphore.Weighted, do func(context.Context, string, []byte) (png.Report, error)) (png.Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return png.Report{Kept: true}, err
	}
	need := min(pngMemory, png.Needs(data, int64(len(data))))
	if err := memory.Acquire(ctx, need); err != nil {
		return png.Report{Kept: true}, err
	}
	defer memory.Release(need)
	return do(ctx, path, data)
}

func summarize(results []pngResult, level png.Level, check bool) pngReport {
	report := pngReport{Check: check, Level: level, Files: results, Kept: map[string]int{}}
	for _, r := range results {
		switch {
		case r.err != nil:
			report.Failed++
		case r.Kept:
			report.Kept[string(r.Reason)]++
		default:
			report.Smaller++
			report.BytesBefore += r.InBytes
			report.BytesAfter += r.OutBytes
		}
	}
	return report
}

// printPNGs prints a table of what was saved for people.
func printPNGs(w io.Writer, report pngReport) error {
	table := newFacts(w)
	if report.Smaller > 0 {
		fmt.Fprintln(table.w, "BEFORE\tAFTER\tSAVED\tFORMAT\tFILE")
	}
	for _, r := range report.Files {
		if r.err != nil || r.Kept {
			continue
		}
		format := r.After.String()
		if r.Before != r.After {
			format = r.Before.String() + " -> " + format
		}
		fmt.Fprintf(table.w, "%s\t%s\t%s\t%s\t%s\n", bytesText(uint64(r.InBytes)), bytesText(uint64(r.OutBytes)), savedText(r.InBytes, r.OutBytes), format, r.Path)
	}
	table.flush()
	for _, r := range report.Files {
		if r.err != nil {
			fmt.Fprintf(w, "failed: %s\n", r.Error)
		} else if r.Reason.Damaged() {
			fmt.Fprintf(w, "stays: %s: %s (%s)\n", r.Path, r.Reason, oneLine(r.Detail))
		}
	}
	verb := "saved"
	if report.Check {
		verb = "would save"
	}
	fmt.Fprintf(w, "%d of %d files: %s %s of %s (%s)", report.Smaller, len(report.Files), verb,
		bytesText(uint64(report.BytesBefore-report.BytesAfter)), bytesText(uint64(report.BytesBefore)), savedText(report.BytesBefore, report.BytesAfter))
	var kept []string
	for _, reason := range slices.Sorted(maps.Keys(report.Kept)) {
		kept = append(kept, fmt.Sprintf("%d %s", report.Kept[reason], reason))
	}
	if len(kept) > 0 {
		fmt.Fprintf(w, "; unchanged: %s", strings.Join(kept, ", "))
	}
	_, err := fmt.Fprintln(w)
	return err
}

func savedText(before, after int64) string {
	return shareText(uint64(max(0, before-after)), uint64(before))
}

// pngBar is a progress bar, on a terminal; elsewhere nothing.
type pngBar struct{ bar *progressbar.ProgressBar }

func newPNGBar(w io.Writer, total int64) pngBar {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || total == 0 {
		return pngBar{}
	}
	return pngBar{progressbar.NewOptions64(total, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true), progressbar.OptionFullWidth(),
		progressbar.OptionSetDescription("png"), progressbar.OptionClearOnFinish())}
}

func (b pngBar) add(n int64) {
	if b.bar != nil {
		b.bar.Add64(n)
	}
}

func (b pngBar) done() {
	if b.bar != nil {
		b.bar.Finish()
	}
}
