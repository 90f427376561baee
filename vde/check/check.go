package check

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"vdefs/consensus/logstore"
	"vdefs/vde"
	"vdefs/vde/layout"
)

// Names in a store directory.
const (
	infoName  = "vde.json"
	imageName = "disk.vde"
	metaName  = "meta"
	lockName  = "LOCK"
	raftName  = "raft"
)

// Options say what Run does.
type Options struct {
	FS     vfs.FS // nil: the operating system's
	Data   bool   // read every block in use and compare it with its checksum
	Repair bool   // repair what can be repaired; without it not one byte of the store changes
	// Replay opens the store in dir through fs, applies what its logs hold beyond the metadata, and closes it cleanly:
	// a mount without a mount point. nil: the log is not replayed (see the package comment for what that means).
	Replay func(dir string, fs vfs.FS) error
	// Rehearse does so for a node of a cluster with other members, whether entries were committed or not, and without closing it for
	// others to go on with: it is only given a file system that keeps every change in memory. nil: such a log is not replayed.
	Rehearse func(dir string, fs vfs.FS) error
	// NewLog makes the log of a group that only this node has, in place of one that is damaged, as consensus.NewLog. nil: a damaged
	// log is not repaired.
	NewLog func(fs vfs.FS, dir string, node, applied, appliedTerm, term uint64, next []logstore.Entry) error
	// OnlyVoter tells whether what is left of the hard state in the directory of a group's log has nobody but node in it, as consensus.OnlyVoter.
	// nil: a damaged log of a node of a cluster is not repaired.
	OnlyVoter func(fs vfs.FS, dir string, node uint64) bool
	// DropLog has Repair go on without the part of a damaged log that cannot be read, and without what stands behind it: what
	// was written last. It is for a store that has no other copy.
	DropLog bool
	// Progress is told how far the work described by what has come, now and then. nil: nobody is.
	Progress func(done, total uint64, what string)
	Logger   logrus.FieldLogger // nil: nobody is told of details
}

// Finding is one thing that is wrong.
type Finding struct {
	Kind Kind   `json:"kind"`
	What string `json:"what"` // names the thing, what it is and what it should be
	// Path is the file that a bad block belongs to, from the root of the filesystem on: one of its names, with "?" for what is not known of
	// it. "": it has no name, or the finding is of no file.
	Path     string `json:"path,omitempty"`
	Repaired bool   `json:"repaired"`
	// Repairable: Options.Repair repairs it, or has tried to.
	Repairable bool `json:"repairable"`
	// Droppable: Options.DropLog repairs it, and what cannot be read is lost.
	Droppable bool `json:"droppable,omitempty"`
}

// Report is what Run found.
type Report struct {
	UUID     string    `json:"uuid"`
	Findings []Finding `json:"findings"`
	// More counts findings beyond the first maxFindings, which are not listed.
	More uint64 `json:"more,omitempty"`
	// Notes are facts that are no faults.
	Notes []string `json:"notes,omitempty"`

	// Clean: the store was closed properly when it was last in use.
	Clean bool `json:"clean"`
	// Applied is the log entry that the metadata stands at, of group 0; LogEntries are the commands of all logs behind what the metadata
	// has of them, which the next mount applies (or Replay has applied).
	Applied    uint64 `json:"applied"`
	LogEntries uint64 `json:"log_entries"`

	Inodes   uint64 `json:"inodes"`
	Files    uint64 `json:"files"`
	Dirs     uint64 `json:"dirs"`
	Symlinks uint64 `json:"symlinks"`
	Special  uint64 `json:"special"` // fifos, sockets, device nodes
	Orphans  uint64 `json:"orphans"` // without a name, to be freed
	Names    uint64 `json:"names"`
	Xattrs   uint64 `json:"xattrs"`
	Extents  uint64 `json:"extents"`
	Facts    uint64 `json:"facts"` // of groups

	Blocks        uint64 `json:"blocks"` // data blocks of the image
	UsedBlocks    uint64 `json:"used_blocks"`
	SharedBlocks  uint64 `json:"shared_blocks"`
	CheckedBlocks uint64 `json:"checked_blocks"` // compared with their checksums
	BadBlocks     uint64 `json:"bad_blocks"`
}

