package replica

// Status is what an open volume tells of itself; sizes in bytes.
type Status struct {
	Store          string        `json:"store"`
	UUID           string        `json:"uuid"`
	NodeID         uint64        `json:"node_id"`
	FormatVersion  uint32        `json:"format_version"`
	ReadOnly       bool          `json:"read_only"`
	Size           uint64        `json:"size"` // of all data blocks
	Used           uint64        `json:"used"`
	Inodes         uint64        `json:"inodes"`
	ChecksumErrors uint64        `json:"checksum_errors"`
	Repaired       uint64        `json:"repaired"`        // bad blocks that were replaced by what another node has
	Error          string        `json:"error,omitempty"` // why the store stopped
	Groups         []GroupStatus `json:"groups"`
}

// GroupStatus describes a group on this node.
type GroupStatus struct {
	Name    string `json:"name"`
	Slot    int    `json:"slot"`
	State   string `json:"state"`
	Leader  uint64 `json:"leader"` // node id
	Term    uint64 `json:"term"`
	First   uint64 `json:"first"` // indexes of the log
	Last    uint64 `json:"last"`
	Durable uint64 `json:"durable"`
	Applied uint64 `json:"applied"`
	Error   string `json:"error,omitempty"`
}

// Status describes the volume.
func (v *Volume) Status() Status {
	info := v.eng.Info()
	total, free := v.eng.Usage()
	s := Status{
		Store: v.dir, UUID: info.UUID, NodeID: info.NodeID, FormatVersion: info.FormatVersion, ReadOnly: v.readOnly.Load(),
		Size: total * 4096, Used: (total - free) * 4096, ChecksumErrors: v.eng.ChecksumErrors(),
	}
	if err := v.eng.Err(); err != nil {
		s.Error = err.Error()
	}
	if v.node != nil {
		if err := v.node.removed(); err != nil && s.Error == "" {
			s.Error = (*v.node.gone.Load()).Error()
		}
		s.Repaired = v.node.repaired.Load()
	}
	for _, g := range v.all() {
		st := g.Status()
		gs := GroupStatus{
			Name: string(st.Group), Slot: int(g.slot), State: st.State, Leader: st.Leader, Term: st.Term,
			First: st.First, Last: st.Last, Durable: st.Durable, Applied: st.Applied,
		}
		if st.Err != nil {
			gs.Error = st.Err.Error()
		}
		s.Groups = append(s.Groups, gs)
		if state, ok := v.eng.Group(g.slot); ok {
			s.Inodes += state.Inodes
		}
	}
	return s
}
