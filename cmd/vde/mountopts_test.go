package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseMountOptions(t *testing.T) {
	root := defaultMountOptions(true)
	change := func(f func(*mountOptions)) mountOptions { o := root; f(&o); return o }
	for _, c := range []struct {
		lists []string
		want  mountOptions
	}{
		{nil, root},
		{[]string{"", "defaults,noauto,_netdev,nofail,x-systemd.automount,x-gvfs-name=VDE,user=alice"}, root},
		{[]string{"ro"}, change(func(o *mountOptions) { o.ReadOnly = true })},
		{[]string{"ro,rw"}, root},
		{[]string{"nosuid,nodev", "noexec"}, change(func(o *mountOptions) { o.Suid, o.Dev, o.Exec = false, false, false })},
		{[]string{"nosuid,nodev,suid,dev"}, root},
		{[]string{"noatime,png=off,cache=strict,sync"}, change(func(o *mountOptions) { o.Atime, o.PNG, o.Cache, o.Sync = "noatime", "off", "strict", true })},
		{[]string{"strictatime,memory=2G"}, change(func(o *mountOptions) { o.Atime, o.Memory = "strictatime", 2<<30 })},
		{[]string{"timeout=90s"}, change(func(o *mountOptions) { o.Timeout = 90 * time.Second })},
	} {
		got := root
		if err := parseMountOptions(&got, c.lists); err != nil || got != c.want {
			t.Errorf("%q: %+v, %v; want %+v", c.lists, got, err, c.want)
		}
		again := root
		if err := parseMountOptions(&again, []string{got.String()}); err != nil || again != got {
			t.Errorf("%q prints as %q, which reads as %+v, %v", c.lists, got, again, err)
		}
	}
}

func TestParseMountOptionsRefuses(t *testing.T) {
	for option, want := range map[string]string{
		"turbo": `unknown mount option "turbo"`, "ro=1": `"ro=1" takes no value`, "png": "png is one of async, sync, off",
		"png=maybe": "png is one of", "memory=lots": "no number", "timeout=1": "at least a second", "cache=big": "cache is one of", "remount": "has no meaning here",
		"comment": `unknown mount option "comment"`, "defaults=1": "unknown mount option",
	} {
		o := defaultMountOptions(true)
		err := parseMountOptions(&o, []string{"rw," + option})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want an error with %q", option, err, want)
		}
		if codeOf(err) != exitUsage {
			t.Errorf("%q: exit code %d, want %d", option, codeOf(err), exitUsage)
		}
	}
}

// A user who is not root gets a mount of their own, without set-id files and devices.
func TestMountOptionsOfUsers(t *testing.T) {
	if got, want := defaultMountOptions(false).String(), "rw,default_permissions,nosuid,nodev,exec,relatime,png=async,cache=writeback,memory=1G"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
