package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/pkg/xattr"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vdefs/fs/replica"
)

// infoXattr is the attribute, computed by the volume, that tells everything about a file as JSON.
const infoXattr = "user.vde"

func newInfoCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "info PATH",
		Short: "Show where a file lies: inode, group, extents, checksums, PNG",
		Long: `Shows what the filesystem knows about one file or directory in a mount. The facts come from the extended attribute user.vde,
which every file has: getfattr -n user.vde PATH prints the same as JSON.`,
		Args: exactArgs("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := xattr.LGet(args[0], infoXattr)
			if err != nil {
				return explainInfo(args[0], err)
			}
			var info replica.FileInfo
			if err := json.Unmarshal(text, &info); err != nil {
				return fmt.Errorf("%s: the attribute %s is no JSON as expected: is the daemon another version of vde? %w", args[0], infoXattr, err)
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), json.RawMessage(text))
			}
			printInfo(cmd.OutOrStdout(), args[0], info)
			return nil
		},
	}
	a.addJSONFlag(cmd)
	return cmd
}

// explainInfo tells a path that is not there from one that is no file of ours.
func explainInfo(path string, err error) error {
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return failf(exitNotMounted, "%s is no file of a mounted vde filesystem: `vde status` lists those", path)
	}
	var e *xattr.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

// shownExtents is how many extents are printed for people; --json has more.
const shownExtents = 10

func printInfo(w io.Writer, path string, info replica.FileInfo) {
	f := newFacts(w)
	f.add("path", "%s", path)
	f.add("inode", "%d", info.Inode)
	f.add("group", "%s", info.Group)
	f.add("size", "%d bytes in %d blocks (%s)", info.Size, info.Blocks, bytesText(info.Blocks*4096))
	f.add("version", "%d", info.Version)
	f.add("checksums", "%s", info.Checksums)
	if info.PNG != "" {
		f.add("png", "%s", info.PNG)
	}
	f.add("extents", "%d", info.Extents)
	f.flush()
	for i, x := range info.ExtentMap {
		if i == shownExtents {
			fmt.Fprintf(w, "  and %d more: --json lists them\n", info.Extents-shownExtents)
			break
		}
		var notes string
		if x.Unwritten {
			notes += ", not written yet"
		}
		if x.Shared {
			notes += ", shared"
		}
		fmt.Fprintf(w, "  block %d of the file: %d at block %d of the image%s\n", x.FileBlock, x.Count, x.Block, notes)
	}
}
