package main

import (
	"reflect"
	"testing"
)

func TestParseHelperArgs(t *testing.T) {
	for _, c := range []struct {
		args []string
		want helperArgs
	}{
		{[]string{"/srv/store", "/mnt", "-o", "rw,noatime"}, helperArgs{[]string{"/srv/store", "/mnt"}, []string{"rw,noatime"}, ""}},
		{[]string{"/srv/store", "/mnt", "-sv", "-orw", "-t", "fuse.vde"}, helperArgs{[]string{"/srv/store", "/mnt"}, []string{"rw"}, "sv"}},
		{[]string{"-nvo", "ro", "-N", "/proc/1/ns/mnt", "a", "b"}, helperArgs{[]string{"a", "b"}, []string{"ro"}, "nv"}},
		{[]string{"/mnt", "-fl"}, helperArgs{[]string{"/mnt"}, nil, "fl"}},
	} {
		got, err := parseHelperArgs(c.args)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, %v; want %+v", c.args, got, err, c.want)
		}
	}
	if _, err := parseHelperArgs([]string{"a", "b", "-o"}); codeOf(err) != exitUsage {
		t.Errorf("-o without a value: %v", err)
	}
}
