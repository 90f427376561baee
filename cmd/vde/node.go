package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vdefs/fs/cluster"
	"vdefs/vde"
)

// nodeFlags are what mount, serve and join are told about the node's place in a cluster; empty: as it is remembered.
type nodeFlags struct{ listen, advertise, name string }

func (n *nodeFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&n.listen, "listen", "", "HOST:PORT to listen on for the other nodes of the cluster; it is remembered in the store")
	flags.StringVar(&n.advertise, "advertise", "", "HOST:PORT at which the others reach this node, if that is another one than it listens on; remembered")
	flags.StringVar(&n.name, "name", "", "name of this node in the cluster (default: the host's, made unique); remembered")
	for _, f := range []string{"listen", "advertise", "name"} {
		must(cmd.RegisterFlagCompletionFunc(f, noCompletions))
	}
}

// args are the flags of a daemon that is told the same.
func (n nodeFlags) args() []string {
	return []string{"--listen=" + n.listen, "--advertise=" + n.advertise, "--name=" + n.name}
}

// check refuses what cannot be right, before anything is started.
func (n nodeFlags) check() error {
	if n.listen != "" {
		if err := cluster.CheckListen(n.listen); err != nil {
			return usagef("--listen: %w", err)
		}
	}
	if n.advertise != "" {
		if err := cluster.CheckAddr(n.advertise); err != nil {
			return usagef("--advertise: %w", err)
		}
	}
	if n.name != "" {
		if err := cluster.CheckName(n.name); err != nil {
			return usagef("--name: %w", err)
		}
	}
	return nil
}

// clusterErrors maps what fs/cluster says to exit codes.
var clusterErrors = []codeOfError{
	{cluster.ErrToken, exitToken},
	{cluster.ErrInviteExpired, exitExpired},
	{cluster.ErrInviteUsed, exitUsedInvite},
	{cluster.ErrInviteUnknown, exitUsedInvite},
	{cluster.ErrWrongSecret, exitOtherCluster},
	{cluster.ErrOtherCluster, exitOtherCluster},
	{cluster.ErrNameTaken, exitTaken},
	{cluster.ErrAddrTaken, exitTaken},
	{cluster.ErrGroupExists, exitTaken},
	{cluster.ErrClock, exitClock},
	{cluster.ErrNoRoom, exitNoSpace},
	{cluster.ErrRemoved, exitNoCluster},
	{cluster.ErrUnreachable, exitAddress},
	{cluster.ErrCannotListen, exitAddress},
	{unix.EADDRINUSE, exitAddress},
	{unix.EADDRNOTAVAIL, exitAddress},
	{cluster.ErrBadName, exitUsage},
	{cluster.ErrBadAddr, exitUsage},
	{cluster.ErrQuorum, exitQuorum},
	{cluster.ErrUnknownNode, exitUnknown},
	{cluster.ErrUnknownGroup, exitUnknown},
	{cluster.ErrDamaged, exitDamaged},
}

// firstNode is the id of the node that makes a cluster, which is what vde format gives a store. Others are given theirs.
const firstNode = 1

// errInterruptedJoin says what a store is that joined without getting to know it.
func errInterruptedJoin(store string, node uint64) error {
	return failf(exitNoCluster, "store %s was being made by `vde join`, as node %d of a cluster, when that was interrupted: remove the directory, "+
		"remove the node with `vde cluster remove` on another one, and join again with a new invitation", store, node)
}

