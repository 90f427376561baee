package main

import (
	"fmt"
	"regexp"

	"github.com/spf13/cobra"
)

// groupName is what a group may be called: its log is a directory of that name.
var groupName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

func checkGroupName(name string) error {
	if !groupName.MatchString(name) {
		return usagef("group name %.80q: use up to 32 small letters, digits, dots, underscores and dashes, and begin with a letter or digit", name)
	}
	return nil
}

func newGroupCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "group",
		Short: "The Raft groups of a cluster: list, add, remove, move-leader",
		Long: `Each file and directory belongs to one Raft group, which has its own log and its own leader: groups spread the work of a cluster over
its nodes. Group "default" has the root directory and the membership, and is always there.

The verbs ask the daemon of the store, which has to run.`,
		Args: noSuchVerb,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newGroupVerb(a, "list STORE", "Show the groups, and who leads them", "GET /groups", "STORE"),
		newGroupVerb(a, "add STORE NAME", "Make a group; a part of the files made from now on goes there", "POST /groups/add", "STORE", "NAME"),
		newGroupVerb(a, "remove STORE NAME", "Take a group away", "POST /groups/remove", "STORE", "NAME"),
		newGroupVerb(a, "move-leader STORE NAME NODE", "Have a node, named by its name or id, lead a group", "POST /groups/move-leader", "STORE", "NAME", "NODE"),
	)
	return cmd
}

// newGroupVerb makes a verb that has the daemon do something about a group and shows the groups afterwards.
func newGroupVerb(a *app, use, short, what string, names ...string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args:              exactArgs(names...),
		ValidArgsFunction: completeDirs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var send any
			var request groupRequest
			if len(args) > 1 {
				request.Name = args[1]
				if err := checkGroupName(request.Name); err != nil {
					return err
				}
			}
			if len(args) > 2 {
				request.Node = args[2]
			}
			if len(args) > 1 {
				send = request
			}
			var report groupsReport
			if err := askCluster(cmd.Context(), args[0], what, send, &report); err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), report)
			}
			var nodes clusterReport
			if err := askCluster(cmd.Context(), args[0], "GET /cluster", nil, &nodes); err != nil {
				return fmt.Errorf("done, but the groups cannot be shown: %w", err)
			}
			printGroups(cmd.OutOrStdout(), report.Groups, nodes.Nodes)
			return nil
		},
	}
	a.addJSONFlag(cmd)
	return cmd
}
