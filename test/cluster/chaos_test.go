package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"
)

var (
	duration = flag.Duration("chaos.for", 15*time.Second, "how long the nodes suffer")
	size     = flag.Int("chaos.nodes", 3, "how many nodes")
	seed     = flag.Uint64("chaos.seed", 0, "of what happens to them; 0: from the clock")
)

const registers = 4

// history collects what programs did and saw.
type history struct {
	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation

	appended, renamed, locked atomic.Int64 // acknowledged
	unknown                   atomic.Int64 // of whatever kind: failed, and may have been done
}

type registerInput struct {
	key   int
	write bool
	value uint64
}

// registerModel is a set of registers that are read and written.
var registerModel = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, registers)
		for _, op := range all {
			k := op.Input.(registerInput).key
			parts[k] = append(parts[k], op)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		in := input.(registerInput)
		if in.write {
			return true, in.value
		}
		return output.(uint64) == state.(uint64), state
	},
	DescribeOperation: func(input, output any) string {
		in := input.(registerInput)
		if in.write {
			return fmt.Sprintf("write %d of %d", in.value, in.key)
		}
		return fmt.Sprintf("read %v of %d", output, in.key)
	},
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

// register writes or reads one register through a mount.
func (h *history) register(client int, mnt string, in registerInput) {
	path := filepath.Join(mnt, fmt.Sprint("register-", in.key))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return // nothing was done
	}
	defer f.Close()
	call := h.now()
	var value uint64
	err = func() error {
		var b [8]byte
		if in.write {
			binary.LittleEndian.PutUint64(b[:], in.value)
			_, err = f.WriteAt(b[:], 0)
			return err
		}
		_, err = f.ReadAt(b[:], 0)
		value = binary.LittleEndian.Uint64(b[:])
		return err
	}()
	ret := h.now()
	if err != nil {
		h.unknown.Add(1)
		if !in.write {
			return
		}
		ret = math.MaxInt64 // it may be done at any later time
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Output: value, Call: call, Return: ret})
}

// appendLine appends a line that says whose and which it is.
func (h *history) appendLine(mnt, line string) bool {
	f, err := os.OpenFile(filepath.Join(mnt, "log"), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(line)
		err = errors.Join(err, f.Close())
	}
	return err == nil
}

// rename makes a file, writes its name into it, and renames it.
func (h *history) rename(mnt, name string) bool {
	path := filepath.Join(mnt, "files", name)
	return os.WriteFile(path+".tmp", []byte(name), 0o644) == nil && os.Rename(path+".tmp", path) == nil
}

// count raises a number in a file under a lock.
func (h *history) count(mnt string) bool {
	f, err := os.OpenFile(filepath.Join(mnt, "counter"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false // somebody else has it, or nobody can tell
	}
	var b [8]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return false
	}
	binary.LittleEndian.PutUint64(b[:], binary.LittleEndian.Uint64(b[:])+1)
	_, err = f.WriteAt(b[:], 0)
	return err == nil
}