// prepareNode finds out who the store is in its cluster, notes what the flags change, and makes a cluster of one if there is none and
// an address to listen on is given. nil: the store is no member of a cluster. The caller holds the store.
func prepareNode(store string, flags nodeFlags) (*cluster.Identity, error) {
	info, err := vde.ReadInfo(nil, store)
	if err != nil {
		return nil, explainOpen(store, err)
	}
	id, err := cluster.Load(store)
	switch {
	case errors.Is(err, fs.ErrNotExist) && info.NodeID != firstNode:
		return nil, errInterruptedJoin(store, info.NodeID)
	case errors.Is(err, fs.ErrNotExist):
		return foundCluster(store, info.NodeID, flags)
	case err != nil:
		return nil, err
	case id.NodeID != info.NodeID:
		return nil, failf(exitDamaged, "store %s is of node %d, its cluster directory of node %d: one of them was copied from another store", store, info.NodeID, id.NodeID)
	}
	if flags.listen != "" && flags.listen != id.Listen {
		if err := canListen(flags.listen); err != nil {
			return nil, err
		}
	}
	_, err = id.Update(store, flags.name, flags.listen, flags.advertise)
	return id, err
}

// foundCluster makes a cluster of one, if it is told an address.
func foundCluster(store string, node uint64, flags nodeFlags) (*cluster.Identity, error) {
	if flags.listen == "" {
		if flags != (nodeFlags{}) {
			return nil, usagef("--advertise and --name are for a member of a cluster, which store %s is not: give --listen HOST:PORT to make it one", store)
		}
		return nil, nil
	}
	if err := canListen(flags.listen); err != nil {
		return nil, err
	}
	return cluster.Create(store, cluster.CreateOptions{NodeID: node, Name: flags.name, Listen: flags.listen, Advertise: flags.advertise})
}

// canListen refuses an address that this machine cannot listen on, before it is remembered.
func canListen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return failf(exitAddress, "--listen %s: %w", address, err)
	}
	return l.Close()
}

// joinDoor admits new nodes, once there is somebody to ask. Until then, and again at the end, it is shut.
type joinDoor struct {
	server atomic.Pointer[cluster.JoinServer]
}

// serve is cluster.Config.OnJoin.
func (d *joinDoor) serve(conn net.Conn) {
	if s := d.server.Load(); s != nil {
		s.Serve(conn)
	}
}

// openDoor lets the node admit others.
func (d *daemon) openDoor(ctx context.Context) {
	if state := d.clusterOf(); state != nil {
		d.door.server.Store(&cluster.JoinServer{Identity: d.identity, State: state, Logger: d.log, Context: ctx})
	}
}

// announceTimeout is how long a start waits for the cluster to note a changed name or address; later it is tried on.
const announceTimeout = 5 * time.Second

// announce has the cluster know this node's name and address. An error is one that nothing but other flags helps against.
func (d *daemon) announce(ctx context.Context) error {
	state := d.clusterOf()
	if state == nil {
		return nil
	}
	self := d.identity.Config().Self()
	try := func() error {
		ctx, cancel := context.WithTimeout(ctx, announceTimeout)
		defer cancel()
		nodes, err := state.Nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.ID == self.ID && n.Name == self.Name && n.Addr == self.Addr {
				return nil
			}
		}
		return state.PutSelf(ctx, self)
	}
	err := try()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cluster.ErrNameTaken):
		return failf(exitTaken, "this node cannot be called %q: %w; choose another with --name", self.Name, err)
	case errors.Is(err, cluster.ErrAddrTaken):
		return failf(exitTaken, "this node cannot be at %s: %w; choose another with --listen or --advertise", self.Addr, err)
	case errors.Is(err, cluster.ErrUnknownNode):
		return fmt.Errorf("%w: what its store %s has is kept, but no part of the cluster any more", cluster.ErrRemoved, d.cfg.Store)
	}
	d.log.WithError(err).Warn("the cluster does not answer: this node's name and address are told later")
	d.background.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(announceTimeout):
			}
			if err := try(); err == nil {
				return
			} else if ctx.Err() == nil {
				d.log.WithError(err).Debug("telling the cluster this node's name and address")
			}
		}
	})
	return nil
}

// nodeFields are what the log says of a node.
func nodeFields(id *cluster.Identity) logrus.Fields {
	return logrus.Fields{"node": id.NodeID, "name": id.Name, "listen": id.Listen, "advertise": id.Config().Advertise}
}
