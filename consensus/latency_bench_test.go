package consensus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"vdefs/consensus/transport"
)

// certificates are those of the nodes 1 to n.
func certificates(t testing.TB, n int) []*tls.Config {
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	make1 := func(tmpl, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		if signer == nil {
			parent, signer = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
		must(err)
		cert, err := x509.ParseCertificate(der)
		must(err)
		return cert, key
	}
	from, to := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	root, rootKey := make1(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a cluster"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	pool := x509.NewCertPool()
	pool.AddCert(root)
	var all []*tls.Config
	for id := range uint64(n) {
		cert, key := make1(&x509.Certificate{
			SerialNumber: big.NewInt(int64(id) + 2), DNSNames: []string{transport.NodeName(id + 1)}, NotBefore: from, NotAfter: to,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}, root, rootKey)
		all = append(all, &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, RootCAs: pool, ClientCAs: pool,
		})
	}
	return all
}

// syncs is how often the logs of the nodes were made durable.
func syncs(t testing.TB, ms []*Manager) (count uint64) {
	for _, m := range ms {
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(m.metrics.syncSeconds)
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		count += all[0].GetMetric()[0].GetHistogram().GetSampleCount()
	}
	return count
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkThree has three nodes on real files behind loopback TCP with TLS, and
// proposers on the leader or on a follower. Beside the time it reports, for each
// proposal, the syncs and messages of all three nodes together.
func BenchmarkThree(b *testing.B) {
	certs := certificates(b, 3)
	for _, where := range []string{"leader", "follower"} {
		for _, size := range []int{200, 4 << 10, 1 << 20} {
			for _, proposers := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/%d/%d", where, size, proposers), func(b *testing.B) {
					ms := clusterOf(b, clusterOptions{tls: certs})
					gs := replicated(b, ms, DefaultGroup)
					leader := leaderOf(b, gs)
					g := leader
					if where == "follower" {
						g = gs[(slices.Index(gs, leader)+1)%len(gs)]
					}
					cmd := make([]byte, size)
					_, _ = rand.Read(cmd)
					for range 8 { // connections, segments
						if _, err := g.Propose(bg, cmd, nil); err != nil {
							b.Fatal(err)
						}
					}
					sent := func() (n uint64) {
						for _, m := range ms {
							n += m.cfg.Transport.(*transport.TCP).Stats().Sent
						}
						return n
					}
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					synced, said := syncs(b, ms), sent()
					used := cpuTime()
					b.SetBytes(int64(size))
					b.ResetTimer()
					begin := time.Now()
					var left atomic.Int64
					left.Store(int64(b.N))
					var wg sync.WaitGroup
					for range proposers {
						wg.Go(func() {
							for left.Add(-1) >= 0 {
								if _, err := g.Propose(bg, cmd, nil); err != nil {
									b.Error(err)
								}
							}
						})
					}
					wg.Wait()
					took := time.Since(begin)
					b.StopTimer()
					runtime.ReadMemStats(&after)
					n := float64(b.N)
					b.ReportMetric(float64((cpuTime()-used).Microseconds())/n, "cpu-µs/op")
					b.ReportMetric(n/took.Seconds(), "proposals/s")
					b.ReportMetric(float64(syncs(b, ms)-synced)/n, "syncs/op")
					b.ReportMetric(float64(sent()-said)/n, "msgs/op")
					b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/op")
					b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/n/float64(size), "B-alloc/B")
				})
			}
		}
	}
}
