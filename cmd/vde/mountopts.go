package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// mountOptions is what the -o options of a mount say. The zero value is not useful: start with defaultMountOptions.
type mountOptions struct {
	ReadOnly           bool
	AllowOther         bool
	DefaultPermissions bool
	Suid, Dev, Exec    bool
	Sync               bool
	Atime              string // relatime, noatime, strictatime
	PNG                string // async, sync, off
	Cache              string // one of cacheModes
	Memory             byteSize
	Timeout            time.Duration // how long an operation waits for a majority of a cluster's nodes
}

// cacheModes are the values of cache=, with what they mean.
var cacheModes = map[string]string{
	"writeback":    "the kernel keeps written pages and sends them later (default)",
	"writethrough": "the kernel keeps what was read, every write goes to the daemon at once",
	"strict":       "the kernel keeps nothing: every read and write reaches the daemon",
}

// defaultMountOptions are those of a mount without -o. As root a mount is for the whole system: others may use it and the
// kernel checks permissions; otherwise it belongs to its user alone, and set-id files and devices have no effect.
func defaultMountOptions(root bool) mountOptions {
	return mountOptions{
		AllowOther: root, DefaultPermissions: true, Suid: root, Dev: root, Exec: true,
		Atime: "relatime", PNG: "async", Cache: "writeback", Memory: 1 << 30, Timeout: defaultClusterTimeout,
	}
}

// optionSetters are the mount options without a value.
var optionSetters = map[string]func(*mountOptions){
	"ro":                  func(o *mountOptions) { o.ReadOnly = true },
	"rw":                  func(o *mountOptions) { o.ReadOnly = false },
	"allow_other":         func(o *mountOptions) { o.AllowOther = true },
	"default_permissions": func(o *mountOptions) { o.DefaultPermissions = true },
	"relatime":            func(o *mountOptions) { o.Atime = "relatime" },
	"noatime":             func(o *mountOptions) { o.Atime = "noatime" },
	"strictatime":         func(o *mountOptions) { o.Atime = "strictatime" },
	"atime":               func(o *mountOptions) { o.Atime = "relatime" },
	"suid":                func(o *mountOptions) { o.Suid = true },
	"nosuid":              func(o *mountOptions) { o.Suid = false },
	"dev":                 func(o *mountOptions) { o.Dev = true },
	"nodev":               func(o *mountOptions) { o.Dev = false },
	"exec":                func(o *mountOptions) { o.Exec = true },
	"noexec":              func(o *mountOptions) { o.Exec = false },
	"sync":                func(o *mountOptions) { o.Sync = true },
	"async":               func(o *mountOptions) { o.Sync = false },
}

// optionValues are the mount options with one of several values.
var optionValues = map[string]struct {
	values []string
	set    func(*mountOptions, string)
}{
	"png":   {[]string{"async", "sync", "off"}, func(o *mountOptions, v string) { o.PNG = v }},
	"cache": {slices.Sorted(maps.Keys(cacheModes)), func(o *mountOptions, v string) { o.Cache = v }},
}

// ignoredOptions are words of /etc/fstab that speak to mount(8), systemd or nobody; a name ending in "=" stands for any value.
var ignoredOptions = []string{
	"defaults", "auto", "noauto", "_netdev", "nofail", "user", "nouser", "users", "nousers", "owner", "noowner", "group",
	"nogroup", "silent", "loud", "diratime", "nodiratime", "iversion", "noiversion", "user=", "comment=", "uhelper=", "helper=",
}

// defaultClusterTimeout: see mountOptions.Timeout.
const defaultClusterTimeout = 30 * time.Second

// parseMountOptions applies lists of options, each separated by commas, to opts in their order (the last one wins).
func parseMountOptions(opts *mountOptions, lists []string) error {
	for _, option := range strings.Split(strings.Join(lists, ","), ",") {
		if option == "" {
			continue
		}
		name, value, hasValue := strings.Cut(option, "=")
		if set, ok := optionSetters[name]; ok {
			if hasValue {
				return usagef("mount option %q takes no value: write %q", option, name)
			}
			set(opts)
			continue
		}
		if name == "memory" {
			size, err := parseSize(value)
			if err != nil {
				return usagef("mount option %q: %w", option, err)
			}
			opts.Memory = size
			continue
		}
		if name == "timeout" {
			d, err := time.ParseDuration(value)
			if err != nil || d < time.Second {
				return usagef("mount option %q: write a time of at least a second, like timeout=30s", option)
			}
			opts.Timeout = d
			continue
		}
		if known, ok := optionValues[name]; ok {
			if !slices.Contains(known.values, value) {
				return usagef("mount option %q: %s is one of %s", option, name, strings.Join(known.values, ", "))
			}
			known.set(opts, value)
			continue
		}
		if name == "remount" {
			return usagef("mount option %q has no meaning here: it is for vde mount STORE MOUNTPOINT", option)
		}
		if !ignoredOption(name, hasValue) {
			return usagef("unknown mount option %q: known are %s", option, strings.Join(knownOptions(), ", "))
		}
	}
	return nil
}

func ignoredOption(name string, hasValue bool) bool {
	if strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-") {
		return true
	}
	if hasValue {
		name += "="
	}
	return slices.Contains(ignoredOptions, name)
}

// String lists the options as mount(8) would print them; parseMountOptions reads the list back.
func (o mountOptions) String() string {
	pick := func(on bool, yes, no string) string {
		if on {
			return yes
		}
		return no
	}
	list := []string{pick(o.ReadOnly, "ro", "rw"), pick(o.AllowOther, "allow_other", ""), pick(o.DefaultPermissions, "default_permissions", ""),
		pick(o.Suid, "suid", "nosuid"), pick(o.Dev, "dev", "nodev"), pick(o.Exec, "exec", "noexec"), pick(o.Sync, "sync", ""), o.Atime,
		"png=" + o.PNG, "cache=" + o.Cache, "memory=" + o.Memory.String()}
	if o.Timeout != defaultClusterTimeout {
		list = append(list, "timeout="+o.Timeout.String())
	}
	var words []string
	for _, word := range list {
		if word != "" {
			words = append(words, word)
		}
	}
	return strings.Join(words, ",")
}

func knownOptions() []string {
	names := slices.Collect(maps.Keys(optionSetters))
	names = append(names, "memory=SIZE", "timeout=DURATION")
	for name, known := range optionValues {
		names = append(names, fmt.Sprintf("%s=%s", name, strings.Join(known.values, "|")))
	}
	slices.Sort(names)
	return names
}

// cacheUsage explains cache= for the help of mount.
func cacheUsage() string {
	var b strings.Builder
	b.WriteString(strings.Join(slices.Sorted(maps.Keys(cacheModes)), "|"))
	for _, mode := range slices.Sorted(maps.Keys(cacheModes)) {
		fmt.Fprintf(&b, "\n    %-14s%s", mode, cacheModes[mode])
	}
	return b.String()
}
