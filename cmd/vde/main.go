// Command vde makes, mounts and looks after VDE stores.
//
// It only wires the packages together: what a store is lives in vde, what a mount does in fs. One file per verb.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() { os.Exit(int(run(os.Args))) }

// run does what the arguments (with the program's name first) say and returns the exit code.
func run(args []string) exitCode {
	switch filepath.Base(args[0]) {
	case mountHelperName:
		return runMountHelper(args)
	case umountHelperName:
		return runUmountHelper(args)
	}
	// Interrupts end the context, so that verbs can clean up; the daemon looks at signals itself.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return execute(ctx, newApp(), args[1:])
}

// app is what the verbs share: the flags of all of them.
type app struct {
	log  logFlags
	json bool // --json of the verbs that have it
}

func newApp() *app { return &app{} }

// execute runs one command line and prints its error.
func execute(ctx context.Context, a *app, args []string) exitCode {
	root := newRootCommand(a)
	root.SetArgs(args)
	verb, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code := codeOf(err)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	var silent *silentError
	if errors.As(err, &silent) {
		return code
	}
	// A daemon that is refused before it serves is waited for too, by the parent that has found nothing wrong.
	if ready, pipeErr := inheritReadyPipe(); pipeErr == nil {
		ready.tell(err)
	}
	fmt.Fprintf(verb.ErrOrStderr(), "%s: %s\n", verb.CommandPath(), oneLine(err.Error()))
	if code == exitUsage {
		fmt.Fprintf(verb.ErrOrStderr(), "Try '%s --help'.\n", verb.CommandPath())
	}
	if verb.Name() == "fsck" {
		return fsckCode(code, ctx.Err() != nil)
	}
	return code
}

// silentError ends the process with a code after the verb has printed all there is to say.
type silentError struct{}

func (*silentError) Error() string { return "" }

// oneLine joins the lines of an error: one error is one line, so that logs and scripts stay simple.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }), "; ")
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "vde",
		Short: "A virtual disk that is mounted as a POSIX filesystem",
		Long: `vde keeps a filesystem in a directory, the store, and mounts it through FUSE.

  vde format /srv/store --size 10G    make a store
  vde mount /srv/store /mnt           mount it
  vde umount /mnt                     unmount it; everything is on disk when this returns`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchVerb,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%w", err) })
	flags := root.PersistentFlags()
	flags.StringVar(&a.log.level, "log-level", "", "least severe messages to log: error, warning, info, debug, trace (default info for mount, warning for others)")
	flags.StringVar(&a.log.format, "log-format", "text", "how to write the log: text or json")
	flags.StringVar(&a.log.file, "log-file", "", "where to write the log (default: standard error; of a daemon: vde.log in the store)")
	must(root.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"error", "warning", "info", "debug", "trace"}, cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))

	root.AddCommand(newFormatCommand(a), newMountCommand(a), newUmountCommand(a), newStatusCommand(a), newInfoCommand(a),
		newFsckCommand(a), newScrubCommand(a), newPNGCommand(a), newServeCommand(a), newJoinCommand(a), newClusterCommand(a), newGroupCommand(a), newVersionCommand(a), newExitCodesTopic())
	root.Version = version() // gives the flag --version
	root.SetVersionTemplate(versionLine())
	refuseUnknownTopics(root)
	return root
}

// refuseUnknownTopics makes `vde help VERB` fail for what is no verb; by itself it shows the help of the program, and ends with 0.
func refuseUnknownTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	must(err)
	help.Args = func(cmd *cobra.Command, args []string) error {
		_, rest, err := cmd.Root().Find(args)
		if err != nil {
			return usagef("%w", err)
		}
		return noSuchVerb(cmd, rest)
	}
}

// newExitCodesTopic is `vde help exit-codes`: without RunE it is a topic of the help, no verb.
func newExitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes and what they mean", Long: exitCodeHelp()}
}

func noSuchVerb(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("there is no verb %q", args[0])
	}
	return nil
}

// exactArgs asks for arguments by name, so that the error can say which is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s is missing", names[len(args)])
		case len(args) > len(names):
			return usagef("argument %q is one too many", args[len(names)])
		}
		return noEmptyArgs(args)
	}
}

// noEmptyArgs refuses "", which is a variable without a value in somebody's script: as a path it would be the current directory.
func noEmptyArgs(args []string) error {
	for i, arg := range args {
		if arg == "" {
			return usagef("argument %d is empty", i+1)
		}
	}
	return nil
}

// maxArgs is for verbs whose arguments may be left out.
func maxArgs(n int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > n {
			return usagef("argument %q is one too many", args[n])
		}
		return noEmptyArgs(args)
	}
}

// completeDirs completes as many arguments with directories as a verb takes.
func completeDirs(count int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= count {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
}

// addJSONFlag gives a verb that prints facts its --json.
func (a *app) addJSONFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON")
}

// must is for mistakes of this program that show at its first start.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
