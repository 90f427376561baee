package fs

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// typeName makes the type of the mount, as df -T shows it: fuse.vde.
const typeName = "vde"

// MountOptions say how a volume is mounted. The zero value is a mount for the calling user alone, without set-id files and
// devices, with everything cached.
type MountOptions struct {
	FsName     string // the source that df and /proc/mounts show; "" is "vde"
	ReadOnly   bool
	AllowOther bool // for users other than the one who mounts
	// DefaultPermissions has the kernel check modes, owners and ACLs. Nobody else does: without it whoever may use the
	// mount may do everything in it, so AllowOther needs it.
	DefaultPermissions bool
	Suid, Dev          bool // set-id bits and device nodes have an effect; for root only
	NoExec             bool
	NoAtime            bool // reads leave no trace, whatever the volume would do
	Sync               bool // every write as with O_SYNC

	// NoWriteback has every write reach the volume before it returns. Data that was read is still cached.
	NoWriteback bool
	// NoCache has every operation reach the volume: no cached data, attributes or entries.
	NoCache bool
	// ServerLocks keeps flock and fcntl locks in the server instead of the kernel, which costs requests (one at every
	// close too) and is of use only when the kernel's table is not the whole truth.
	ServerLocks bool

	Timeouts      Timeouts
	MaxBackground int // requests that the kernel may have under way without a caller waiting; 0 is defaultMaxBackground
	Logger        logrus.FieldLogger
	Debug         bool // log every request, at debug level
}

// Timeouts say how long the kernel may answer by itself. 0 is an hour: there is nobody to change things behind its back.
type Timeouts struct {
	Entry    time.Duration // that a name is there, and what it names
	Negative time.Duration // that a name is not there
	Attr     time.Duration
}

const (
	defaultTimeout       = time.Hour
	defaultMaxBackground = 128
	maxWrite             = 1 << 20 // the most that the kernel puts into one request
	readAheadKB          = 1024
)

// Server is a mount that is being served.
type Server struct {
	fs         *filesystem
	fuse       *fuse.Server
	mountpoint string
	done       chan struct{} // closed when the connection is gone and everything that hung on it is given back
}

// Mount mounts a volume on a directory and returns when the mount answers. The mount point must be a directory. A mount
// there whose daemon has died is removed first.
//
// The volume must stay open until Wait returns.
func Mount(volume Volume, mountpoint string, options MountOptions) (*Server, error) {
	if options.Logger == nil {
		options.Logger = logrus.StandardLogger()
	}
	if options.AllowOther && !options.DefaultPermissions {
		return nil, errors.New("mount: allow_other without default_permissions would let every user do everything: add default_permissions")
	}
	options.Timeouts.setDefaults(options.NoCache)
	mountpoint, err := filepath.Abs(mountpoint)
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	if err := prepareMountpoint(mountpoint, options.Logger); err != nil {
		return nil, err
	}

	f := newFilesystem(volume, options)
	raw, err := fuse.NewServer(f, mountpoint, f.fuseOptions())
	if err != nil {
		f.cancel()
		return nil, fmt.Errorf("mount on %s: %w", mountpoint, explainMountError(err))
	}
	s := &Server{fs: f, fuse: raw, mountpoint: mountpoint, done: make(chan struct{})}
	go s.serve()
	if err := raw.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: it does not answer: %w", mountpoint, err), s.Unmount())
	}
	s.tuneDevice()
	return s, nil
}

// serve answers the kernel until the connection is gone, and then gives back what the kernel cannot give back any more.
func (s *Server) serve() {
	defer close(s.done)
	s.fuse.Serve()
	s.fs.cancel()
	for node, references := range s.fs.nodes.drain() {
		for range references {
			s.fs.volume.Unreference(s.fs.ino(node))
		}
	}
}

// Wait returns when the mount has ended, by Unmount, umount(8) or the end of its connection, and no operation of the
// volume is under way any more.
func (s *Server) Wait() { <-s.done }

// errBusy is the reason why a mount cannot be ended.
var errBusy = errors.New("it is in use: close the files and leave the directories in it (fuser -vm shows them), or use umount -l")

