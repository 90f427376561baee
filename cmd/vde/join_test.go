package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"vdefs/fs/cluster"
	"vdefs/vde"
)

func format(t *testing.T, node uint64) string {
	t.Helper()
	store := filepath.Join(t.TempDir(), "store")
	if _, err := vde.Format(store, vde.FormatOptions{Size: 1 << 20, NodeID: node}); err != nil {
		t.Fatal(err)
	}
	return store
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The first --listen makes a cluster of one, later ones change it, and without one nothing is made.
func TestPrepareNode(t *testing.T) {
	store := format(t, 0)
	if id, err := prepareNode(store, nodeFlags{}); id != nil || err != nil {
		t.Fatalf("%+v, %v", id, err)
	}
	if _, err := prepareNode(store, nodeFlags{name: "one"}); codeOf(err) != exitUsage {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if _, err := prepareNode(store, nodeFlags{listen: busy.Addr().String()}); codeOf(err) != exitAddress {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(store, cluster.Dir)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("an address that is in use was remembered: %v", err)
	}
	first, second := freeAddr(t), freeAddr(t)
	id, err := prepareNode(store, nodeFlags{listen: first, name: "one"})
	if err != nil || id.Listen != first || id.NodeID != firstNode || !id.Founder {
		t.Fatalf("%+v, %v", id, err)
	}
	for _, flags := range []nodeFlags{{}, {listen: second}, {}} {
		again, err := prepareNode(store, flags)
		if err != nil || again.ClusterID != id.ClusterID || again.Name != "one" {
			t.Fatalf("%+v: %+v, %v", flags, again, err)
		}
		if flags.listen != "" {
			first = second
		}
		if again.Listen != first {
			t.Fatalf("%+v: listens on %s", flags, again.Listen)
		}
	}
}

// A store whose join was interrupted is named for what it is by whoever meets it, and so is a foreign identity.
func TestInterruptedJoin(t *testing.T) {
	store := format(t, 7)
	if _, err := prepareNode(store, nodeFlags{}); codeOf(err) != exitNoCluster || !strings.Contains(err.Error(), "vde join") {
		t.Fatal(err)
	}
	if _, err := prepareNode(store, nodeFlags{listen: freeAddr(t)}); codeOf(err) != exitNoCluster {
		t.Fatal(err)
	}
	options := vde.FormatOptions{Size: 1 << 20}
	if _, _, err := prepareJoin(store, options); codeOf(err) != exitStoreExists || !strings.Contains(err.Error(), "interrupted") {
		t.Fatal(err)
	}
	if _, err := vde.Format(store, options); codeOf(err) != exitStoreExists {
		t.Fatal(err)
	}

	half := t.TempDir() // a crash within Format
	if err := os.WriteFile(filepath.Join(half, "disk.vde"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := prepareJoin(half, options); codeOf(err) != exitStoreExists || !strings.Contains(err.Error(), "disk.vde") {
		t.Fatal(err)
	}

	other := format(t, 0)
	id, err := prepareNode(other, nodeFlags{listen: freeAddr(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Save(store); err != nil {
		t.Fatal(err)
	}
	if _, err := prepareNode(store, nodeFlags{}); codeOf(err) != exitDamaged {
		t.Fatal(err)
	}
}

func TestPrepareJoin(t *testing.T) {
	options := vde.FormatOptions{Size: 1 << 20}
	fresh := filepath.Join(t.TempDir(), "a", "b")
	if made, room, err := prepareJoin(fresh, options); !made || room == 0 || room >= 1<<20 || err != nil {
		t.Fatal(made, room, err)
	}
	if made, _, err := prepareJoin(fresh, options); made || err != nil {
		t.Fatal(made, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir     string
		options vde.FormatOptions
		want    exitCode
	}{
		"a store":         {format(t, 0), options, exitStoreExists},
		"too small":       {fresh, vde.FormatOptions{Size: 1}, exitNoSpace},
		"too large":       {fresh, vde.FormatOptions{Size: 1 << 63}, exitNoSpace},
		"no device":       {fresh, vde.FormatOptions{BlockDevice: file + "x"}, exitFailure},
		"no block device": {fresh, vde.FormatOptions{BlockDevice: file}, exitUsage},
		"a file":          {file, options, exitFailure},
	} {
		if _, _, err := prepareJoin(c.dir, c.options); err == nil || codeOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// joinState admits everybody, as node 2.
type joinState struct{ cluster.State }

func (joinState) Join(_ context.Context, _ [16]byte, _ [32]byte, _ time.Time, n cluster.Node) (cluster.Node, error) {
	n.ID = 2
	return n, nil
}

func (joinState) Need(context.Context) (uint64, error) { return 2 << 20, nil }

func (joinState) Nodes(context.Context) ([]cluster.Node, error) { return nil, nil }

// vde join as a whole, against a node that admits: what it prints, what it makes, and how it ends when it cannot.
func TestJoinVerb(t *testing.T) {
	one := format(t, 0)
	id, err := prepareNode(one, nodeFlags{listen: freeAddr(t), name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := id.NewInvite(time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	expired, _, err := id.NewInvite(time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	store := filepath.Join(parent, "two")
	run := func(in string, args ...string) (string, exitCode) {
		t.Helper()
		root := newRootCommand(newApp())
		root.SetArgs(append([]string{"join"}, args...))
		var out strings.Builder
		root.SetOut(&out)
		root.SetErr(io.Discard)
		root.SetIn(strings.NewReader(in))
		code := codeOf(root.ExecuteContext(t.Context()))
		return out.String(), code
	}
	for _, c := range []struct {
		args []string
		want exitCode
	}{
		{[]string{token.String(), store}, exitUsage},
		{[]string{token.String(), store, "--listen", "here"}, exitUsage},
		{[]string{token.String(), store, "--listen", ":7420"}, exitUsage}, // no address for others
		{[]string{token.String()[:80], store, "--listen", freeAddr(t)}, exitToken},
		{[]string{expired.String(), store, "--listen", freeAddr(t)}, exitExpired},
		{[]string{token.String(), store, "--listen", freeAddr(t)}, exitAddress}, // nobody answers
		{[]string{token.String(), one, "--listen", freeAddr(t)}, exitStoreExists},
	} {
		if _, code := run("", c.args...); code != c.want {
			t.Errorf("%q: %d, want %d", c.args, code, c.want)
		}
		if _, err := os.Stat(store); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%q left something: %v", c.args, err)
		}
	}

	stop := admit(t, id)
	defer stop()
	addr := freeAddr(t)
	if _, code := run("", token.String(), store, "--listen", addr, "--size", "2M"); code != exitNoSpace {
		t.Errorf("a store that is too small for what is in the cluster: %d", code)
	}
	out, code := run(token.String()+"\n", "-", store, "--listen", addr, "--size", "4M", "--name", "two", "--json")
	if code != exitOK {
		t.Fatal(code)
	}
	var report joinReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Node.ID != 2 || time.Since(report.Node.Joined).Abs() > time.Hour {
		t.Errorf("%s: %v", out, err)
	}
	info, err := vde.ReadInfo(nil, store)
	if err != nil || info.NodeID != 2 {
		t.Fatalf("%+v, %v", info, err)
	}
	two, err := prepareNode(store, nodeFlags{})
	if err != nil || two.Config().Self() != (cluster.Node{ID: 2, Name: "two", Addr: addr}) || two.ClusterID != id.ClusterID {
		t.Fatalf("%+v, %v", two, err)
	}
}

func quietLogger() *logrus.Logger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}
