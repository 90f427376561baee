package main

import (
	"math"
	"testing"

	"github.com/sirupsen/logrus"

	"vdefs/fs/replica"
)

// TestVolumeOptions holds that the mount options that concern the store reach it.
func TestVolumeOptions(t *testing.T) {
	for list, check := range map[string]func(replica.Options) bool{
		"": func(o replica.Options) bool {
			return o.Memory == 1<<30 && !o.ReadOnly && !o.Strict && o.Atime == replica.Relatime
		},
		"memory=256M":         func(o replica.Options) bool { return o.Memory == 256<<20 },
		"memory=16777215T":    func(o replica.Options) bool { return o.Memory == math.MaxInt64 },
		"ro,noatime":          func(o replica.Options) bool { return o.ReadOnly && o.Atime == replica.Noatime },
		"cache=strict":        func(o replica.Options) bool { return o.Strict },
		"timeout=7s,atime,rw": func(o replica.Options) bool { return o.Timeout.Seconds() == 7 },
	} {
		m := defaultMountOptions(true)
		if err := parseMountOptions(&m, []string{list}); err != nil {
			t.Fatalf("%q: %v", list, err)
		}
		if o := volumeOptions(m, nil, logrus.StandardLogger()); !check(o) {
			t.Errorf("%q: the store is opened with %+v", list, o)
		}
	}
}