// Unmount takes the mount out of the tree and waits for its end. It fails, wrapping EBUSY, while something in it is in use.
func (s *Server) Unmount() error {
	var err error
	for wait := 5 * time.Millisecond; wait < 200*time.Millisecond; wait *= 2 {
		err = unmount(s.mountpoint, false)
		if err == nil {
			<-s.done
			return nil
		}
		select {
		case <-s.done: // somebody else was faster
			return nil
		case <-time.After(wait): // a close that is not yet through looks busy
		}
	}
	if errors.Is(err, syscall.EBUSY) {
		err = fmt.Errorf("%w: %w", errBusy, err)
	}
	return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
}

// fuseOptions are the mount's options and capabilities.
func (f *filesystem) fuseOptions() *fuse.MountOptions {
	o := &f.options
	root := os.Geteuid() == 0
	fuseOptions := &fuse.MountOptions{
		Name:                     typeName,
		FsName:                   o.FsName,
		AllowOther:               o.AllowOther,
		MaxWrite:                 maxWrite,
		MaxBackground:            o.MaxBackground,
		DirectMountStrict:        root, // no helper needed
		DisableSplice:            true, // slower in every measurement, and cannot carry maxWrite
		EnableSymlinkCaching:     !o.NoCache,
		ExplicitDataCacheControl: true,
		EnableLocks:              o.ServerLocks,
		EnableAcl:                o.DefaultPermissions,
		Debug:                    o.Debug,
		Logger:                   log.New(logWriter{o}, "", 0),
		PanicHandler: func(reason any) fuse.Status {
			o.Logger.WithField("stack", string(debug.Stack())).Errorf("panic in a request: %v", reason)
			return fuse.EIO
		},
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DONT_MASK | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_SETXATTR_EXT | fuse.CAP_EXPORT_SUPPORT |
			fuse.CAP_NO_OPENDIR_SUPPORT,
		// Passthrough excludes the writeback cache, and makes the mount unfit to lie under an overlay.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	}
	if !o.NoWriteback && !o.NoCache {
		fuseOptions.ExtraCapabilities |= fuse.CAP_WRITEBACK_CACHE
	}
	if fuseOptions.MaxBackground == 0 {
		fuseOptions.MaxBackground = defaultMaxBackground
	}
	if fuseOptions.FsName == "" {
		fuseOptions.FsName = typeName
	}
	if o.DefaultPermissions {
		fuseOptions.Options = append(fuseOptions.Options, "default_permissions")
	}
	if root {
		fuseOptions.DirectMountFlags = o.mountFlags()
	} else {
		fuseOptions.Options = append(fuseOptions.Options, o.helperOptions()...)
	}
	return fuseOptions
}

// mountFlags are the flags of mount(2).
func (o *MountOptions) mountFlags() uintptr {
	// go-fuse takes 0 for its own default; this one the kernel ignores.
	var flags uintptr = unix.MS_MGC_VAL
	for _, f := range []struct {
		set  bool
		flag uintptr
	}{
		{o.ReadOnly, unix.MS_RDONLY}, {!o.Suid, unix.MS_NOSUID}, {!o.Dev, unix.MS_NODEV}, {o.NoExec, unix.MS_NOEXEC},
		{o.NoAtime, unix.MS_NOATIME}, {o.Sync, unix.MS_SYNCHRONOUS},
	} {
		if f.set {
			flags |= f.flag
		}
	}
	return flags
}

// helperOptions are the same as words for fusermount3, which adds nosuid and nodev itself.
func (o *MountOptions) helperOptions() []string {
	var words []string
	for _, w := range []struct {
		set  bool
		word string
	}{{o.ReadOnly, "ro"}, {o.NoExec, "noexec"}, {o.NoAtime, "noatime"}, {o.Sync, "sync"}} {
		if w.set {
			words = append(words, w.word)
		}
	}
	return words
}

func (t *Timeouts) setDefaults(none bool) {
	for _, d := range []*time.Duration{&t.Entry, &t.Negative, &t.Attr} {
		if none {
			*d = 0
		} else if *d == 0 {
			*d = defaultTimeout
		}
	}
}

// prepareMountpoint checks that a directory can be mounted on, and removes what a dead daemon left there.
func prepareMountpoint(path string, logger logrus.FieldLogger) error {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	// A daemon may have died on top of a daemon that died.
	for tries := 0; errors.Is(err, unix.ENOTCONN) && tries < 8; tries++ {
		if e := unmount(path, true); e != nil {
			return fmt.Errorf("mount on %s: a dead mount is there and cannot be removed (try umount -l): %w", path, e)
		}
		logger.WithField("mountpoint", path).Warn("removed a mount whose daemon had died")
		err = unix.Stat(path, &stat)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("mount on %s: there is no such directory: create it first: %w", path, err)
	case err != nil:
		return fmt.Errorf("mount on %s: %w", path, err)
	case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("mount on %s: it is not a directory: %w", path, unix.ENOTDIR)
	}
	kind, source, err := mountedOn(path)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", path, err)
	}
	if kind == "fuse."+typeName {
		return fmt.Errorf("mount on %s: %s is already mounted there: unmount it first: %w", path, source, unix.EBUSY)
	}
	return nil
}

