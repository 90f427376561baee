package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// network is a bridge with a namespace for each node behind it.
type network struct {
	t      *testing.T
	prefix string
	size   int
}

func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := run(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// newNetwork makes the namespaces; the addresses are those of this test alone (RFC 5737, TEST-NET-2).
func newNetwork(t *testing.T, size int) *network {
	t.Helper()
	n := &network{t: t, prefix: fmt.Sprintf("vde%d", os.Getpid()%100000), size: size}
	t.Cleanup(n.remove)
	if _, err := run("ip", "link", "add", n.bridge(), "type", "bridge"); err != nil {
		t.Skipf("this machine makes no network namespaces: %v", err)
	}
	must(t, "ip", "link", "set", n.bridge(), "up")
	for i := 1; i <= size; i++ {
		must(t, "ip", "netns", "add", n.ns(i))
		must(t, "ip", "link", "add", n.veth(i), "type", "veth", "peer", "name", "eth0", "netns", n.ns(i))
		must(t, "ip", "link", "set", n.veth(i), "master", n.bridge(), "up")
		must(t, "ip", "-n", n.ns(i), "addr", "add", n.ip(i)+"/24", "dev", "eth0")
		must(t, "ip", "-n", n.ns(i), "link", "set", "eth0", "up")
		must(t, "ip", "-n", n.ns(i), "link", "set", "lo", "up")
	}
	return n
}

func (n *network) bridge() string    { return n.prefix + "b" }
func (n *network) ns(i int) string   { return fmt.Sprintf("%s-%d", n.prefix, i) }
func (n *network) veth(i int) string { return fmt.Sprintf("%sv%d", n.prefix, i) }
func (n *network) ip(i int) string   { return fmt.Sprintf("198.51.100.%d", i) }
func (n *network) addr(i int) string { return n.ip(i) + ":7000" }

func (n *network) remove() {
	for i := 1; i <= n.size; i++ {
		_, _ = run("ip", "link", "del", n.veth(i))
		_, _ = run("ip", "netns", "del", n.ns(i))
	}
	_, _ = run("ip", "link", "del", n.bridge())
}

// cut takes a node off the network, heal brings it back.
func (n *network) cut(i int) error {
	_, err := run("ip", "link", "set", n.veth(i), "down")
	return err
}

func (n *network) heal(i int) error {
	_, err := run("ip", "link", "set", n.veth(i), "up")
	return err
}

// mute keeps a node from sending to another one, which it still hears; unmute ends that.
func (n *network) mute(from, to int) error {
	_, err := run("ip", "-n", n.ns(from), "route", "add", "blackhole", n.ip(to)+"/32")
	return err
}

func (n *network) unmute(from, to int) error {
	_, err := run("ip", "-n", n.ns(from), "route", "del", "blackhole", n.ip(to)+"/32")
	return err
}
