package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// An SQLite database takes 10,000 durable transactions, in both journal modes, and is whole after mounting again.
func TestSQLite(t *testing.T) {
	need(t, "sqlite3")
	d := mounted(t, "512M")
	for _, mode := range []struct {
		journal      string
		transactions int
	}{{"wal", 10_000}, {"delete", 500}} {
		database := d.path(mode.journal + ".db")
		var script strings.Builder
		fmt.Fprintf(&script, "PRAGMA journal_mode=%s; PRAGMA synchronous=FULL;\nCREATE TABLE t(id INTEGER PRIMARY KEY, value TEXT, sum INTEGER);\n", mode.journal)
		for i := range mode.transactions {
			fmt.Fprintf(&script, "BEGIN; INSERT INTO t VALUES(%d, 'value %d %s', %d); COMMIT;\n", i, i, strings.Repeat("x", i%200), i*7)
		}
		start := time.Now()
		cmd := exec.Command("sqlite3", "-bail", database)
		cmd.Stdin = strings.NewReader(script.String())
		if _, stderr, code := runProgram(cmd); code != 0 {
			t.Fatalf("%s: sqlite3: %d, %s", mode.journal, code, stderr)
		}
		t.Logf("%s: %.0f transactions/s", mode.journal, float64(mode.transactions)/time.Since(start).Seconds())
	}
	check := func() {
		t.Helper()
		for database, want := range map[string]string{"wal.db": "10000|349965000", "delete.db": "500|873250"} {
			got := d.sh(fmt.Sprintf("sqlite3 $MNT/%s 'PRAGMA integrity_check; SELECT count(*), sum(sum) FROM t'", database))
			if got != "ok\n"+want+"\n" {
				t.Errorf("%s: %q, want ok and %s", database, got, want)
			}
		}
	}
	check()
	d.remount()
	check()
}
