package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// statusCollector makes metrics of the same facts as `vde status` shows, read when they are asked for.
type statusCollector struct{ d *daemon }

var (
	metricInfo     = metric("info", "Always 1; the labels tell what is mounted where.", "store", "mountpoint", "uuid", "version")
	metricSize     = metric("size_bytes", "Size of the filesystem.")
	metricUsed     = metric("used_bytes", "Bytes that files take.")
	metricInodes   = metric("inodes", "Inodes in use.")
	metricSums     = metric("checksum_errors_total", "Reads that met a block which fails its checksum.")
	metricStopped  = metric("stopped", "1 when the store has stopped after a disk error.")
	metricRequests = metric("requests_total", "Requests of the kernel.", "kind")
	metricErrors   = metric("request_errors_total", "Requests answered with an error, names that do not exist included.")
	metricRead     = metric("read_bytes_total", "Bytes read by requests, not by the kernel's cache.")
	metricWritten  = metric("written_bytes_total", "Bytes written by requests.")
	metricPNG      = metric("png_files_total", "PNG files that were made smaller.")
	metricPNGSaved = metric("png_saved_bytes_total", "Bytes that they take less.")
	metricKnown    = metric("known_inodes", "Inodes that the kernel may hold.")
	metricOpen     = metric("open_files", "Files that are open.")
	metricApplied  = metric("group_applied_index", "Index of the last applied log entry.", "group")
	metricDurable  = metric("group_durable_index", "Index of the last durable log entry.", "group")
	metricLast     = metric("group_last_index", "Index of the last log entry.", "group")
	metricFirst    = metric("group_first_index", "Index of the first log entry that is kept.", "group")
	metricTerm     = metric("group_term", "Raft term.", "group")
)

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("vde_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c statusCollector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	s := c.d.status()
	gauge(metricInfo, 1, s.Store, s.Mountpoint, s.UUID, s.Version)
	gauge(metricSize, float64(s.Size))
	gauge(metricUsed, float64(s.Used))
	gauge(metricInodes, float64(s.Inodes))
	counter(metricSums, s.ChecksumErrors)
	stopped := 0.0
	if s.Error != "" {
		stopped = 1
	}
	gauge(metricStopped, stopped)
	if m := s.Mount; m != nil {
		for kind, n := range m.Requests {
			counter(metricRequests, n, kind)
		}
		counter(metricErrors, m.Errors)
		counter(metricRead, m.BytesRead)
		counter(metricWritten, m.BytesWritten)
		gauge(metricKnown, float64(m.KnownInodes))
		gauge(metricOpen, float64(m.OpenFiles))
	}
	if p := s.PNG; p != nil {
		counter(metricPNG, p.Done)
		counter(metricPNGSaved, p.BytesBefore-p.BytesAfter)
	}
	for _, g := range s.Groups {
		gauge(metricApplied, float64(g.Applied), g.Name)
		gauge(metricDurable, float64(g.Durable), g.Name)
		gauge(metricLast, float64(g.Last), g.Name)
		gauge(metricFirst, float64(g.First), g.Name)
		gauge(metricTerm, float64(g.Term), g.Name)
	}
}

// metrics is everything that GET /metrics tells.
func (d *daemon) metrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(statusCollector{d}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}
