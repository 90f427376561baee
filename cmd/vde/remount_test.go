package main

import "testing"

func TestParseRemount(t *testing.T) {
	base := defaultMountOptions(true)
	change := func(do func(*mountOptions)) mountOptions {
		o := base
		do(&o)
		return o
	}
	for list, want := range map[string]mountOptions{
		"remount":                       base,
		"remount,ro":                    change(func(o *mountOptions) { o.ReadOnly = true }),
		"rw,nosuid,remount,strictatime": change(func(o *mountOptions) { o.Suid, o.Atime = false, "strictatime" }),
		"remount,ro,relatime,user_id=0,group_id=0,default_permissions,allow_other,x-systemd.automount": change(func(o *mountOptions) { o.ReadOnly = true }),
		"remount,cache=writeback,noexec,sync": change(func(o *mountOptions) { o.Exec, o.Sync = false, true }), // as it is already
	} {
		got := base
		if !wantsRemount([]string{list}) {
			t.Errorf("%q is not taken for a remount", list)
		}
		if err := parseRemount(&got, []string{list}); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", list, got, err, want)
		}
	}
	for _, list := range []string{"remount,cache=strict", "remount,png=off", "remount,memory=2G", "remount,turbo", "remount,user_id"} {
		got := base
		if err := parseRemount(&got, []string{list}); codeOf(err) != exitUsage || got != base {
			t.Errorf("%q: %v, and the options are %+v", list, err, got)
		}
	}
	for _, list := range []string{"", "ro", "noremount", "x-remount", "comment=remount"} {
		if wantsRemount([]string{list}) {
			t.Errorf("%q is taken for a remount", list)
		}
	}
}
