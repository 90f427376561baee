package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vdefs/consensus/transport"
	"vdefs/fs/cluster"
)

// admit listens for nodes that join, as the node of an identity.
func admit(t *testing.T, id *cluster.Identity) (stop func()) {
	t.Helper()
	server := &cluster.JoinServer{Identity: id, State: joinState{}, Logger: quietLogger()}
	c := id.Config()
	tr, err := transport.ListenTCP(transport.TCPConfig{ID: c.NodeID, Cluster: c.ClusterID, Listen: c.Listen, TLS: c.TLS, Join: server.Serve})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Start(nil); err != nil {
		t.Fatal(err)
	}
	return func() { tr.Close() }
}

// threeNodes is a membership of three nodes with one group.
type threeNodes struct {
	cluster.State
	err     error // of everything that needs a majority
	hang    bool  // instead: it waits
	invited []cluster.Invite
	removed []uint64
	forced  bool
	groups  []string
	leader  uint64
}

func (s *threeNodes) ask(ctx context.Context) error {
	if s.hang {
		<-ctx.Done()
		return fmt.Errorf("waiting: %w", ctx.Err())
	}
	return s.err
}

func (s *threeNodes) Nodes(ctx context.Context) ([]cluster.Node, error) {
	return []cluster.Node{{ID: 1, Name: "one", Addr: "a:1"}, {ID: 2, Name: "two", Addr: "b:1"}, {ID: 3, Name: "three", Addr: "c:1"}}, s.ask(ctx)
}

func (s *threeNodes) PutInvite(ctx context.Context, i cluster.Invite) error {
	s.invited = append(s.invited, i)
	return s.ask(ctx)
}

func (s *threeNodes) Remove(_ context.Context, id uint64, force bool) error {
	if id == 3 && !force {
		return fmt.Errorf("%w: node 2 does not answer", cluster.ErrQuorum)
	}
	s.removed, s.forced = append(s.removed, id), force
	return nil
}

func (s *threeNodes) Groups(context.Context) ([]cluster.Group, error) {
	list := []cluster.Group{{Name: "default", Leader: s.leader, Voters: []uint64{1, 2, 3}}}
	for _, name := range s.groups {
		list = append(list, cluster.Group{Name: name})
	}
	return list, nil
}

func (s *threeNodes) AddGroup(_ context.Context, name string) error {
	if slices.Contains(s.groups, name) {
		return cluster.ErrGroupExists
	}
	s.groups = append(s.groups, name)
	return nil
}

func (s *threeNodes) RemoveGroup(_ context.Context, name string) error {
	if !slices.Contains(s.groups, name) {
		return cluster.ErrUnknownGroup
	}
	return nil
}

func (s *threeNodes) MoveLeader(_ context.Context, _ string, node uint64) error {
	s.leader = node
	return nil
}

