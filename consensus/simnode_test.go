package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/gob"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"vdefs/consensus/transport"
)

// simNode is one node: its disks outlive its lives.
type simNode struct {
	ticked time.Time // by the simulation's clock, when it had its last tick
	s      *sim
	id     uint64
	mem    *vfs.MemFS
	m      *Manager
	sms    map[GroupID]*simMachine
	disk   map[GroupID]simState // what the state machines hold durably
	up     bool
	life   int

	// crashIn counts file operations to a crash; 0: none is planned.
	crashIn   int
	full      bool       // its disk
	crashed   *vfs.MemFS // what is left after it
	crashDisk map[GroupID]simState
}

// simState is a state machine's state: registers.
type simState struct {
	Applied uint64
	KV      map[string]string
}

func (s simState) clone() simState { return simState{s.Applied, maps.Clone(s.KV)} }

// simMachine is the state machine of one group on one node.
type simMachine struct {
	n     *simNode
	group GroupID
	simState
}

func (m *simMachine) AppliedIndex() uint64 { return m.Applied }

func (m *simMachine) Apply(index, term uint64, cmd []byte, local any) (any, error) {
	s := m.n.s
	if index <= m.Applied {
		s.fail("group %s node %d: entry %d is applied after entry %d", m.group, m.n.id, index, m.Applied)
	}
	m.Applied = index
	s.checkApply(m, index, simEntry{term, string(cmd)})
	key, value, _ := strings.Cut(string(cmd), "=")
	m.KV[key] = value
	return value, nil
}

func (m *simMachine) Snapshot() (io.ReadCloser, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(m.simState)
	return io.NopCloser(&b), err
}

func (m *simMachine) Restore(index, term uint64, data io.Reader) error {
	var st simState
	if err := gob.NewDecoder(data).Decode(&st); err != nil {
		return err
	}
	if st.KV == nil {
		st.KV = map[string]string{}
	}
	st.Applied = index
	m.simState = st
	if m.n.crashed == nil {
		m.n.disk[m.group] = st.clone()
	}
	return nil
}

// MaybeError pulls the plug of the node before one of its file operations.
func (n *simNode) MaybeError(op errorfs.Op) error {
	if n.full {
		switch op.Kind {
		case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate, errorfs.OpCreate:
			return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
		}
	}
	if n.crashIn == 0 || op.Kind.ReadOrWrite() == errorfs.OpIsRead {
		return nil
	}
	if n.crashIn--; n.crashIn == 0 && n.crashed == nil {
		n.pull()
	}
	return nil
}

func (n *simNode) String() string { return fmt.Sprintf("node %d", n.id) }

// pull keeps what a crash at this moment leaves: everything that was synced, and
// of the rest all or nothing.
func (n *simNode) pull() {
	n.crashed = n.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100 * n.s.rng.IntN(2), RNG: n.s.rng})
	n.crashDisk = map[GroupID]simState{}
	for g, st := range n.disk {
		n.crashDisk[g] = st.clone()
	}
}

// down ends the node's life, with what pull kept.
func (n *simNode) down() {
	if n.crashed == nil {
		n.pull()
	}
	n.mem, n.disk = n.crashed, n.crashDisk
	n.crashed, n.crashDisk, n.crashIn, n.full = nil, nil, 0, false
	n.m, n.up = nil, false
	n.life++
	n.s.log("node %d is down", n.id)
}

// start opens the node's groups.
func (n *simNode) start() {
	s := n.s
	n.sms = map[GroupID]*simMachine{}
	m, err := Open(Config{
		FS: errorfs.Wrap(n.mem, n), Dir: "raft", NodeID: n.id, Transport: &simTransport{n: n, life: n.life},
		SegmentSize: 1 << 10, ElectionTicks: 10, HeartbeatTicks: 2, sleepTicks: 5, manual: true,
		LogTail: 1, LogTailMax: 1 + int64(s.cfg.seed%2)<<11, fault: s.cfg.fault, // snapshots are wanted here
		LeaseReads: (s.cfg.seed+n.id)%3 != 0, TickInterval: time.Second, clock: func() time.Time { return s.clock },
	})
	if err != nil {
		s.fail("node %d does not open: %v", n.id, err)
		return
	}
	n.m, n.up = m, true
	for _, g := range s.groups {
		st, ok := n.disk[g]
		if !ok {
			st = simState{KV: map[string]string{}}
		}
		sm := &simMachine{n: n, group: g, simState: st.clone()}
		n.sms[g] = sm
		group, err := m.OpenGroup(g, sm)
		if err != nil {
			s.fail("node %d does not open group %s: %v", n.id, g, err)
			continue
		}
		// A group of which this node is the only voter opens as one that is alone.
		if _, err := group.ensureReplica(); err != nil {
			s.fail("node %d group %s: %v", n.id, g, err)
			continue
		}
		s.checkMembership(n, group)
	}
	s.log("node %d is up", n.id)
}

// simTransport puts messages on the wire.
type simTransport struct {
	n    *simNode
	life int
}

func (t *simTransport) Start(transport.Handler) error { return nil }
func (t *simTransport) SetPeer(uint64, string)        {}
func (t *simTransport) Close() error                  { return nil }

// alive: what a node sends after its crash never leaves it.
func (t *simTransport) alive() bool { return t.n.life == t.life && t.n.crashed == nil }

func (t *simTransport) Send(group string, m *pb.Message) bool {
	if t.alive() {
		t.n.s.checkVote(t.n.id, group, m)
		t.n.s.wire = append(t.n.s.wire, simMessage{from: t.n.id, to: m.GetTo(), group: group, m: proto.Clone(m).(*pb.Message)})
	}
	return true
}

func (t *simTransport) SendSnapshot(_ context.Context, group string, m *pb.Message, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	if t.alive() {
		s := t.n.s
		s.snapshots++
		s.wire = append(s.wire, simMessage{from: t.n.id, to: m.GetTo(), group: group, m: proto.Clone(m).(*pb.Message), snapshot: b, id: s.snapshots})
	}
	return nil
}

// simSnapshot is a snapshot as it arrives, in small chunks.
type simSnapshot struct {
	s         *sim
	id        uint64
	all, rest []byte
}

func (d *simSnapshot) Identity() (id [transport.SnapshotIDSize]byte) {
	binary.LittleEndian.PutUint64(id[:], d.id)
	return id
}

func (d *simSnapshot) GoOn(n int64, crc uint32) {
	if n > int64(len(d.all)) || crc != crc32.Checksum(d.all[:n], castagnoli) {
		d.s.fail("a snapshot of %d bytes is gone on with behind %d others", len(d.all), n)
		return
	}
	d.rest = d.all[n:]
	d.s.resumed++
}

func (d *simSnapshot) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.rest[:min(64, len(d.rest))])
	d.rest = d.rest[n:]
	return n, nil
}
