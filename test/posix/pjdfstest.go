package posix

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// PjdfstestDir names a built checkout of pjdfstest (github.com/pjd/pjdfstest); it takes root, perl and some minutes.
const PjdfstestDir = "VDE_PJDFSTEST"

// Pjdfstest runs pjdfstest in a directory that mount makes.
func Pjdfstest(t *testing.T, mount func() string) {
	suite := os.Getenv(PjdfstestDir)
	if suite == "" {
		t.Skipf("set %s to a directory with a built pjdfstest", PjdfstestDir)
	}
	only := os.Getenv(PjdfstestDir + "_ONLY") // a family of tests, like "rename"
	command := command(mount(), "prove", "-j", "8", "-r", filepath.Join(suite, "tests", only))
	output, err := command.CombinedOutput()
	report := regexp.MustCompile(`(?m)^.*\.\. ok\n`).ReplaceAll(output, nil)
	if err != nil {
		t.Errorf("%v\n%s", err, report)
	} else {
		t.Logf("%s", report)
	}
}
