package consensus

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"

	"vdefs/consensus/transport"
)

// SyncPolicy says when a group with a single voter makes its log durable. With
// more voters it is always SyncAlways.
type SyncPolicy int

const (
	// SyncOnBarrier acknowledges a proposal from the page cache. It becomes durable
	// with the next Sync, and Config.SyncInterval later at the latest.
	SyncOnBarrier SyncPolicy = iota
	// SyncAlways acknowledges a proposal when it is durable. It is applied before.
	SyncAlways
)

// Config says how a Manager keeps its groups.
type Config struct {
	// FS is the filesystem that everything is kept in, vfs.Default where nil.
	FS vfs.FS
	// Dir holds one directory per group. It is made if it does not exist.
	Dir string
	// NodeID is this node, unique in the cluster for all time; not 0.
	NodeID uint64
	// Logger is where warnings and progress go. nil: nowhere.
	Logger logrus.FieldLogger

	Sync SyncPolicy
	// SyncInterval is how long an entry that nobody asked to sync may stay
	// unsynced. 0: half a second. At most one second.
	SyncInterval time.Duration
	// SegmentSize is the size of a log segment in bytes, see logstore.FileOptions.
	SegmentSize int64

	// Transport connects the nodes. Without it every group has this node only. The
	// manager starts it, and whoever made it closes it after the manager.
	Transport transport.Transport
	// TickInterval is the unit of the groups' time; 0: 50 ms. A leader sends a
	// heartbeat every HeartbeatTicks (0: 2), a follower that hears of no leader for
	// ElectionTicks (0: 10) to twice that starts an election.
	TickInterval                  time.Duration
	ElectionTicks, HeartbeatTicks int
	// LogTail is how many bytes of log each replica of a group keeps although its own
	// state machine needs them no more: for followers that are behind, which would
	// need a snapshot else. 0: 64 MiB. A leader keeps what its slowest member lacks
	// up to LogTailMax bytes (0: 1 GiB). The log is given up in whole segments, so it
	// may be longer by one. What is behind a snapshot that is under way is kept
	// whatever it takes: without it the snapshot would be in vain.
	LogTail, LogTailMax int64
	// LeaseReads lets a leader that has asked a majority within the last half of
	// ElectionTicks serve this node's reads without asking again; see lease, which says
	// what it assumes of clocks. Where that is not certain, leave it off.
	LeaseReads bool

	// OnDurable is called when the durable index of a group has advanced to index,
	// in order for one group, with no lock of the group held. The goroutine is the
	// one that synced: it may be inside Manager.SyncAll and then holds whatever the
	// caller of SyncAll holds. It must be quick and must not call back.
	OnDurable func(group GroupID, index uint64)

	// sleepTicks is after how many ticks without anything to do a group sleeps; 0:
	// twice ElectionTicks.
	sleepTicks int
	// fullTicks is for how many ticks the disk may be full before a group of several
	// voters stops; 0: 1,200, a minute.
	fullTicks int
	// clock is what leases are measured with; nil: leaseClock.
	clock func() time.Time
	// manual: no goroutine of the manager or its groups runs; see driver.
	manual bool
	fault  plantedFaults
}

// withDefaults returns c with its defaults filled in, or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if c.FS == nil {
		c.FS = vfs.Default
	}
	if c.SyncInterval == 0 {
		c.SyncInterval = 500 * time.Millisecond
	}
	if c.TickInterval == 0 {
		c.TickInterval = 50 * time.Millisecond
	}
	if c.ElectionTicks == 0 {
		c.ElectionTicks = 10
	}
	if c.HeartbeatTicks == 0 {
		c.HeartbeatTicks = 2
	}
	if c.LogTail == 0 {
		c.LogTail = 64 << 20
	}
	if c.LogTailMax == 0 {
		c.LogTailMax = max(1<<30, c.LogTail)
	}
	if c.clock == nil {
		c.clock = leaseClock()
	}
	if c.sleepTicks == 0 {
		c.sleepTicks = 2 * c.ElectionTicks
	}
	if c.fullTicks == 0 {
		c.fullTicks = 1200
	}
	if c.Logger == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		c.Logger = quiet
	}
	switch {
	case c.Dir == "":
		return c, errors.New("consensus: Config.Dir is not set")
	case c.NodeID == 0:
		return c, errors.New("consensus: Config.NodeID is 0, which is no node")
	case c.SyncInterval < 0 || c.SyncInterval > time.Second:
		return c, fmt.Errorf("consensus: Config.SyncInterval is %v, at most 1s is allowed", c.SyncInterval)
	case c.TickInterval < 0 || c.HeartbeatTicks < 1 || c.ElectionTicks <= 2*c.HeartbeatTicks:
		return c, fmt.Errorf("consensus: %d election ticks of %v with a heartbeat every %d: an election takes more than two heartbeats", c.ElectionTicks, c.TickInterval, c.HeartbeatTicks)
	case c.LogTail < 0 || c.LogTailMax < c.LogTail:
		return c, fmt.Errorf("consensus: Config.LogTail is %d and Config.LogTailMax %d: the first is positive and not above the second", c.LogTail, c.LogTailMax)
	case c.Sync != SyncOnBarrier && c.Sync != SyncAlways:
		return c, fmt.Errorf("consensus: Config.Sync is %d, which is no policy", c.Sync)
	}
	return c, nil
}
