package replica

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"vdefs/fs/command"
	"vdefs/vde/meta"
)

// later does what the caller of an operation need not wait for, as it is certain to be done: second halves of operations on two groups, which
// the leaders do if this mount dies, and the change times that follow from them. Many are one proposal.
// Every later call on the inode through this mount waits for them first, so nobody here sees a file without them; on other mounts a
// link count or a time may be old for a moment.
type later struct {
	v     *Volume
	n     atomic.Int64  // sum of pending
	wake  chan struct{} // a token: there is something to do
	hurry chan struct{} // a token: somebody waits for it

	mu      sync.Mutex
	pending map[meta.Ino]int           // not done yet, by inode; guarded by mu
	next    map[uint16]*command.Finish // not proposed yet, by slot; guarded by mu
	done    sync.Cond                  // on mu: some are done
}

const (
	laterDelay = 10 * time.Millisecond // how long the first of a batch waits for others
	laterMax   = 2048                  // how many may be under way
)

func newLater(v *Volume) *later {
	l := &later{v: v, pending: map[meta.Ino]int{}, next: map[uint16]*command.Finish{}, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
	l.done.L = &l.mu
	return l
}

// unname takes a name from a file, which the command tx has removed in the group of the name.
func (l *later) unname(ino meta.Ino, tx command.TxID) {
	l.add(ino, func(f *command.Finish) { f.Unnamed = append(f.Unnamed, command.Unname{Tx: tx, Ino: ino}) })
}

// changed gives a file a change time.
func (l *later) changed(ino meta.Ino, at meta.Time) {
	l.add(ino, func(f *command.Finish) { f.Changed = append(f.Changed, command.Changed{Ino: ino, Ctime: at}) })
}

// add notes something to be done; it waits while too much is.
func (l *later) add(ino meta.Ino, put func(*command.Finish)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.n.Load() >= laterMax {
		poke(l.hurry)
		l.done.Wait()
	}
	f := l.next[ino.Group()]
	if f == nil {
		f = &command.Finish{}
		l.next[ino.Group()] = f
	}
	put(f)
	l.pending[ino]++
	l.n.Add(1)
	poke(l.wake)
}

// wait returns when nothing of an inode is to be done any more.
func (l *later) wait(ino meta.Ino) {
	if l.n.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.pending[ino] > 0 {
		poke(l.hurry)
		l.done.Wait()
	}
}

// waitAll returns when nothing is to be done.
func (l *later) waitAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.n.Load() > 0 {
		poke(l.hurry)
		l.done.Wait()
	}
}

// run works until stop is closed.
func (l *later) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-l.wake:
		}
		select {
		case <-stop:
			return
		case <-l.hurry:
		case <-time.After(laterDelay):
		}
		l.flush()
	}
}

// flush proposes what is noted.
func (l *later) flush() {
	l.mu.Lock()
	next := l.next
	l.next = map[uint16]*command.Finish{}
	l.mu.Unlock()
	var groups sync.WaitGroup
	for slot, f := range next {
		groups.Go(func() { l.propose(slot, f) })
	}
	groups.Wait()
}

func (l *later) propose(slot uint16, f *command.Finish) {
	v := l.v
	_, _, err := v.proposeTx(context.Background(), slot, f, nil)
	if err != nil {
		v.log.WithError(err).Warnf("%d removed names are still counted, the leaders see to it; %d renamed files keep their change times", len(f.Unnamed), len(f.Changed))
	}
	inos := make([]meta.Ino, 0, len(f.Unnamed)+len(f.Changed))
	for _, u := range f.Unnamed {
		inos = append(inos, u.Ino)
		if err == nil && v.step("told") == nil {
			v.node.loose.dropped(slot, u.Tx)
		}
	}
	for _, c := range f.Changed {
		inos = append(inos, c.Ino)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ino := range inos {
		if l.pending[ino]--; l.pending[ino] == 0 {
			delete(l.pending, ino)
		}
	}
	l.n.Add(-int64(len(inos)))
	l.done.Broadcast()
}
