package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vdefs/fs/cluster"
)

// longestInvite is how long an invitation may hold: a secret that lies about gets lost.
const longestInvite = 30 * 24 * time.Hour

func newClusterCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Several machines with one filesystem: invite, status, remove, recover",
		Long: `A store that is mounted or served with --listen HOST:PORT is a cluster of one. Others join it:

  vde mount /srv/store /mnt --listen 192.0.2.1:7420             the first node
  vde cluster invite /srv/store                                 prints a token
  vde join TOKEN /srv/store --listen 192.0.2.2:7420             on the next machine
  vde mount /srv/store /mnt                                     there, too

The verbs ask the daemon of the store, which has to run.`,
		Args: noSuchVerb,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newInviteCommand(a), newClusterStatusCommand(a), newRemoveCommand(a), newRecoverCommand(a))
	return cmd
}

func newInviteCommand(a *app) *cobra.Command {
	life := time.Hour
	cmd := &cobra.Command{
		Use:   "invite STORE",
		Short: "Print a token by which one machine can join, once",
		Long: `Prints a token for "vde join" on another machine. It is good for one machine, until it expires. Whoever has it may join: give it
to nobody else, and send it over a channel that you trust.`,
		Example:           `  vde cluster invite /srv/store --expires 10m`,
		Args:              exactArgs("STORE"),
		ValidArgsFunction: completeDirs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if life < time.Second || life > longestInvite {
				return usagef("--expires %v: an invitation holds from 1s to %v", life, longestInvite)
			}
			var report inviteReport
			if err := askCluster(cmd.Context(), args[0], "POST /cluster/invite", inviteRequest{int64(life.Seconds())}, &report); err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), report)
			}
			// The token alone on standard output, so that scripts can take it.
			fmt.Fprintln(cmd.OutOrStdout(), report.Token)
			fmt.Fprintf(cmd.ErrOrStderr(), "It lets one machine join until %s. There:\n  vde join TOKEN STORE --listen HOST:PORT --size 10G\n",
				report.Expires.Local().Format("2006-01-02 15:04:05"))
			return nil
		},
	}
	cmd.Flags().DurationVar(&life, "expires", life, "how long the token holds, like 10m or 24h")
	must(cmd.RegisterFlagCompletionFunc("expires", noCompletions))
	a.addJSONFlag(cmd)
	return cmd
}

func newClusterStatusCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status STORE|MOUNTPOINT",
		Short: "Show the nodes of the cluster, its groups, and who leads",
		Long: fmt.Sprintf(`Shows the nodes of the cluster and its groups, as the node of this store knows them. When no majority of the nodes answers it shows
what this node knows by itself, and ends with exit code %d.`, exitQuorum),
		Args:              exactArgs("STORE"),
		ValidArgsFunction: completeMountpoints,
		RunE: func(cmd *cobra.Command, args []string) error {
			var report clusterReport
			err := askCluster(cmd.Context(), args[0], "GET /cluster", nil, &report)
			if err == nil && a.json {
				err = printJSON(cmd.OutOrStdout(), report)
			} else if err == nil {
				printCluster(cmd.OutOrStdout(), report)
			}
			if err == nil && !report.Majority {
				return &codedError{exitQuorum, &silentError{}}
			}
			return err
		},
	}
	a.addJSONFlag(cmd)
	return cmd
}

func newRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove STORE NODE",
		Short: "Take a node, named by its name or id, out of the cluster",
		Long: `Takes a node out of all groups and out of the cluster. Its data is on the others; its store is kept and is no part of the cluster any
more. This is refused when too few of the others run to go on without it; with --force it is done all the same.

A node that was removed still has the key with which nodes admit others: if somebody else has got hold of that machine, make a
new cluster.`,
		Args:              exactArgs("STORE", "NODE"),
		ValidArgsFunction: completeDirs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var report removeReport
			if err := askCluster(cmd.Context(), args[0], "POST /cluster/remove", removeRequest{args[1], force}, &report); err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), report)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "node %d, %s at %s, is no part of the cluster any more\n", report.Removed.ID, report.Removed.Name, report.Removed.Addr)
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when the others are no majority: the cluster may stand still, and what only lost nodes had is lost")
	a.addJSONFlag(cmd)
	return cmd
}

// askCluster has the daemon of a store, which is named by its directory or its mount point, do something. what is a method and a path.
func askCluster(ctx context.Context, path, what string, request, result any) error {
	store, err := storeOf(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout+askTimeout)
	defer cancel()
	method, endpoint, _ := strings.Cut(what, " ")
	err = newControlClient(store).call(ctx, method, endpoint, request, result)
	if errors.Is(err, errNoDaemon) {
		if err := checkStore(store); err != nil {
			return err
		}
		return failf(exitNotMounted, "no daemon serves store %s: start it with `vde mount` or `vde serve`", store)
	}
	return err
}

// storeOf finds a store by its directory or its mount point.
func storeOf(path string) (string, error) {
	if mount, err := findMount(path); err == nil {
		return mount.Source, nil
	}
	store, err := resolvePath(path)
	if err != nil {
		return "", failf(exitNotAStore, "store %s: %w", path, err)
	}
	return store, nil
}

// printCluster shows a cluster for people.
func printCluster(w io.Writer, r clusterReport) {
	f := newFacts(w)
	f.add("cluster", "%s", r.Cluster)
	f.add("this node", "%d, %s, listening on %s", r.Node, r.Name, r.Listen)
	if !r.Majority {
		f.add("NO MAJORITY", "%s", r.Error)
	}
	f.flush()
	fmt.Fprintln(w)
	f = newFacts(w)
	fmt.Fprintln(f.w, "NODE\tNAME\tADDRESS\tJOINED\tLEADS\tVOTES IN")
	for _, n := range r.Nodes {
		var leads, votes []string
		for _, g := range r.Groups {
			if g.Leader == n.ID {
				leads = append(leads, g.Name)
			}
			if slices.Contains(g.Voters, n.ID) {
				votes = append(votes, g.Name)
			}
		}
		fmt.Fprintf(f.w, "%d\t%s\t%s\t%s\t%s\t%s\n", n.ID, n.Name, n.Addr, joinedText(n.Joined), dashIfNone(leads), dashIfNone(votes))
	}
	f.flush()
	fmt.Fprintln(w)
	printGroups(w, r.Groups, r.Nodes)
}

// printGroups shows groups for people; the nodes are for their names.
func printGroups(w io.Writer, groups []cluster.Group, nodes []cluster.Node) {
	name := func(id uint64) string {
		for _, n := range nodes {
			if n.ID == id {
				return n.Name
			}
		}
		return fmt.Sprint(id)
	}
	f := newFacts(w)
	fmt.Fprintln(f.w, "GROUP\tLEADER\tVOTERS\tLEARNERS\tPROGRESS")
	for _, g := range groups {
		leader := "none"
		if g.Leader != 0 {
			leader = name(g.Leader)
		}
		var voters, learners, progress []string
		for _, v := range g.Voters {
			voters = append(voters, name(v))
		}
		for _, l := range g.Learners {
			learners = append(learners, name(l))
		}
		for _, n := range g.Nodes {
			text := fmt.Sprintf("%s %s", name(n.Node), n.State)
			if n.Match > 0 {
				text += fmt.Sprintf(" %d", n.Match)
			}
			progress = append(progress, text)
		}
		fmt.Fprintf(f.w, "%s\t%s\t%s\t%s\t%s\n", g.Name, leader, dashIfNone(voters), dashIfNone(learners), strings.Join(progress, "; "))
	}
	f.flush()
}

func dashIfNone(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}

func joinedText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}
