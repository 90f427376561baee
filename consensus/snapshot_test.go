package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/raft/v3/raftpb"

	"vdefs/consensus/transport"
)

// snapMessage is one of node 2 for node 1.
func snapMessage(index uint64) *pb.Message {
	return &pb.Message{Type: pb.MsgSnap.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1)),
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: &index, Term: new(uint64(1)), ConfState: &pb.ConfState{Voters: []uint64{2}, Learners: []uint64{1}}}}}
}

// heavy is a state machine of which a snapshot is killedSize bytes that look random.
// What Restore reads has to have their checksum.
type heavy struct {
	applied  uint64
	restored func(sum uint32)
}

const killedSize = 48 << 20

func heavyBytes() io.Reader { return rand.NewChaCha8([32]byte{7}) }

func (s *heavy) Apply(index, _ uint64, _ []byte, _ any) (any, error) {
	s.applied = index
	return nil, nil
}
func (s *heavy) AppliedIndex() uint64 { return s.applied }

func (s *heavy) Snapshot() (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(heavyBytes(), killedSize)), nil
}

func (s *heavy) Restore(index, _ uint64, data io.Reader) error {
	sum := crc32.New(castagnoli)
	if n, err := io.Copy(sum, data); err != nil || n != killedSize {
		return fmt.Errorf("%d bytes, want %d: %w", n, killedSize, err)
	}
	s.applied = index
	s.restored(sum.Sum32())
	return nil
}

// TestSnapshotOutlivesKill kills a node with SIGKILL while it receives a snapshot, and
// starts it again: the sender goes on behind what is there.
func TestSnapshotOutlivesKill(t *testing.T) {
	if dir := os.Getenv("VDE_TEST_RECEIVER"); dir != "" {
		receiveToBeKilled(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("it sends 48 MiB")
	}
	dir := t.TempDir()
	tr, err := transport.ListenTCP(transport.TCPConfig{ID: 1, Listen: "127.0.0.1:0", SnapshotRate: killedSize / 2})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	m, err := Open(Config{Dir: filepath.Join(dir, "sender"), NodeID: 1, Transport: tr, TickInterval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	sm := &heavy{}
	g, err := m.CreateReplicatedGroup(DefaultGroup, sm, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.ensureReplica(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := g.Propose(bg, []byte("x"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.log.Reset(g.LastIndex(), g.log.LastTerm()); err != nil { // nothing but a snapshot will do
		t.Fatal(err)
	}
	receiver := filepath.Join(dir, "receiver")
	// start runs the receiver; its output is what it logs.
	start := func() (*exec.Cmd, *bytes.Buffer) {
		var out bytes.Buffer
		cmd := exec.Command(os.Args[0], "-test.run=^TestSnapshotOutlivesKill$", "-test.v")
		cmd.Env = append(os.Environ(), "VDE_TEST_RECEIVER="+receiver, "VDE_TEST_SENDER="+tr.Addr())
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, &out
	}
	address := func() (addr string) {
		within(t, 20*time.Second, "the receiver listens", func() bool {
			b, err := os.ReadFile(receiver + ".address")
			addr = string(b)
			return err == nil && strings.HasSuffix(addr, "\n")
		})
		_ = os.Remove(receiver + ".address")
		return strings.TrimSuffix(addr, "\n")
	}
	first, firstOut := start()
	tr.SetPeer(2, address())
	changed := make(chan error, 1)
	go func() { changed <- g.ChangeMembers(bg, MemberChange{2, Learner}) }()
	arrived := func() (n int64) {
		paths, _ := filepath.Glob(filepath.Join(receiver, "default", partPrefix+"*"))
		for _, path := range paths {
			if st, err := os.Stat(path); err == nil {
				n = max(n, st.Size())
			}
		}
		return n
	}
	within(t, 30*time.Second, "half of the snapshot has arrived", func() bool { return arrived() > killedSize/2 })
	_ = first.Process.Kill()
	_ = first.Wait()
	if there := arrived(); there < killedSize/2 || there > killedSize {
		t.Fatalf("%d bytes are left of %d; the receiver said\n%s", there, killedSize, firstOut)
	}
	second, secondOut := start()
	tr.SetPeer(2, address())
	done := receiver + ".restored"
	within(t, 40*time.Second, "the snapshot is installed", func() bool { _, err := os.Stat(done); return err == nil })
	_ = second.Process.Kill()
	_ = second.Wait()
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
	var sum uint32
	var counted float64
	b, err := os.ReadFile(done)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &sum, &counted); err != nil {
		t.Fatal(err)
	}
	want := crc32.New(castagnoli)
	if _, err := io.CopyN(want, heavyBytes(), killedSize); err != nil {
		t.Fatal(err)
	}
	if sum != want.Sum32() {
		t.Fatalf("the checksum of what was restored is %08x, want %08x", sum, want.Sum32())
	}
	if counted > killedSize/2 {
		t.Fatalf("%.0f bytes of %d came after the restart; the receiver said\n%s", counted, killedSize, secondOut)
	}
	t.Logf("%.1f of %d MiB came after the restart", counted/(1<<20), killedSize>>20)
	if left := arrived(); left != 0 {
		t.Fatalf("a part of %d bytes is left", left)
	}
}

// receiveToBeKilled is the node that receives, in a process of its own.
func receiveToBeKilled(t *testing.T, dir string) {
	time.AfterFunc(2*time.Minute, func() { os.Exit(1) }) // should nobody kill it
	tr, err := transport.ListenTCP(transport.TCPConfig{ID: 2, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	tr.SetPeer(1, os.Getenv("VDE_TEST_SENDER"))
	m, err := Open(Config{Dir: dir, NodeID: 2, Transport: tr, TickInterval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+".address", []byte(tr.Addr()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // a node whose groups are not open yet
	sum := make(chan uint32, 9)
	sm := &heavy{restored: func(s uint32) { sum <- s }}
	g, err := m.OpenGroup(DefaultGroup, sm)
	if errors.Is(err, ErrGroupNotFound) {
		g, err = m.JoinGroup(DefaultGroup, sm)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := <-sum
	within(t, 10*time.Second, "the part is gone", func() bool { return g.AppliedIndex() > 0 })
	time.Sleep(50 * time.Millisecond)
	text := fmt.Sprintf("%d %f\n", s, counterOf(t, m, "snapshot_received_bytes_total"))
	if err := os.WriteFile(dir+".tmp", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".tmp", dir+".restored"); err != nil {
		t.Fatal(err)
	}
	<-g.Done() // until it is killed
}

// counterOf returns one of a manager's counters, of group default.
func counterOf(t *testing.T, m *Manager, name string) float64 {
	registry := prometheus.NewRegistry()
	if err := registry.Register(m.Collector()); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "vde_raft_"+name {
			return f.Metric[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no counter %s", name)
	return 0
}
