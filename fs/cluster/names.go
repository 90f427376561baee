package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// MaxName is the longest name of a node, in bytes.
const MaxName = 63

// ErrBadName and ErrBadAddr are wrapped by CheckName and CheckAddr.
var (
	ErrBadName = errors.New("not a name for a node")
	ErrBadAddr = errors.New("not an address of a node")
)

// CheckName says what is wrong with a name for a node. It has 1 to 63 letters, digits, dots, underscores and dashes,
// begins with a letter or digit, and is no number: numbers are ids.
func CheckName(name string) error {
	digits := true
	for i := 0; i < len(name); i++ {
		c := name[i]
		digit, letter := c >= '0' && c <= '9', c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !digit && !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return fmt.Errorf("%w: %.80q: use letters, digits, dots, underscores and dashes, and begin with a letter or digit", ErrBadName, name)
		}
		digits = digits && digit
	}
	switch {
	case name == "" || len(name) > MaxName:
		return fmt.Errorf("%w: %.80q has %d characters, allowed are 1 to %d", ErrBadName, name, len(name), MaxName)
	case digits:
		return fmt.Errorf("%w: %q is a number, which is an id", ErrBadName, name)
	}
	return nil
}

// DefaultName makes a name for this machine's node of its host name.
func DefaultName() string {
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	name := strings.Map(func(r rune) rune {
		if CheckName("a"+string(r)) != nil {
			return '-'
		}
		return r
	}, host)
	// Room is left for the number that makes it unique.
	if name = strings.TrimLeft(name, "-_"); len(name) > MaxName-4 {
		name = name[:MaxName-4]
	}
	if CheckName(name) != nil {
		name = strings.TrimRight("node-"+name, "-")
	}
	return name
}

// uniqueName is the n-th name to try for a node that would like to be called name.
func uniqueName(name string, n int) string {
	if n <= 1 {
		return name
	}
	suffix := "-" + strconv.Itoa(n)
	return name[:min(len(name), MaxName-len(suffix))] + suffix
}

// CheckListen says what is wrong with an address to listen on: it is host:port, the host may be empty for all
// addresses of the machine, the port is a number from 1 to 65535.
func CheckListen(addr string) error {
	_, err := splitAddr(addr)
	return err
}

// CheckAddr says what is wrong with an address at which others reach a node: host and port.
func CheckAddr(addr string) error {
	host, err := splitAddr(addr)
	if err != nil {
		return err
	}
	if unspecified(host) {
		return fmt.Errorf("%w: %q names no machine", ErrBadAddr, addr)
	}
	return nil
}

func splitAddr(addr string) (host string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || len(addr) > maxAddr || strings.ContainsFunc(addr, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("%w: %.80q: write HOST:PORT, like 192.0.2.7:7420 or [2001:db8::7]:7420", ErrBadAddr, addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%w: %.80q: the port is a number from 1 to 65535", ErrBadAddr, addr)
	}
	return host, nil
}

// unspecified tells whether a host stands for all addresses of a machine.
func unspecified(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// advertised is the address for others of a node that listens on listen; advertise is what was asked for, or empty.
func advertised(listen, advertise string) (string, error) {
	if err := CheckListen(listen); err != nil {
		return "", err
	}
	if advertise != "" {
		return advertise, CheckAddr(advertise)
	}
	if err := CheckAddr(listen); err != nil {
		return "", fmt.Errorf("%w, so others need another one to reach this node: give --advertise HOST:PORT", err)
	}
	return listen, nil
}