// Left counts the findings that are not repaired.
func (r *Report) Left() uint64 {
	n := r.More
	for _, f := range r.Findings {
		if !f.Repaired {
			n++
		}
	}
	return n
}

// maxPasses bounds how often a store is looked at while it is repaired: more than all stages twice.
const maxPasses = 24

// Run checks the store in dir. An error means that it could not be checked: vde.ErrNotAStore, vde.ErrStoreInUse,
// *layout.VersionError, or that a file could not be read or (Repair) written. Whatever is wrong with the store itself
// is in the report.
func Run(dir string, o Options) (Report, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		o.Logger = quiet
	}
	if o.Progress == nil {
		o.Progress = func(uint64, uint64, string) {}
	}
	r := &run{dir: dir, o: o, report: Report{Findings: []Finding{}}, seen: map[Finding]bool{}}
	if err := r.lock(); err != nil {
		return Report{}, err
	}
	err := r.run()
	if err = errors.Join(err, r.unlock()); err != nil {
		return Report{}, err
	}
	return r.report, nil
}

// run is one call of Run.
type run struct {
	dir    string
	o      Options
	held   io.Closer // the store's lock; nil on a file system that cannot be written
	info   layout.Info
	report Report
	seen   map[Finding]bool // findings of the report that are not repaired

	// lost is the finding about the log of the default group, if that is damaged; nil otherwise.
	lost *finding

	// shared: other nodes hold the same, so what is the same on all of them is not repaired here.
	shared bool

	// restricted: the log holds more than the state, so no repair may change what its replay does.
	restricted bool
}

// lock takes the store's lock, so that nobody opens it meanwhile.
func (r *run) lock() error {
	f := r.o.FS
	// Who may not read the store may not lock it either: that is said as what it is, and not as a store in use.
	if _, err := vde.ReadInfo(f, r.dir); errors.Is(err, vde.ErrNotAStore) || errors.Is(err, unix.EACCES) {
		return err
	}
	held, err := f.Lock(f.PathJoin(r.dir, lockName))
	switch {
	case err == nil:
		r.held = held
	case errors.Is(err, unix.EROFS) && !r.o.Repair:
		// Nobody can have it open for writing either.
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("store %s: %w", r.dir, vde.ErrStoreInUse)
	default:
		return fmt.Errorf("store %s: %w", r.dir, err)
	}
	return nil
}

func (r *run) unlock() error {
	if r.held == nil {
		return nil
	}
	err := r.held.Close()
	r.held = nil
	return err
}

func (r *run) run() (err error) {
	if ok, err := r.readInfo(); err != nil || !ok {
		return err
	}
	r.report.UUID = r.info.UUID
	fs := r.o.FS
	if r.shared, err = r.hasOthers(); err != nil {
		return err
	}
	pending, applied, err := r.readLogs()
	if err != nil {
		return err
	}
	r.report.LogEntries, r.report.Applied = pending, applied
	if r.lost != nil {
		renewed, err := r.judgeLog()
		if err != nil {
			return err
		}
		if renewed {
			if pending, _, err = r.readLogs(); err != nil {
				return err
			}
			r.report.LogEntries = pending
		}
	}
	if pending > 0 {
		scratch, err := r.replay(pending)
		if err != nil {
			return err
		}
		if scratch != nil {
			defer func() { err = errors.Join(err, scratch.close()) }()
			fs = scratch
		}
	}
	if r.o.Repair {
		return r.repair()
	}
	p, err := r.pass(fs, r.o.Data)
	if err != nil {
		return err
	}
	r.take(p)
	for _, f := range p.findings {
		r.find(f)
	}
	return nil
}

