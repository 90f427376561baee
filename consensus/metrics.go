package consensus

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"vdefs/consensus/transport"
)

// metrics are what the manager counts itself; the rest is read from the groups
// when somebody asks.
type metrics struct {
	syncSeconds       prometheus.Histogram
	leaderChanges     *prometheus.CounterVec
	snapshotsSent     *prometheus.CounterVec
	snapshotsReceived *prometheus.CounterVec
	snapshotsFailed   *prometheus.CounterVec
	snapshotBytes     *prometheus.CounterVec
	elections         *prometheus.CounterVec
}

func newMetrics() *metrics {
	group := []string{"group"}
	return &metrics{
		syncSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "vde_raft_sync_seconds", Help: "Time to make a group's log durable.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		leaderChanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vde_raft_leader_changes_total", Help: "Times that this node saw another leader than before."}, group),
		snapshotsSent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vde_raft_snapshots_sent_total", Help: "Snapshots that another node has taken."}, group),
		snapshotsReceived: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vde_raft_snapshots_installed_total", Help: "Snapshots of another node that were installed."}, group),
		snapshotsFailed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vde_raft_snapshots_failed_total", Help: "Snapshots that could not be sent."}, group),
		snapshotBytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vde_raft_snapshot_received_bytes_total", Help: "Bytes of snapshots that arrived."}, group),
		elections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vde_raft_elections_total", Help: "Elections that this node has started, polls before them included."}, group),
	}
}

// groupGauge is one number of a group's Status.
type groupGauge struct {
	desc  *prometheus.Desc
	value func(Status) float64
}

func gauge(name, help string, value func(Status) float64) groupGauge {
	return groupGauge{prometheus.NewDesc("vde_raft_"+name, help, []string{"group"}, nil), value}
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var groupGauges = []groupGauge{
	gauge("term", "The group's term.", func(s Status) float64 { return float64(s.Term) }),
	gauge("leader", "The node that leads the group, 0 if none is known.", func(s Status) float64 { return float64(s.Leader) }),
	gauge("is_leader", "Whether this node leads the group.", func(s Status) float64 { return yes(s.State == "leader") }),
	gauge("stopped", "Whether the group has stopped on this node after a failure.", func(s Status) float64 { return yes(s.Err != nil) }),
	gauge("disk_full", "Whether the log takes nothing now, as the disk is full.", func(s Status) float64 { return yes(s.Full != nil) }),
	gauge("first_index", "The first entry in the log.", func(s Status) float64 { return float64(s.First) }),
	gauge("last_index", "The last entry in the log.", func(s Status) float64 { return float64(s.Last) }),
	gauge("durable_index", "The last entry known to be on this node's disk.", func(s Status) float64 { return float64(s.Durable) }),
	gauge("commit_index", "The last entry known to be committed.", func(s Status) float64 { return float64(s.Commit) }),
	gauge("applied_index", "The last entry applied on this node.", func(s Status) float64 { return float64(s.Applied) }),
	gauge("apply_lag", "Committed entries that are not yet applied on this node.", func(s Status) float64 {
		return float64(s.Commit - min(s.Commit, s.Applied))
	}),
	gauge("waiting_proposals", "Proposals of this node that are not yet answered.", func(s Status) float64 { return float64(s.WaitingProposals) }),
	gauge("waiting_reads", "Reads of this node that are not yet answered.", func(s Status) float64 { return float64(s.WaitingReads) }),
	gauge("append_queue", "Pieces of work that wait for the log.", func(s Status) float64 { return float64(s.AppendQueue) }),
	gauge("apply_queue", "Batches of entries that wait to be applied.", func(s Status) float64 { return float64(s.ApplyQueue) }),
}

var (
	memberLag = prometheus.NewDesc("vde_raft_member_lag", "Entries of the leader, which is this node, that are not known to be on the member's disk.", []string{"group", "member"}, nil)
	badDesc   = prometheus.NewDesc("vde_raft_bad_messages_total", "Messages of other nodes that were refused, as they make no sense.", nil, nil)
	strayDesc = prometheus.NewDesc("vde_raft_stray_messages_total", "Messages for groups that are not open on this node.", nil, nil)

	transportSent     = prometheus.NewDesc("vde_raft_messages_sent_total", "Messages sent to other nodes.", nil, nil)
	transportReceived = prometheus.NewDesc("vde_raft_messages_received_total", "Messages received from other nodes.", nil, nil)
	transportDropped  = prometheus.NewDesc("vde_raft_messages_dropped_total", "Messages not sent: queue full, node unknown or away.", nil, nil)
	transportRefused  = prometheus.NewDesc("vde_raft_refused_total", "Connections and frames that were refused.", nil, nil)
	transportQueued   = prometheus.NewDesc("vde_raft_queued_bytes", "Bytes that wait to be sent.", nil, nil)
)

// Collector returns the manager's metrics. They are read when they are collected.
func (m *Manager) Collector() prometheus.Collector { return collector{m} }

type collector struct{ m *Manager }

func (c collector) own() []prometheus.Collector {
	return []prometheus.Collector{c.m.metrics.syncSeconds, c.m.metrics.leaderChanges, c.m.metrics.snapshotsSent, c.m.metrics.snapshotsReceived,
		c.m.metrics.snapshotsFailed, c.m.metrics.snapshotBytes, c.m.metrics.elections}
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range groupGauges {
		ch <- g.desc
	}
	for _, o := range c.own() {
		o.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{memberLag, badDesc, strayDesc, transportSent, transportReceived, transportDropped, transportRefused, transportQueued} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, g := range c.m.opened() {
		st := g.Status()
		for _, gg := range groupGauges {
			ch <- prometheus.MustNewConstMetric(gg.desc, prometheus.GaugeValue, gg.value(st), string(g.name))
		}
		if !g.Replicated() {
			continue
		}
		for id, p := range g.Progress() {
			if id != c.m.cfg.NodeID {
				ch <- prometheus.MustNewConstMetric(memberLag, prometheus.GaugeValue, float64(st.Last-min(st.Last, p.Match)), string(g.name), strconv.FormatUint(id, 10))
			}
		}
	}
	for _, o := range c.own() {
		o.Collect(ch)
	}
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	counter(badDesc, c.m.badMessages.Load())
	counter(strayDesc, c.m.strayMessages.Load())
	if t, ok := c.m.cfg.Transport.(interface{ Stats() transport.TCPStats }); ok {
		st := t.Stats()
		counter(transportSent, st.Sent)
		counter(transportReceived, st.Received)
		counter(transportDropped, st.Dropped)
		counter(transportRefused, st.Refused)
		ch <- prometheus.MustNewConstMetric(transportQueued, prometheus.GaugeValue, float64(st.QueuedBytes))
	}
}
