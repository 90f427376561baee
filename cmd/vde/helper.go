package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// The names under which mount(8) and umount(8) call this program, as links in /sbin: `mount -t fuse.vde STORE DIR` and
// /etc/fstab work through them.
const (
	mountHelperName  = "mount.fuse.vde"
	umountHelperName = "umount.fuse.vde"
)

// helperArgs are the arguments that mount(8) and umount(8) give their helpers: operands and options, in any order.
type helperArgs struct {
	operands []string
	options  []string // values of -o
	letters  string   // single options that were there
}

// parseHelperArgs reads "SOURCE DIR [-sfnvlri] [-N namespace] [-o options] [-t type]".
func parseHelperArgs(args []string) (helperArgs, error) {
	var h helperArgs
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' {
			h.operands = append(h.operands, arg)
			continue
		}
		for j := 1; j < len(arg); j++ {
			letter := arg[j]
			if !strings.ContainsRune("oNt", rune(letter)) {
				h.letters += string(letter)
				continue
			}
			value := arg[j+1:]
			if value == "" {
				i++
				if i == len(args) {
					return h, usagef("-%c needs a value", letter)
				}
				value = args[i]
			}
			if letter == 'o' {
				h.options = append(h.options, value)
			}
			break
		}
	}
	return h, nil
}

func (h helperArgs) has(letter string) bool { return strings.Contains(h.letters, letter) }

// runMountHelper is the program as mount.fuse.vde. It ends with the codes of mount(8).
func runMountHelper(args []string) exitCode {
	return runHelper(args[0], func(ctx context.Context) error {
		h, err := parseHelperArgs(args[1:])
		if err != nil {
			return err
		}
		if len(h.operands) != 2 {
			return usagef("usage: %s STORE DIRECTORY [-o options]", mountHelperName)
		}
		if h.has("f") { // mount --fake
			return nil
		}
		verb := []string{"mount", h.operands[0], h.operands[1]}
		if wantsRemount(h.options) {
			// mount(8) gives all that shall be, and leaves out what is the default.
			verb = append(verb, "-o", "rw,suid,dev,exec,async")
		}
		for _, o := range h.options {
			verb = append(verb, "-o", o)
		}
		return executeQuietly(ctx, verb)
	})
}

// runUmountHelper is the program as umount.fuse.vde: so that umount(8) waits too until everything is on disk, where it asks for the helper.
// It does not if it takes the type from statfs(2), which knows "fuse" only.
func runUmountHelper(args []string) exitCode {
	return runHelper(args[0], func(ctx context.Context) error {
		h, err := parseHelperArgs(args[1:])
		if err != nil {
			return err
		}
		if len(h.operands) != 1 {
			return usagef("usage: %s DIRECTORY [-fl]", umountHelperName)
		}
		verb := []string{"umount", h.operands[0]}
		switch {
		case h.has("l"):
			verb = append(verb, "--lazy")
		case h.has("f"):
			verb = append(verb, "--force")
		}
		return executeQuietly(ctx, verb)
	})
}

// executeQuietly runs a verb and returns its error unprinted.
func executeQuietly(ctx context.Context, args []string) error {
	root := newRootCommand(newApp())
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

func runHelper(name string, do func(context.Context) error) exitCode {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := do(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, oneLine(err.Error()))
	if codeOf(err) == exitUsage {
		return mountUsage
	}
	return mountFailure
}
