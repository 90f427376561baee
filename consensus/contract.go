// Package consensus hosts many Raft groups in one process. A command is bytes;
// what it means is the state machine's business.
//
// A Manager owns the groups of a node. A Group with a single voter is stepped by
// whoever calls it: Propose appends to the log, applies and returns, all on the
// caller's goroutine, under the group's lock. Where it also syncs (SyncAlways), one
// caller does it for all that come together (together.go).
//
// Goroutines: the manager's syncer (Manager.syncLoop), which makes durable what
// nobody asked to be; it ends in Manager.Close.
//
// Lock order:
//
//	Manager.mu            the table of groups; never held over I/O or a group's lock
//	Group.mu              one group's steps; held over appending and applying
//	  LogStore's own      held over one write; Sync runs outside Group.mu
package consensus

import (
	"errors"
	"fmt"

	"vdefs/consensus/logstore"
)

// GroupID names a group: 1 to 32 characters of a-z, 0-9, '-' and '_', the first
// one a letter.
type GroupID string

// DefaultGroup is the group that always exists.
const DefaultGroup GroupID = "default"

// Validate returns an error when id is not a valid name.
func (id GroupID) Validate() error {
	ok := len(id) >= 1 && len(id) <= 32 && id[0] >= 'a' && id[0] <= 'z'
	for i := 0; ok && i < len(id); i++ {
		c := id[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
	}
	if !ok {
		return fmt.Errorf("consensus: %q is not a group's name: use 1 to 32 of a-z, 0-9, - and _, the first a letter", string(id))
	}
	return nil
}

// StateMachine is the replicated state of one group.
//
// The group calls Apply in the order of the log and never concurrently with
// itself. AppliedIndex is called once, when the group is opened.
type StateMachine interface {
	// Apply applies the committed command of entry index. What it does must follow
	// from cmd and the state alone, as every replica does it.
	//
	// cmd is never changed by anyone and may be kept. local is what the proposer on
	// this node handed to Propose together with cmd; it is nil when the entry is
	// replayed or was proposed elsewhere. result goes to the proposer on this node.
	//
	// An error means that the state machine cannot go on (its disk failed): the
	// group stops, and every later call fails with that error. A command that is
	// merely refused is a result, not an error.
	//
	// Apply is called with the group's lock held: it must not call the group, but
	// may call Manager.SyncAll, Group.DurableIndex and Group.Compact.
	//
	// Indexes have gaps: the log also holds entries of its own.
	Apply(index, term uint64, cmd []byte, local any) (result any, err error)

	// AppliedIndex returns the index of the last entry whose effects the state
	// machine holds, 0 for none. Entries up to there are never given to Apply.
	// What it holds of later ones it must have forgotten.
	AppliedIndex() uint64
}

// Consolidator is what a StateMachine implements whose commands may mean something
// on this node alone (ProposeAlone).
type Consolidator interface {
	// Consolidate makes everything that was applied durable, so that no entry up to
	// AppliedIndex is needed any more. It is called before the group gets its first
	// other member, between two calls of Apply and with the group's lock held: the
	// log then begins anew, and who joins starts from a snapshot.
	Consolidate() error
}

// LogStore keeps a group's log. Its contract stands with the interface.
type LogStore = logstore.LogStore

var (
	// ErrClosed is returned by every call on a closed group or manager.
	ErrClosed = errors.New("consensus: closed")
	// ErrStopped is wrapped by what every call on a group returns after its log or
	// state machine failed; the cause is wrapped too.
	ErrStopped = errors.New("consensus: the group has stopped")
	// ErrGroupExists refuses to create a group that exists.
	ErrGroupExists = errors.New("consensus: the group exists already")
	// ErrGroupNotFound is returned for a group that is not on this node.
	ErrGroupNotFound = errors.New("consensus: no such group on this node")
	// ErrGroupOpen refuses to open a group twice.
	ErrGroupOpen = errors.New("consensus: the group is open already")
	// ErrLogGap refuses to open a group whose log and state do not fit together.
	ErrLogGap = errors.New("consensus: log and state do not fit together")
	// ErrWrongNode refuses a directory that belongs to another node.
	ErrWrongNode = errors.New("consensus: the group's directory belongs to another node")
	// ErrDropped is returned for a proposal that was certainly not applied and never
	// will be: it may be made again.
	ErrDropped = errors.New("consensus: the proposal was dropped")
	// ErrUnknownOutcome is returned for a proposal that may or may not be applied.
	ErrUnknownOutcome = errors.New("consensus: the outcome of the proposal is not known")
	// ErrNotAlone refuses a command that only this node could apply.
	ErrNotAlone = errors.New("consensus: the group has other members")
	// ErrBadMembership refuses a change of membership that cannot be made: one that
	// leaves no voter, or comes in the middle of another.
	ErrBadMembership = errors.New("consensus: the membership cannot be changed so")
	// ErrTooLarge refuses a command larger than MaxCommandSize.
	ErrTooLarge = logstore.ErrTooLarge
	// ErrNotAppended is wrapped when a proposal in a group that is alone was refused
	// without a trace, as the disk is full. The group goes on.
	ErrNotAppended = logstore.ErrNotAppended
	// ErrDiskFull refuses a proposal on a node of several whose log has no room: this
	// call did nothing. It can be made on another node, or later here.
	ErrDiskFull = errors.New("consensus: the disk that holds the log is full")
	// ErrCorrupt is wrapped when a group's files are damaged.
	ErrCorrupt = logstore.ErrCorrupt
)

// MaxCommandSize is the largest command, in bytes.
const MaxCommandSize = logstore.MaxDataSize - tagSize
