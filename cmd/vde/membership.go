package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"vdefs/fs/cluster"
)

// The part of the control socket that is about the cluster: see control.go.

// How long the daemon waits for the cluster. Taking a node out of groups, or adding a group, is several entries in several logs.
const (
	askTimeout    = 10 * time.Second
	changeTimeout = 60 * time.Second
)

// clusterReport is what `vde cluster status --json` prints. Fields are added, never renamed.
type clusterReport struct {
	Cluster string `json:"cluster"` // its id, 32 hexadecimal digits
	Node    uint64 `json:"node"`    // the one that was asked
	Name    string `json:"name"`
	Listen  string `json:"listen"`
	// Majority tells that the cluster answered. Without, Nodes are those that this node knew of when it joined.
	Majority bool            `json:"majority"`
	Error    string          `json:"error,omitempty"` // why not
	Nodes    []cluster.Node  `json:"nodes"`
	Groups   []cluster.Group `json:"groups"`
}

type inviteRequest struct {
	ExpiresSeconds int64 `json:"expires_seconds"`
}

// inviteReport is what `vde cluster invite --json` prints.
type inviteReport struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	Addr    string    `json:"addr"` // where the new node will ask
}

type removeRequest struct {
	Node  string `json:"node"` // name or id
	Force bool   `json:"force"`
}

// removeReport is what `vde cluster remove --json` prints.
type removeReport struct {
	Removed cluster.Node `json:"removed"`
}

type groupRequest struct {
	Name string `json:"name"`
	Node string `json:"node,omitempty"` // of move-leader: name or id
}

// groupsReport is what the verbs of `vde group` print with --json.
type groupsReport struct {
	Groups []cluster.Group `json:"groups"`
}

// addClusterHandlers adds the endpoints.
func (d *daemon) addClusterHandlers(mux *http.ServeMux) {
	mux.HandleFunc("GET /cluster", clusterHandler(d, askTimeout, d.clusterReport))
	mux.HandleFunc("POST /cluster/invite", clusterHandler(d, askTimeout, d.invite))
	mux.HandleFunc("POST /cluster/remove", clusterHandler(d, changeTimeout, d.removeNode))
	mux.HandleFunc("GET /groups", clusterHandler(d, askTimeout, d.groupsReport))
	mux.HandleFunc("POST /groups/add", clusterHandler(d, changeTimeout, d.addGroup))
	mux.HandleFunc("POST /groups/remove", clusterHandler(d, changeTimeout, d.removeGroup))
	mux.HandleFunc("POST /groups/move-leader", clusterHandler(d, changeTimeout, d.moveLeader))
}

