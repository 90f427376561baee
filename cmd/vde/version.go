package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// releaseVersion is set by the linker (-X main.releaseVersion=v1.2.3); it is empty in a build without.
var releaseVersion string

// versionReport is what `vde version --json` prints.
type versionReport struct {
	Version      string `json:"version"`
	StoreFormats []int  `json:"store_formats"` // oldest and newest that this program reads
	Go           string `json:"go"`
	Platform     string `json:"platform"`
}

// version names the build: the release, else the commit it was made from.
func version() string {
	if releaseVersion != "" {
		return releaseVersion
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	var revision, modified string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "devel-" + revision + modified
}

// versionLine is what `vde version` and `vde --version` print.
func versionLine() string {
	oldest, newest := storeFormats()
	return fmt.Sprintf("vde %s (%s, %s/%s), reads stores of format %d to %d\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, oldest, newest)
}

func newVersionCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Print the version of this program and of the stores it reads",
		Args:              exactArgs(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.json {
				oldest, newest := storeFormats()
				return printJSON(cmd.OutOrStdout(), versionReport{version(), []int{oldest, newest}, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH})
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), versionLine())
			return err
		},
	}
	a.addJSONFlag(cmd)
	return cmd
}
