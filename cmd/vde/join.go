package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vdefs/fs/cluster"
	"vdefs/vde"
)

func newJoinCommand(a *app) *cobra.Command {
	size := defaultStoreSize
	var device string
	var flags nodeFlags
	cmd := &cobra.Command{
		Use:   "join TOKEN STORE",
		Short: "Make a store that is a new node of a cluster",
		Long: `Makes a store in the directory STORE, which must be missing or empty, as a new node of the cluster that the token is of: "vde cluster
invite" prints it on any node. The nodes must reach each other: the port of --listen is tried from the other side before anything
is changed. Afterwards "vde mount" or "vde serve" starts the node.

TOKEN may be "-": it is read from standard input then, so that it does not show in the list of processes.`,
		Example: `  vde join vde1-... /srv/store --listen 192.0.2.2:7420 --size 100G
  vde cluster invite /srv/store | ssh other vde join - /srv/store --listen 192.0.2.2:7420`,
		Args: exactArgs("TOKEN", "STORE"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ownerOnly()
			token, err := readToken(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			if flags.listen == "" {
				return usagef("--listen HOST:PORT is missing: the other nodes have to reach this one")
			}
			if err := flags.check(); err != nil {
				return err
			}
			dir, err := filepath.Abs(args[1])
			if err != nil {
				return fmt.Errorf("%s: %w", args[1], err)
			}
			options := vde.FormatOptions{Size: uint64(size), BlockDevice: device, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
			if device != "" {
				if options.BlockDevice, err = filepath.Abs(device); err != nil {
					return fmt.Errorf("%s: %w", device, err)
				}
				if !cmd.Flags().Changed("size") {
					options.Size = 0 // all of it
				}
			}
			made, room, err := prepareJoin(dir, options)
			if err != nil {
				return err
			}
			id, err := cluster.Join(cmd.Context(), token, cluster.JoinOptions{Name: flags.name, Listen: flags.listen, Advertise: flags.advertise, Room: room})
			if err != nil {
				if made {
					os.Remove(dir) // nothing is in it
				}
				return err
			}
			info, err := becomeNode(dir, id, options)
			if err != nil {
				return failf(codeOf(err), "this machine was admitted as node %d, but %w: remove %s here and the node with `vde cluster remove STORE %d` on another, and join again with a new invitation",
					id.NodeID, err, dir, id.NodeID)
			}
			if a.json {
				node := id.Config().Self()
				node.Joined = id.Joined
				return printJSON(cmd.OutOrStdout(), joinReport{Store: dir, UUID: info.UUID, Size: info.Size, Node: node, Peers: id.Peers})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "made the store %s: %s, node %d (%s) of a cluster of %d\nmount it with: vde mount %s MOUNTPOINT\n",
				dir, bytesText(info.Size), id.NodeID, id.Name, len(id.Peers)+1, dir)
			return nil
		},
	}
	cmd.Flags().Var(&size, "size", "size of the filesystem on this node, like 512M, 10G or 1T; with --block-device the default is all of it")
	cmd.Flags().StringVar(&device, "block-device", "", "keep the data on this device instead of in a file of the store; what is on it is lost")
	must(cmd.RegisterFlagCompletionFunc("size", noCompletions))
	flags.add(cmd)
	a.addJSONFlag(cmd)
	return cmd
}

// joinReport is what `vde join --json` prints.
type joinReport struct {
	Store string         `json:"store"`
	UUID  string         `json:"uuid"`
	Size  uint64         `json:"size"`
	Node  cluster.Node   `json:"node"`
	Peers []cluster.Node `json:"peers"`
}

// readToken parses the token of the command line, or of what comes in when that is "-".
func readToken(text string, in io.Reader) (cluster.Token, error) {
	if text == "-" {
		b, err := io.ReadAll(io.LimitReader(in, 4096))
		if err != nil {
			return cluster.Token{}, fmt.Errorf("reading the token from standard input: %w", err)
		}
		text = string(b)
	}
	return cluster.ParseToken(text)
}

// prepareJoin finds out what can be found out before the cluster is asked, which cannot be taken back: whether the store can be
// made, and how many bytes of data blocks it will have. It makes its directory, and tells whether it did.
func prepareJoin(dir string, o vde.FormatOptions) (made bool, room uint64, err error) {
	switch {
	case o.Size > math.MaxInt64:
		return false, 0, failf(exitNoSpace, "--size %d: the largest store is 7E", o.Size)
	case o.BlockDevice == "" && o.Size < vde.MinSize:
		return false, 0, failf(exitNoSpace, "--size %d: the least is %d bytes", o.Size, vde.MinSize)
	}
	if o.BlockDevice != "" {
		if err := unix.Access(o.BlockDevice, unix.R_OK|unix.W_OK); err != nil {
			return false, 0, fmt.Errorf("block device %s: %w", o.BlockDevice, err)
		}
		if info, err := os.Stat(o.BlockDevice); err != nil || info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
			return false, 0, usagef("--block-device %s is no block device", o.BlockDevice)
		}
	}
	if room, err = vde.Room(o); err != nil {
		return false, 0, explainFormat(dir, err)
	}
	names, err := os.ReadDir(dir)
	if err == nil && len(names) > 0 {
		return false, 0, explainNotEmpty(dir, names[0].Name())
	}
	if errors.Is(err, fs.ErrNotExist) {
		made, err = true, os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = unix.Access(dir, unix.W_OK|unix.X_OK)
	}
	if err != nil {
		return made, 0, explainFormat(dir, fmt.Errorf("%s: %w", dir, err))
	}
	return made, room, nil
}

// explainNotEmpty says what is in a directory that a store cannot be made in.
func explainNotEmpty(dir, first string) error {
	info, err := vde.ReadInfo(nil, dir)
	if err == nil {
		if _, err := cluster.Load(dir); errors.Is(err, fs.ErrNotExist) && info.NodeID != firstNode {
			return failf(exitStoreExists, "%w", errInterruptedJoin(dir, info.NodeID))
		}
		return failf(exitStoreExists, "%s holds a store already (node %d): choose another directory; a store that exists cannot join", dir, info.NodeID)
	}
	return failf(exitStoreExists, "%s is not empty (it holds %q): choose another directory, or remove it if it is left from a join that was interrupted", dir, first)
}

// becomeNode makes the store of a node that was admitted. The identity comes last: a store with a node's id and without one is known by
// that for what it is, an interrupted join.
func becomeNode(dir string, id *cluster.Identity, o vde.FormatOptions) (vde.Info, error) {
	o.NodeID = id.NodeID
	info, err := vde.Format(dir, o)
	if err != nil {
		return info, explainFormat(dir, err)
	}
	return info, id.Save(dir)
}