// clusterHandler makes a handler of a function from a request, as JSON in the body, to an answer.
func clusterHandler[Q, A any](d *daemon, timeout time.Duration, do func(context.Context, cluster.State, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var request Q
		if r.Method != http.MethodGet {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
			if err == nil {
				err = json.Unmarshal(body, &request)
			}
			if err != nil {
				writeFailure(w, http.StatusBadRequest, usagef("the body of the request: %w", err))
				return
			}
		}
		// The volume is not closed while it is asked.
		d.volumeMu.RLock()
		defer d.volumeMu.RUnlock()
		var state cluster.State
		if !d.volumeClosed {
			state = d.clusterOf()
		}
		if state == nil {
			writeFailure(w, http.StatusConflict, failf(exitNoCluster, "store %s is no member of a cluster: mount or serve it with --listen HOST:PORT to make it the first one", d.cfg.Store))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		defer context.AfterFunc(d.running, cancel)() // nor does closing it wait for a cluster that does not answer
		began := time.Now()
		answer, err := do(ctx, state, request)
		if err != nil {
			// What is done in several steps may have given up before its time was over.
			if errors.Is(err, context.DeadlineExceeded) {
				err = failf(exitQuorum, "the cluster did not answer within %v: does a majority of its nodes run? `vde cluster status` tells (%w)", waited(began), err)
			}
			writeFailure(w, http.StatusConflict, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// waited tells for how long, as people say it.
func waited(began time.Time) time.Duration {
	d := time.Since(began)
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

// nothing is the request of a GET.
type nothing struct{}

func (d *daemon) clusterReport(ctx context.Context, state cluster.State, _ nothing) (clusterReport, error) {
	id := d.identity
	report := clusterReport{Cluster: hex.EncodeToString(id.ClusterID[:]), Node: id.NodeID, Name: id.Name, Listen: id.Listen}
	// Half the time is for the groups, which are known without a majority.
	ask, cancel := context.WithTimeout(ctx, askTimeout/2)
	defer cancel()
	nodes, err := state.Nodes(ask)
	if errors.Is(err, cluster.ErrRemoved) {
		return report, err
	}
	if report.Nodes, report.Majority = nodes, err == nil; err != nil {
		report.Error = oneLine(err.Error())
		report.Nodes = append([]cluster.Node{id.Config().Self()}, id.Peers...)
	}
	groups, err := state.Groups(ctx)
	report.Groups = orEmpty(groups)
	return report, err
}

func (d *daemon) invite(ctx context.Context, state cluster.State, q inviteRequest) (inviteReport, error) {
	life := time.Duration(q.ExpiresSeconds) * time.Second
	if q.ExpiresSeconds < 1 || q.ExpiresSeconds > int64(longestInvite/time.Second) {
		return inviteReport{}, usagef("an invitation holds from 1s to %v, not %d seconds", longestInvite, q.ExpiresSeconds)
	}
	token, invite, err := d.identity.NewInvite(time.Now().Add(life))
	if err != nil {
		return inviteReport{}, err
	}
	if err := state.PutInvite(ctx, invite); err != nil {
		return inviteReport{}, err
	}
	return inviteReport{Token: token.String(), Expires: token.Expires, Addr: token.Addr}, nil
}

func (d *daemon) removeNode(ctx context.Context, state cluster.State, q removeRequest) (removeReport, error) {
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	nodes, err := state.Nodes(ask)
	if err != nil && !q.Force {
		return removeReport{}, err
	}
	if err != nil { // those that it knew of when it joined have to do
		nodes = append([]cluster.Node{d.identity.Config().Self()}, d.identity.Peers...)
	}
	node, err := findNode(nodes, q.Node)
	if err != nil {
		return removeReport{}, err
	}
	if len(nodes) == 1 {
		return removeReport{}, failf(exitQuorum, "node %q is the only one: a cluster without nodes is none; to get rid of it, stop it and remove its store", node.Name)
	}
	err = state.Remove(ctx, node.ID, q.Force)
	if errors.Is(err, cluster.ErrQuorum) {
		err = failf(exitQuorum, "node %q (%d) is not removed: %w. Without it the cluster stands still until enough of the others run again, "+
			"and if they never do, what they alone had is lost: start the others first, or remove it all the same with --force", node.Name, node.ID, err)
	}
	if err == nil {
		d.log.WithField("node", node.ID).WithField("name", node.Name).Info("a node was removed from the cluster")
	}
	return removeReport{node}, err
}

// findNode finds a node by its name or id.
func findNode(nodes []cluster.Node, want string) (cluster.Node, error) {
	id, _ := strconv.ParseUint(want, 10, 64)
	for _, n := range nodes {
		if n.Name == want || id != 0 && n.ID == id {
			return n, nil
		}
	}
	return cluster.Node{}, fmt.Errorf("%w: %q; `vde cluster status` lists them", cluster.ErrUnknownNode, want)
}

func (d *daemon) groupsReport(ctx context.Context, state cluster.State, _ nothing) (groupsReport, error) {
	groups, err := state.Groups(ctx)
	return groupsReport{orEmpty(groups)}, err
}

func (d *daemon) addGroup(ctx context.Context, state cluster.State, q groupRequest) (groupsReport, error) {
	if err := checkGroupName(q.Name); err != nil {
		return groupsReport{}, err
	}
	if err := state.AddGroup(ctx, q.Name); err != nil {
		return groupsReport{}, fmt.Errorf("group %q: %w", q.Name, err)
	}
	return d.groupsReport(ctx, state, nothing{})
}

func (d *daemon) removeGroup(ctx context.Context, state cluster.State, q groupRequest) (groupsReport, error) {
	if err := state.RemoveGroup(ctx, q.Name); err != nil {
		return groupsReport{}, fmt.Errorf("group %q: %w", q.Name, err)
	}
	return d.groupsReport(ctx, state, nothing{})
}

func (d *daemon) moveLeader(ctx context.Context, state cluster.State, q groupRequest) (groupsReport, error) {
	nodes, err := state.Nodes(ctx)
	if err != nil {
		return groupsReport{}, err
	}
	node, err := findNode(nodes, q.Node)
	if err != nil {
		return groupsReport{}, err
	}
	if err := state.MoveLeader(ctx, q.Name, node.ID); err != nil {
		return groupsReport{}, fmt.Errorf("group %q, node %q: %w", q.Name, node.Name, err)
	}
	return d.groupsReport(ctx, state, nothing{})
}

// orEmpty has JSON say [] for a list without members.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
