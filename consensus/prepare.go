package consensus

// ReplayPreparer is what a state machine implements that must see all commands that are about to be replayed before
// the first of them is applied: because they refer to resources, outside of the log, that replaying earlier ones must
// leave alone. The call of ReplayDone also tells it when what it applies is no longer a replay.
type ReplayPreparer interface {
	// PrepareReplay is called for every command after AppliedIndex, in order, when the group is opened. cmd is valid as
	// with StateMachine.Apply. An error keeps the group from being opened.
	PrepareReplay(index uint64, cmd []byte) error
	// ReplayDone is called when the group has been opened, before anything else is applied. What was applied since
	// AppliedIndex was asked was in the log, durable, before.
	ReplayDone()
}
