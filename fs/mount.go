package fs

import (
	"errors"
	"fmt"
	"log"
	"os"
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
	StrictAtime        bool // shown in the list of mounts; what it means is the volume's business
	Sync               bool // every write as with O_SYNC

	// NoWriteback has every write reach the volume before it returns. Data that was read is still cached.
	NoWriteback bool
	// NoCache has every operation reach the volume: no cached data, attributes or entries.
	NoCache bool
	// Shared: other mounts change the volume too, and each sees at open(2) what another one has closed before. Names are
	// looked up at every walk of a path, but for those of directories, which the volume must push when they change (SharedVolume).
	// Data and attributes are kept until they are seen to have changed, every write reaches the volume before it returns, and locks
	// are kept in the server.
	Shared bool
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
	Entry     time.Duration // that a name is there, and what it names
	Directory time.Duration // the same, of a directory
	Negative  time.Duration // that a name is not there
	Attr      time.Duration
}

// SharedTimeout is how long, on a mount that others share, the kernel may answer with attributes and what the name of a directory names:
// that is for what it has not been told of in time (SharedVolume).
const SharedTimeout = time.Second

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
	if options.FsName == "" {
		options.FsName = typeName
	}
	if options.AllowOther && !options.DefaultPermissions {
		return nil, errors.New("mount: allow_other without default_permissions would let every user do everything: add default_permissions")
	}
	options.Timeouts.setDefaults(options.NoCache)
	if options.Shared {
		options.NoWriteback, options.ServerLocks = true, true
		options.Timeouts.Entry, options.Timeouts.Negative = 0, 0
		options.Timeouts.Directory = min(options.Timeouts.Directory, SharedTimeout)
		options.Timeouts.Attr = min(options.Timeouts.Attr, SharedTimeout)
	}
	mountpoint, err := filepath.Abs(mountpoint)
	if err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	if err := prepareMountpoint(mountpoint, options.Logger); err != nil {
		return nil, err
	}

	f := newFilesystem(volume, options)
	raw, err := f.connect(mountpoint)
	if err != nil {
		f.cancel()
		return nil, fmt.Errorf("mount on %s: %w", mountpoint, explainMountError(err))
	}
	s := &Server{fs: f, fuse: raw, mountpoint: mountpoint, done: make(chan struct{})}
	s.attach()
	go s.serve()
	if err := firstRequest(mountpoint); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: it does not answer: %w", mountpoint, err), s.Unmount())
	}
	s.tuneDevice()
	f.ownTimes.begin(mountpoint)
	return s, nil
}

// connect mounts and exchanges the first message with the kernel.
func (f *filesystem) connect(mountpoint string) (*fuse.Server, error) {
	options := f.fuseOptions()
	if os.Geteuid() != 0 {
		// fusermount3 opens it with the user's rights, and tells its reason only to the terminal.
		if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); err != nil {
			return nil, fmt.Errorf("open /dev/fuse: %w", err)
		}
		return fuse.NewServer(f, mountpoint, options)
	}
	device, err := mountDirect(mountpoint, &f.options)
	if err != nil {
		return nil, err
	}
	server, err := fuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", device), options) // which owns the device from now on
	if err != nil {
		err = errors.Join(err, unix.Unmount(mountpoint, unix.MNT_DETACH))
	}
	return server, err
}

// serve answers the kernel until the connection is gone, and then gives back what the kernel cannot give back any more.
func (s *Server) serve() {
	defer close(s.done)
	s.fuse.Serve()
	s.fs.cancel()
	s.detach()
	for node, references := range s.fs.nodes.drain() {
		for range references {
			s.fs.volume.Unreference(s.fs.ino(node))
		}
	}
}

// Wait returns when the mount has ended, by Unmount, umount(8) or the end of its connection, and no operation of the
// volume is under way any more.
func (s *Server) Wait() { <-s.done }

// Remount changes a mount that is in use: of the options ReadOnly, Suid, Dev, NoExec, NoAtime, StrictAtime and Sync are taken, as they
// shall be. When it has become read-only, the volume has got everything that was written. It fails, wrapping EBUSY, if a mount that
// is to become read-only has a file open that is written or removed, and takes root.
func (s *Server) Remount(options MountOptions) error {
	if err := unix.Mount("", s.mountpoint, "", unix.MS_REMOUNT|options.mountFlags(), ""); err != nil {
		return fmt.Errorf("remount %s: %w", s.mountpoint, err)
	}
	s.fs.untouched.Store(options.NoAtime || options.ReadOnly)
	return nil
}

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
	fuseOptions := &fuse.MountOptions{
		Name:                     typeName,
		FsName:                   o.FsName,
		AllowOther:               o.AllowOther,
		MaxWrite:                 maxWrite,
		MaxBackground:            o.MaxBackground,
		DisableSplice:            true, // slower in every measurement, and cannot carry maxWrite
		EnableSymlinkCaching:     !o.NoCache,
		ExplicitDataCacheControl: !o.Shared, // else the kernel drops data when it sees another mtime or size
		EnableLocks:              o.ServerLocks,
		EnableAcl:                o.DefaultPermissions,
		Debug:                    o.Debug,
		Logger:                   log.New(logWriter{o}, "", 0),
		PanicHandler: func(reason any) fuse.Status {
			o.Logger.WithField("stack", string(debug.Stack())).Errorf("panic in a request: %v", reason)
			return fuse.EIO
		},
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_SETXATTR_EXT |
			fuse.CAP_EXPORT_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT,
		// Passthrough excludes the writeback cache, and makes the mount unfit to lie under an overlay.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	}
	if o.Shared {
		// The kernel would keep listings.
		fuseOptions.ExtraCapabilities &^= fuse.CAP_NO_OPENDIR_SUPPORT
	}
	if o.Shared || o.NoCache {
		// What a listing tells of its entries is not kept. Else it is always asked for: the first listing of a directory takes
		// longer (30,000 names 0.4 s instead of 0.1 s), but who looks at what they name, as find, du and a coloured ls do, is
		// four to eight times as fast, and the kernel guesses badly which of them it has before it.
		fuseOptions.ExtraCapabilities |= fuse.CAP_READDIRPLUS_AUTO
	}
	if !o.NoWriteback && !o.NoCache {
		fuseOptions.ExtraCapabilities |= fuse.CAP_WRITEBACK_CACHE
	}
	if fuseOptions.MaxBackground == 0 {
		fuseOptions.MaxBackground = defaultMaxBackground
	}
	if o.DefaultPermissions {
		fuseOptions.Options = append(fuseOptions.Options, "default_permissions")
	}
	fuseOptions.Options = append(fuseOptions.Options, o.helperOptions()...)
	return fuseOptions
}

// mountFlags are the flags of mount(2).
func (o *MountOptions) mountFlags() uintptr {
	var flags uintptr
	for _, f := range []struct {
		set  bool
		flag uintptr
	}{
		{o.ReadOnly, unix.MS_RDONLY}, {!o.Suid, unix.MS_NOSUID}, {!o.Dev, unix.MS_NODEV}, {o.NoExec, unix.MS_NOEXEC},
		{o.NoAtime, unix.MS_NOATIME}, {o.StrictAtime, unix.MS_STRICTATIME},
		{!o.NoAtime && !o.StrictAtime, unix.MS_RELATIME}, {o.Sync, unix.MS_SYNCHRONOUS},
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
	for _, d := range []*time.Duration{&t.Entry, &t.Directory, &t.Negative, &t.Attr} {
		if none {
			*d = 0
		} else if *d == 0 {
			*d = defaultTimeout
		}
	}
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