// clusterDaemon is a daemon whose cluster is state.
func clusterDaemon(t *testing.T, state cluster.State) (*daemon, *http.ServeMux) {
	t.Helper()
	store := format(t, 0)
	id, err := prepareNode(store, nodeFlags{listen: freeAddr(t), name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cfg: mountConfig{Store: store}, log: quietLogger(), identity: id, running: t.Context()}
	d.clusterOf = func() cluster.State { return state }
	mux := http.NewServeMux()
	d.addClusterHandlers(mux)
	return d, mux
}

// ask does a request and returns the answer, or its exit code.
func ask(t *testing.T, mux *http.ServeMux, what, body string, answer any) exitCode {
	t.Helper()
	method, path, _ := strings.Cut(what, " ")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	if w.Code >= 400 {
		var failure controlError
		if err := json.Unmarshal(w.Body.Bytes(), &failure); err != nil || failure.Message == "" {
			t.Fatalf("%s: %s: %v", what, w.Body, err)
		}
		return failure.Code
	}
	if err := json.Unmarshal(w.Body.Bytes(), answer); err != nil {
		t.Fatalf("%s: %s: %v", what, w.Body, err)
	}
	return exitOK
}

func TestClusterEndpoints(t *testing.T) {
	s := &threeNodes{leader: 1}
	d, mux := clusterDaemon(t, s)
	var report clusterReport
	if code := ask(t, mux, "GET /cluster", "", &report); code != exitOK || !report.Majority || len(report.Nodes) != 3 || report.Node != 1 || len(report.Cluster) != 32 {
		t.Fatalf("%d, %+v", code, report)
	}
	var out strings.Builder
	printCluster(&out, report)
	if !strings.Contains(out.String(), "one,two,three") || strings.Contains(out.String(), "NO MAJORITY") {
		t.Error(out.String())
	}

	var invite inviteReport
	if code := ask(t, mux, "POST /cluster/invite", `{"expires_seconds":60}`, &invite); code != exitOK {
		t.Fatal(code)
	}
	token, err := cluster.ParseToken(invite.Token)
	if err != nil || token.Addr != d.identity.Listen || len(s.invited) != 1 || s.invited[0].SecretHash != cluster.HashSecret(token.Secret) || time.Until(token.Expires) > time.Minute {
		t.Fatalf("%+v, %v", token, err)
	}

	var removed removeReport
	var groups groupsReport
	for _, c := range []struct {
		what, body string
		answer     any
		want       exitCode
	}{
		{"POST /cluster/invite", `{"expires_seconds":0}`, &invite, exitUsage},
		{"POST /cluster/invite", `{"expires_seconds":99999999}`, &invite, exitUsage},
		{"POST /cluster/invite", `no JSON`, &invite, exitUsage},
		{"POST /cluster/remove", `{"node":"four"}`, &removed, exitUnknown},
		{"POST /cluster/remove", `{"node":"0"}`, &removed, exitUnknown},
		{"POST /cluster/remove", `{"node":"three"}`, &removed, exitQuorum},
		{"POST /cluster/remove", `{"node":"three","force":true}`, &removed, exitOK},
		{"POST /cluster/remove", `{"node":"2"}`, &removed, exitOK},
		{"GET /groups", "", &groups, exitOK},
		{"POST /groups/add", `{"name":"g1"}`, &groups, exitOK},
		{"POST /groups/add", `{"name":"g1"}`, &groups, exitTaken},
		{"POST /groups/add", `{"name":"../g"}`, &groups, exitUsage},
		{"POST /groups/remove", `{"name":"g2"}`, &groups, exitUnknown},
		{"POST /groups/move-leader", `{"name":"default","node":"two"}`, &groups, exitOK},
		{"POST /groups/move-leader", `{"name":"default","node":"four"}`, &groups, exitUnknown},
	} {
		if code := ask(t, mux, c.what, c.body, c.answer); code != c.want {
			t.Errorf("%s %s: %d, want %d", c.what, c.body, code, c.want)
		}
	}
	if !slices.Equal(s.removed, []uint64{3, 2}) || removed.Removed.Name != "two" || len(groups.Groups) != 2 || groups.Groups[0].Leader != 2 {
		t.Errorf("removed %v, %+v, groups %+v", s.removed, removed, groups)
	}
}

// Without a majority the daemon tells what it knows by itself, and a removal by force is tried all the same.
func TestNoMajority(t *testing.T) {
	s := &threeNodes{err: fmt.Errorf("nobody answers: %w", context.DeadlineExceeded)}
	d, mux := clusterDaemon(t, s)
	d.identity.Peers = []cluster.Node{{ID: 2, Name: "two"}}
	var report clusterReport
	if code := ask(t, mux, "GET /cluster", "", &report); code != exitOK || report.Majority || report.Error == "" || len(report.Nodes) != 2 || len(report.Groups) != 1 {
		t.Fatalf("%d, %+v", code, report)
	}
	var out strings.Builder
	printCluster(&out, report)
	if !strings.Contains(out.String(), "NO MAJORITY") || !strings.Contains(out.String(), "none") {
		t.Error(out.String())
	}
	var removed removeReport
	if code := ask(t, mux, "POST /cluster/remove", `{"node":"two"}`, &removed); code != exitQuorum {
		t.Error(code)
	}
	if code := ask(t, mux, "POST /cluster/remove", `{"node":"two","force":true}`, &removed); code != exitOK || !s.forced {
		t.Error(code)
	}
	if code := ask(t, mux, "POST /cluster/invite", `{"expires_seconds":60}`, &inviteReport{}); code != exitQuorum {
		t.Error(code)
	}
}

// Who gave up early does not say that he waited for the whole time.
func TestNoAnswerTellsTheTime(t *testing.T) {
	_, mux := clusterDaemon(t, &threeNodes{err: fmt.Errorf("nobody answers: %w", context.DeadlineExceeded)})
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("POST", "/cluster/invite", strings.NewReader(`{"expires_seconds":60}`)))
	if body := w.Body.String(); !strings.Contains(body, "did not answer within") || strings.Contains(body, askTimeout.String()) {
		t.Error(body)
	}
}

// A store that is no member says so, and a daemon that ends does not wait for its cluster.
func TestClusterEndpointsEnd(t *testing.T) {
	_, mux := clusterDaemon(t, nil)
	if code := ask(t, mux, "GET /cluster", "", nil); code != exitNoCluster {
		t.Error(code)
	}
	d, mux := clusterDaemon(t, &threeNodes{hang: true})
	running, stop := context.WithCancel(t.Context())
	d.running = running
	time.AfterFunc(10*time.Millisecond, stop)
	began := time.Now()
	if code := ask(t, mux, "POST /cluster/invite", `{"expires_seconds":60}`, &inviteReport{}); code == exitOK || time.Since(began) > askTimeout/2 {
		t.Errorf("%d after %v", code, time.Since(began))
	}
}

// Every endpoint is described where the others are.
func TestClusterEndpointsAreDescribed(t *testing.T) {
	text, err := os.ReadFile("control.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/cluster", "/cluster/invite", "/cluster/remove", "/groups", "/groups/add", "/groups/remove", "/groups/move-leader"} {
		if !strings.Contains(string(text), path) {
			t.Errorf("control.go does not say what %s does", path)
		}
	}
}
