package main

import (
	"errors"
	"math"

	"github.com/sirupsen/logrus"

	"vdefs/fs"
	"vdefs/fs/cluster"
	"vdefs/fs/replica"
)

// openVolume opens the store of a mount, which the caller holds (vde.Hold); node is its place in a cluster, nil if it has none.
func openVolume(cfg mountConfig, node *cluster.Config, log *logrus.Logger) (*replica.Volume, error) {
	o := cfg.Options
	options := volumeOptions(o, node, log)
	volume, err := replica.Open(cfg.Store, options)
	if err != nil {
		return nil, err
	}
	if err := volume.StartPNG(o.PNG, options.Memory); err != nil {
		return nil, errors.Join(err, volume.Close())
	}
	return volume, nil
}

// volumeOptions are the mount options that concern the store, which the daemon holds.
func volumeOptions(o mountOptions, node *cluster.Config, log *logrus.Logger) replica.Options {
	return replica.Options{
		ReadOnly: o.ReadOnly, Logger: log, Atime: atimeModes[o.Atime], Cluster: node, Strict: o.Cache == "strict", Timeout: o.Timeout,
		Memory: int64(min(o.Memory, math.MaxInt64)), Held: true,
	}
}

var atimeModes = map[string]replica.Atime{"relatime": replica.Relatime, "noatime": replica.Noatime, "strictatime": replica.Strictatime}

// mountVolume mounts a volume and returns when the mount answers.
func mountVolume(volume *replica.Volume, cfg mountConfig, log *logrus.Logger) (*fs.Server, error) {
	options := serverOptions(cfg.Options)
	options.Shared = volume.Cluster() != nil
	options.FsName, options.Logger, options.Debug = cfg.Store, log, log.IsLevelEnabled(logrus.DebugLevel)
	return fs.Mount(volume, cfg.Mountpoint, options)
}

// serverOptions are the mount options that concern the kernel.
func serverOptions(o mountOptions) fs.MountOptions {
	return fs.MountOptions{
		ReadOnly: o.ReadOnly, AllowOther: o.AllowOther, DefaultPermissions: o.DefaultPermissions,
		Suid: o.Suid, Dev: o.Dev, NoExec: !o.Exec, NoAtime: o.Atime == "noatime", StrictAtime: o.Atime == "strictatime", Sync: o.Sync,
		NoWriteback: o.Cache == "writethrough", NoCache: o.Cache == "strict",
	}
}
