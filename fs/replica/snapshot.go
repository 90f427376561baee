package replica

import (
	"io"

	"vdefs/consensus"
)

var _ consensus.Snapshotter = (*machine)(nil)

// Snapshot implements consensus.Snapshotter.
func (m *machine) Snapshot() (io.ReadCloser, error) { return m.eng.Snapshot(m.slot) }

// Restore implements consensus.Snapshotter.
func (m *machine) Restore(index, term uint64, data io.Reader) error {
	if err := m.eng.Restore(m.slot, index, term, data); err != nil {
		return err
	}
	if m.v.node != nil {
		m.v.node.restored()
	}
	return nil
}
