package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"vdefs/fs/cluster"
	"vdefs/fs/replica"
	"vdefs/vde"
)

// recoverReport is what `vde cluster recover --json` prints.
type recoverReport struct {
	replica.Survivor
	Done bool `json:"done"`
}

func newRecoverCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "recover STORE",
		Short: "Go on with this store alone, when the majority of its cluster is lost for good",
		Long: `For the day when the majority of the nodes is lost for good, with its stores. Makes the store, which must not be mounted or served, a
cluster of one with all that it has, to which new nodes can be invited. What only the lost nodes had is lost: writes that were
acknowledged in the last moments, if this node was behind. Of several survivors take the one that is furthest.

The other nodes are strangers from then on: remove their stores, and have them join again. As long as a majority can still be
started, start it instead.

Without --force it only tells what it would go on with.`,
		Args:              exactArgs("STORE"),
		ValidArgsFunction: completeDirs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRecover(cmd.OutOrStdout(), a, args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "do it")
	a.addJSONFlag(cmd)
	return cmd
}

func runRecover(w io.Writer, a *app, path string, force bool) (err error) {
	store, err := resolvePath(path)
	if err != nil {
		return failf(exitNotAStore, "store %s: %w", path, err)
	}
	if err := checkStore(store); err != nil {
		return err
	}
	// From beginning to end: nobody mounts it between its two halves.
	ownerOnly()
	hold, err := vde.Hold(nil, store)
	if err != nil {
		return explainOpen(store, err)
	}
	defer func() { err = errors.Join(err, hold.Close()) }()
	if _, err := cluster.Load(store); errors.Is(err, fs.ErrNotExist) {
		return failf(exitNoCluster, "store %s is no member of a cluster: it stands alone already", store)
	} else if err != nil {
		return err
	}
	report := recoverReport{Done: force}
	if force {
		log, _, lerr := a.log.newLogger(logrus.WarnLevel, false)
		if lerr != nil {
			return lerr
		}
		report.Survivor, err = replica.GoOnAlone(store, replica.Options{Logger: log, Held: true})
		if err == nil {
			// Last: should this be cut short, the store is alone and still in its former cluster, and it is done again.
			_, err = cluster.Refound(store)
		}
	} else {
		report.Survivor, err = replica.LookAlone(store)
	}
	if err != nil {
		return explainOpen(store, err)
	}
	if a.json {
		err = printJSON(w, report)
	} else {
		printRecover(w, store, &report)
	}
	if err == nil && !force {
		return &codedError{exitQuorum, &silentError{}}
	}
	return err
}

// printRecover tells it to people.
func printRecover(w io.Writer, store string, r *recoverReport) {
	f := newFacts(w)
	fmt.Fprintln(f.w, "GROUP\tVOTERS\tTERM\tLAST ENTRY\tCOMMITTED AT LEAST")
	for _, g := range r.Groups {
		fmt.Fprintf(f.w, "%s\t%s\t%d\t%d\t%d\n", g.Group, strings.Trim(fmt.Sprint(g.Voters), "[]"), g.Term, g.Last, g.Commit)
	}
	f.flush()
	fmt.Fprintln(w)
	if !r.Done {
		fmt.Fprintf(w, "With --force node %d goes on alone with this: the other nodes are forgotten, and what only they have is lost.\n", r.Node)
		return
	}
	for _, m := range r.Lost {
		fmt.Fprintf(w, "node %d, %s at %s, is no member any more: its store must not be used again\n", m.ID, m.Name, m.Addr)
	}
	fmt.Fprintf(w, "store %s is a cluster of one. Mount it, and invite new nodes with `vde cluster invite`.\n", store)
}
