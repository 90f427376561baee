package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vdefs/vde"
)

// defaultStoreSize is the size of a store that is made without --size. The image is sparse: it takes what is written.
const defaultStoreSize byteSize = 10 << 30

func newFormatCommand(a *app) *cobra.Command {
	size := defaultStoreSize
	var device string
	cmd := &cobra.Command{
		Use:   "format STORE",
		Short: "Make a store",
		Long: `Makes a store in the directory STORE, which must be missing or empty. An existing store is never overwritten.

The image is a sparse file: it takes room on the disk as files are written. With --block-device the data goes to a
device instead (everything on it is lost), and --size may leave a part of it unused.`,
		Example: `  vde format /srv/store --size 100G
  vde format /srv/store --block-device /dev/sdb`,
		Args:              exactArgs("STORE"),
		ValidArgsFunction: completeDirs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			ownerOnly()
			options := vde.FormatOptions{Size: uint64(size), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
			if device != "" {
				if options.BlockDevice, err = filepath.Abs(device); err != nil {
					return fmt.Errorf("%s: %w", device, err)
				}
				if !cmd.Flags().Changed("size") {
					options.Size = 0 // all of it
				}
			}
			if uint64(size) > math.MaxInt64 {
				return failf(exitNoSpace, "--size %s: the largest store is 7E", size)
			}
			info, err := vde.Format(dir, options)
			if err != nil {
				return explainFormat(dir, err)
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), info)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "made the store %s: %s, uuid %s\nmount it with: vde mount %s MOUNTPOINT\n", dir, bytesText(info.Size), info.UUID, dir)
			if free, ok := diskFree(dir); ok && device == "" && free < info.Size {
				fmt.Fprintf(cmd.ErrOrStderr(), "vde format: note: the disk under it has %s left, less than the size of the store\n", bytesText(free))
			}
			return nil
		},
	}
	cmd.Flags().Var(&size, "size", "size of the filesystem, like 512M, 10G or 1T; with --block-device the default is all of it")
	cmd.Flags().StringVar(&device, "block-device", "", "keep the data on this device instead of in a file of the store; what is on it is lost")
	must(cmd.RegisterFlagCompletionFunc("size", noCompletions))
	a.addJSONFlag(cmd)
	return cmd
}

// explainFormat gives an error of vde.Format its exit code.
func explainFormat(dir string, err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) {
		return failf(exitPermission, "%s: %w: choose a directory that you may write to", dir, err)
	}
	if errors.Is(err, unix.ENOTDIR) {
		return failf(exitFailure, "%s: %w: a store is a directory", dir, err)
	}
	return err
}

// diskFree tells how many bytes an ordinary user can still write where a path lies.
func diskFree(path string) (uint64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, false
	}
	return st.Bavail * uint64(st.Frsize), true
}

func noCompletions(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}