// replay has the log applied to the state, if that can be done: with Repair to the store itself, without to the scratch
// that it returns. It returns nil if the store is to be judged as it is.
func (r *run) replay(pending uint64) (*scratchFS, error) {
	r.restricted = true
	replay := r.o.Replay
	if r.shared {
		replay = r.o.Rehearse
	}
	if replay == nil || r.shared && r.o.Repair {
		r.note("the log holds %d entries beyond the metadata; the next mount applies them", pending)
		return nil, nil
	}
	refuse := func(why any) {
		r.find(finding{Finding: Finding{Kind: KindReplay, What: fmt.Sprintf("the log holds %d entries beyond the metadata, which cannot be applied: %v", pending, why)}})
	}
	p, err := r.pass(r.o.FS, false)
	if err != nil {
		return nil, err
	}
	for _, f := range p.findings {
		// Entries would give out numbers that are in use, or meet what cannot be read.
		if f.Kind == KindSequence || f.Kind == KindMetadata {
			refuse(f.What)
			return nil, nil
		}
	}
	scratch := newScratchFS(r.o.FS)
	err = replay(r.dir, scratch)
	if err != nil && r.o.Repair {
		// What keeps the log from being applied may be among what can be repaired before.
		if err := r.repair(); err != nil {
			return nil, errors.Join(err, scratch.close())
		}
		if err := scratch.close(); err != nil {
			return nil, err
		}
		scratch = newScratchFS(r.o.FS)
		err = r.o.Replay(r.dir, scratch)
	}
	if err != nil {
		refuse(err)
		return nil, scratch.close()
	}
	r.restricted = false
	if !r.o.Repair {
		what := "as after the next mount, which applies them"
		if r.shared {
			what = "with them, though only the other nodes can tell which of them count"
		}
		r.note("the log holds %d entries beyond the metadata; judged %s", pending, what)
		return scratch, nil
	}
	// It works.
	if err := errors.Join(scratch.close(), r.unlock()); err != nil {
		return nil, err
	}
	if err := r.o.Replay(r.dir, r.o.FS); err != nil {
		return nil, fmt.Errorf("apply the log of store %s: %w", r.dir, err)
	}
	r.note("the %d entries that the log held beyond the metadata were applied", pending)
	return nil, r.lock()
}

// repair looks and repairs until nothing is left that it can repair.
func (r *run) repair() error {
	for n := 0; ; n++ {
		p, err := r.pass(r.o.FS, r.o.Data && n == 0)
		if err != nil {
			return err
		}
		r.take(p)
		if n > 0 {
			r.settle(p)
		}
		for _, f := range p.findings {
			r.find(f)
		}
		fixes := p.nextStage(r.restricted)
		if len(fixes) == 0 || n == maxPasses {
			return nil
		}
		if err := r.apply(p, fixes); err != nil {
			return fmt.Errorf("repair store %s: %w", r.dir, err)
		}
	}
}

// take notes the counts of a pass, which replace those of an earlier one.
func (r *run) take(p *pass) {
	old, c := &r.report, p.counts
	c.UUID, c.Findings, c.Applied, c.LogEntries = old.UUID, old.Findings, old.Applied, old.LogEntries
	for _, n := range old.Notes {
		if !slices.Contains(c.Notes, n) {
			c.Notes = append(c.Notes, n)
		}
	}
	// Data is read in the first pass only.
	c.CheckedBlocks += old.CheckedBlocks
	c.BadBlocks += old.BadBlocks
	r.report = c
}

// settle marks what was found earlier and is not found any more as repaired.
func (r *run) settle(p *pass) {
	if p.counts.More > 0 {
		return // what this pass does not list may be there all the same
	}
	left := map[Finding]bool{}
	for _, f := range p.findings {
		left[f.Finding] = true
	}
	for i := range r.report.Findings {
		f := &r.report.Findings[i]
		switch f.Kind {
		case KindBlock, KindLog, KindReplay:
			continue // these are not looked for again
		}
		if was := (Finding{Kind: f.Kind, What: f.What, Repairable: f.Repairable}); !f.Repaired && !left[was] {
			f.Repaired = true
			delete(r.seen, was)
			r.o.Logger.WithField("kind", f.Kind).Info("repaired: " + f.What)
		}
	}
}

// find adds a finding to the report, if it is new.
func (r *run) find(f finding) {
	if r.seen[f.Finding] {
		return
	}
	if len(r.report.Findings) >= maxFindings {
		r.report.More++
		return
	}
	r.seen[f.Finding] = true
	r.report.Findings = append(r.report.Findings, f.Finding)
}

func (r *run) note(format string, args ...any) {
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}
