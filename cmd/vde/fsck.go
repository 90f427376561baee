package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/schollz/progressbar/v3"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vdefs/fs/replica"
	"vdefs/vde/check"
)

func newFsckCommand(a *app) *cobra.Command {
	var data, repair, dropLog bool
	cmd := &cobra.Command{
		Use:   "fsck STORE",
		Short: "Check a store that is not mounted",
		Long: `Checks that a store is whole: superblocks, every key of the metadata, names against inodes and link counts, extents
against each other and the bitmap, and that the log can be read and applied. Without --repair not one byte is changed: what
the log holds beyond the metadata is applied in memory, to judge what the next mount would see.

Exit codes, as of fsck(8): 0 clean, 1 repaired, 4 left as it is, 8 the check could not be done, 16 usage.`,
		Args:              exactArgs("STORE"),
		ValidArgsFunction: completeDirs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ownerOnly()
			store, err := resolvePath(args[0])
			if err != nil {
				return failf(exitNotAStore, "store %s: %w", args[0], err)
			}
			if _, err := os.Stat(store); errors.Is(err, os.ErrNotExist) {
				return checkStore(store)
			}
			log, _, err := a.log.newLogger(logrus.WarnLevel, false)
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			if dropLog && !repair {
				return usagef("--drop-log is a way to repair: give --repair too")
			}
			report, err := check.Run(store, check.Options{
				Data: data, Repair: repair, DropLog: dropLog, Logger: log, Progress: progress.show, Replay: replay(log), Rehearse: rehearse(log),
				NewLog: replica.NewLog, OnlyVoter: replica.OnlyVoter,
			})
			progress.done()
			if err != nil {
				return explainOpen(store, err)
			}
			if a.json {
				if err := printJSON(cmd.OutOrStdout(), report); err != nil {
					return err
				}
			} else {
				printFindings(cmd.OutOrStdout(), store, report, repair)
			}
			if code := judge(report); code != fsckClean {
				return &codedError{code, &silentError{}}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&data, "data", false, "also read all data and compare it with its checksums")
	cmd.Flags().BoolVar(&repair, "repair", false, "repair what can be repaired without losing data")
	cmd.Flags().BoolVar(&dropLog, "drop-log", false, "with --repair: go on without the part of a damaged log that cannot be read, and what stands behind it: the last changes are lost")
	a.addJSONFlag(cmd)
	return cmd
}

// replay returns what applies the log of a store: a mount without a mount point.
func replay(log *logrus.Logger) func(string, vfs.FS) error {
	return func(dir string, fs vfs.FS) error {
		volume, err := replica.Open(dir, replica.Options{FS: fs, Logger: log})
		if err != nil {
			return err
		}
		return volume.Close()
	}
}

// rehearse returns what does so, in a copy, where other nodes have to say how much of the log counts.
func rehearse(log *logrus.Logger) func(string, vfs.FS) error {
	return func(dir string, fs vfs.FS) error {
		return replica.Rehearse(dir, replica.Options{FS: fs, Logger: log})
	}
}

// judge sums a report up.
func judge(report check.Report) exitCode {
	switch {
	case report.Left() > 0:
		return fsckUncorrected
	case len(report.Findings) > 0:
		return fsckRepaired
	default:
		return fsckClean
	}
}

// advise tells what can be done about what was found.
func advise(store string, report check.Report) string {
	var repairable, blocks, droppable, other bool
	for _, f := range report.Findings {
		switch {
		case f.Repairable:
			repairable = true
		case f.Kind == check.KindBlock:
			blocks = true
		case f.Droppable:
			droppable = true
		default:
			other = true
		}
	}
	var advice []string
	if repairable || report.More > 0 {
		advice = append(advice, fmt.Sprintf("run `vde fsck --repair %s`", store))
	}
	if blocks {
		advice = append(advice, "write the files with bad blocks anew, from a backup (the rest of each can be read; on a node of a cluster `vde scrub` fetches them)")
	}
	if droppable {
		advice = append(advice, fmt.Sprintf("restore the store from a backup, or, if there is none, run `vde fsck --repair --drop-log %s`", store))
	}
	if other {
		what := "it cannot be repaired"
		if repairable {
			what = "not all can be repaired"
		}
		advice = append(advice, what+": restore the store from a backup, or, of a cluster, remove this node and join it anew")
	}
	return strings.Join(advice, "; ")
}

func printFindings(w io.Writer, store string, report check.Report, repair bool) {
	for _, f := range report.Findings {
		state := ""
		if f.Repaired {
			state = " (repaired)"
		}
		fmt.Fprintf(w, "%s: %s%s\n", f.Kind, f.What, state)
	}
	for _, note := range report.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
	found, left := uint64(len(report.Findings))+report.More, report.Left()
	verdict := "clean"
	switch {
	case found > 0 && left == 0:
		verdict = fmt.Sprintf("%d problems, all repaired", found)
	case found > 0 && repair:
		verdict = fmt.Sprintf("%d problems, %d could not be repaired", found, left)
	case found > 0:
		verdict = fmt.Sprintf("%d problems: %s", found, advise(store, report))
	}
	fmt.Fprintf(w, "%s: %s (%d files, %d directories, %d of %d blocks used, %d of them read)\n",
		store, verdict, report.Files, report.Dirs, report.UsedBlocks, report.Blocks, report.CheckedBlocks)
}

// progress shows how far a long piece of work has come: a bar on a terminal, nothing elsewhere.
type progress struct {
	w    io.Writer
	bar  *progressbar.ProgressBar // nil when w is no terminal
	what string
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionClearOnFinish(), progressbar.OptionShowCount())
	}
	return p
}

func (p *progress) show(done, total uint64, what string) {
	if p.bar == nil {
		return
	}
	if what != p.what {
		p.what = what
		p.bar.Reset()
		p.bar.Describe(what)
	}
	p.bar.ChangeMax64(int64(total))
	p.bar.Set64(int64(done))
}

func (p *progress) done() {
	if p.bar != nil {
		p.bar.Finish()
	}
}