func TestChaos(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", *seed)
	nodes := newNodes(t, *size, "cache=strict", "g1", "g2")
	first := nodes[0].mnt
	for k := range registers {
		if err := os.WriteFile(filepath.Join(first, fmt.Sprint("register-", k)), make([]byte, 8), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"log", "counter"} {
		if err := os.WriteFile(filepath.Join(first, name), make([]byte, 8)[:len(name)/7*8], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(first, "files"), 0o755); err != nil {
		t.Fatal(err)
	}

	h := &history{start: time.Now()}
	stop := make(chan struct{})
	var programs sync.WaitGroup
	var mu sync.Mutex
	lines, files := map[string]bool{}, map[string]bool{} // acknowledged
	for c := range 2 * len(nodes) {
		programs.Go(func() {
			r := rand.New(rand.NewPCG(*seed, uint64(c)))
			mnt := nodes[c%len(nodes)].mnt
			for i := uint64(1); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("%d-%d", c, i)
				switch r.IntN(8) {
				case 0, 1:
					h.register(c, mnt, registerInput{r.IntN(registers), true, uint64(c)<<32 | i})
				case 2, 3, 4:
					h.register(c, mnt, registerInput{key: r.IntN(registers)})
				case 5:
					if h.appendLine(mnt, name+"\n") {
						h.appended.Add(1)
						mu.Lock()
						lines[name] = true
						mu.Unlock()
					} else {
						h.unknown.Add(1)
					}
				case 6:
					if h.rename(mnt, name) {
						h.renamed.Add(1)
						mu.Lock()
						files[name] = true
						mu.Unlock()
					} else {
						h.unknown.Add(1)
					}
				case 7:
					if h.count(mnt) {
						h.locked.Add(1)
					}
				}
				time.Sleep(5 * time.Millisecond)
				for unix.Access(mnt, unix.F_OK) != nil { // its daemon is down
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
					}
				}
			}
		})
	}
	suffer(t, nodes, rand.New(rand.NewPCG(*seed, 99)), h.start.Add(*duration))
	close(stop)
	programs.Wait()
	waitVoters(t, nodes, len(nodes))
	t.Logf("acknowledged: %d operations on registers, %d appends, %d files, %d counts; %d of unknown outcome",
		len(h.ops), h.appended.Load(), h.renamed.Load(), h.locked.Load(), h.unknown.Load())

	if res, _ := porcupine.CheckOperationsVerbose(registerModel, h.ops, 60*time.Second); res != porcupine.Ok {
		t.Errorf("the history of the registers is not linearizable: %v", res)
	}
	for _, n := range nodes {
		log, err := os.ReadFile(filepath.Join(n.mnt, "log"))
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]int{}
		for line := range bytes.Lines(log) {
			seen[string(bytes.TrimSuffix(line, []byte("\n")))]++
		}
		for line, times := range seen {
			if times != 1 {
				t.Errorf("node %d: %q was appended %d times", n.i, line, times)
			}
		}
		for line := range lines {
			if seen[line] == 0 {
				t.Errorf("node %d: %q was appended and is not there", n.i, line)
			}
		}
		for name := range files {
			if b, err := os.ReadFile(filepath.Join(n.mnt, "files", name)); err != nil || string(b) != name {
				t.Errorf("node %d: file %s: %q, %v", n.i, name, b, err)
			}
		}
		b, err := os.ReadFile(filepath.Join(n.mnt, "counter"))
		if err != nil || len(b) != 8 {
			t.Fatalf("node %d: the counter: %d bytes, %v", n.i, len(b), err)
		}
		if got := int64(binary.LittleEndian.Uint64(b)); got < h.locked.Load() {
			t.Errorf("node %d: the counter says %d, but %d were counted under the lock", n.i, got, h.locked.Load())
		}
	}
	settle(t, nodes)
}

// suffer does one thing after the other to the nodes, never to two at once, so that there is always a majority.
func suffer(t *testing.T, nodes []*node, r *rand.Rand, until time.Time) {
	for time.Now().Before(until) {
		n := nodes[r.IntN(len(nodes))]
		other := nodes[(n.i+r.IntN(len(nodes)-1))%len(nodes)]
		for_ := time.Duration(300+r.IntN(2000)) * time.Millisecond
		var what string
		var err error
		switch r.IntN(4) {
		case 0:
			what = "killed"
			err = n.kill(for_)
		case 1:
			what = "stopped"
			err = n.signal(syscall.SIGSTOP)
			time.Sleep(for_)
			err = errors.Join(err, n.signal(syscall.SIGCONT))
		case 2:
			what = "cut off"
			err = n.net.cut(n.i)
			time.Sleep(for_)
			err = errors.Join(err, n.net.heal(n.i))
		case 3:
			what = fmt.Sprintf("muted towards node %d", other.i)
			err = n.net.mute(n.i, other.i)
			time.Sleep(for_)
			err = errors.Join(err, n.net.unmute(n.i, other.i))
		}
		if err != nil {
			t.Errorf("node %d %s: %v", n.i, what, err)
			return
		}
		t.Logf("node %d was %s for %v", n.i, what, for_)
		time.Sleep(time.Duration(200+r.IntN(800)) * time.Millisecond)
	}
}