// mountedOn tells the type and source of the filesystem that is mounted on a directory, "" if none is.
func mountedOn(path string) (kind, source string, err error) {
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(table)) {
		// 36 35 98:0 /root /mount/point options [tags] - type source superoptions
		before, after, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) > 4 && len(rest) > 1 && unescapeMountinfo(fields[4]) == path {
			kind, source = rest[0], unescapeMountinfo(rest[1]) // the last one covers the others
		}
	}
	return kind, source, nil
}

var mountinfoEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")

func unescapeMountinfo(s string) string { return mountinfoEscapes.Replace(s) }

// unmount takes the topmost mount at path out of the tree; lazily: even if it is in use or dead.
func unmount(path string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(path, flags)
	}
	arguments := []string{"-u", "--", path}
	if lazy {
		arguments = append([]string{"-z"}, arguments...)
	}
	for _, helper := range []string{"fusermount3", "fusermount"} {
		if _, err := exec.LookPath(helper); err != nil {
			continue
		}
		output, err := exec.Command(helper, arguments...).CombinedOutput()
		if err != nil && strings.Contains(string(output), "busy") {
			return fmt.Errorf("%s: %w", helper, unix.EBUSY)
		} else if err != nil {
			return fmt.Errorf("%s: %w: %s", helper, err, strings.TrimSpace(string(output)))
		}
		return nil
	}
	return errors.New("neither fusermount3 nor fusermount is there: install the package fuse3")
}

// explainMountError says what to do about the usual reasons.
func explainMountError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("/dev/fuse is not there: load the kernel module with modprobe fuse: %w", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("it is not allowed (in a container it takes /dev/fuse and CAP_SYS_ADMIN): %w", err)
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("without root it takes fusermount3: install the package fuse3: %w", err)
	}
	return err
}

// tuneDevice raises limits that the kernel sets low for FUSE mounts: the share of dirty memory (1 %, strictly), which
// throttles buffered writes, and the read-ahead. It takes root; without it the mount is only slower.
func (s *Server) tuneDevice() {
	if os.Geteuid() != 0 {
		return
	}
	var stat unix.Stat_t
	if err := unix.Stat(s.mountpoint, &stat); err != nil {
		return
	}
	dir := fmt.Sprintf("/sys/class/bdi/%d:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev))
	for _, setting := range []struct{ name, value string }{
		{"strict_limit", "0"}, {"max_ratio", "100"}, {"read_ahead_kb", fmt.Sprint(readAheadKB)},
	} {
		if err := os.WriteFile(filepath.Join(dir, setting.name), []byte(setting.value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.fs.log.WithError(err).Debug("the mount's device could not be tuned")
		}
	}
}

// logWriter takes go-fuse's lines into the log: requests when debugging, complaints always.
type logWriter struct{ options *MountOptions }

func (w logWriter) Write(line []byte) (int, error) {
	text := strings.TrimRight(string(line), "\n")
	if w.options.Debug {
		w.options.Logger.Debug(text)
	} else {
		w.options.Logger.Warn(text)
	}
	return len(line), nil
}
