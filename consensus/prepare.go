package consensus

// ReplayPreparer is what a state machine implements that must see all commands that are about to be replayed before
// the first of them is applied: because they refer to resources, outside of the log, that replaying earlier ones must
// leave alone.
type ReplayPreparer interface {
	// PrepareReplay is called for every command after AppliedIndex, in order, when the group is opened. cmd is valid as
	// with StateMachine.Apply. An error keeps the group from being opened.
	PrepareReplay(index uint64, cmd []byte) error
}
