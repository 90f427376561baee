package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vdefs/fs/replica"
	"vdefs/vde"
	"vdefs/vde/meta"
)

// scrubReport is what `vde scrub --json` prints. Fields are added, never renamed.
type scrubReport struct {
	Store     string     `json:"store"`
	Blocks    uint64     `json:"blocks"`     // read
	BadBlocks uint64     `json:"bad_blocks"` // of these
	Bad       []badBlock `json:"bad"`        // the first of them
	Seconds   float64    `json:"seconds"`
	// Of the metadata: files that were read, and those of them that are damaged.
	Tables    int             `json:"tables"`
	BadTables []meta.BadTable `json:"bad_tables,omitempty"`
	// Of a store in a cluster: how it compares with the other nodes.
	Compared  uint64      `json:"compared,omitempty"` // files, or parts of large ones, with each other node
	Skipped   uint64      `json:"skipped,omitempty"`  // of these, as they changed all the time or a node did not answer
	Different []different `json:"different,omitempty"`
	DifferAll uint64      `json:"different_all,omitempty"` // how many are, listed or not
}

// different is a file of which another node has something else.
type different struct {
	Path string `json:"path"`
	replica.Difference
}

// badBlock is a block that cannot be read, and whose it is. The path is from the root of the filesystem, empty when the file has
// no name any more.
type badBlock struct {
	Path string `json:"path"`
	vde.BadBlock
}

// scrubLine is one line of the daemon's answer to POST /scrub: progress now and then, and at the end the report or an error.
type scrubLine struct {
	Progress *vde.ScrubProgress `json:"progress,omitempty"`
	Report   *scrubReport       `json:"report,omitempty"`
	Error    *controlError      `json:"failure,omitempty"`
}

func newScrubCommand(a *app) *cobra.Command {
	var rate byteSize
	cmd := &cobra.Command{
		Use:   "scrub MOUNTPOINT|STORE",
		Short: "Read all data of a store in use and compare it with its checksums",
		Long: `Reads the metadata and every block of every file, from the disk, while the filesystem is in use, and compares it with its checksum. Bad blocks are
told by file and offset, damaged parts of the metadata by file of the store. Nothing is changed, but in a cluster bad blocks are replaced by what another node has, and then every file
is compared with what the other nodes have. An interrupt ends it. A store without a daemon is read by ` + "`vde fsck --data`" + `.

Exit code 14: bad blocks, damaged metadata or differences were found.`,
		Args:              exactArgs("MOUNTPOINT or STORE"),
		ValidArgsFunction: completeMountpoints,
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := storeStatus(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if status.PID == 0 {
				return failf(exitNotMounted, "store %s is not in use: read it with `vde fsck --data %s`", status.Store, status.Store)
			}
			show := newScrubProgress(cmd.ErrOrStderr())
			report, err := newControlClient(status.Store).scrub(cmd.Context(), uint64(rate), show.show)
			show.done()
			if err != nil {
				return err
			}
			if a.json {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printScrub(cmd.OutOrStdout(), report)
			}
			if err == nil && (report.BadBlocks+report.DifferAll > 0 || len(report.BadTables) > 0) {
				err = &codedError{exitDamaged, &silentError{}}
			}
			return err
		},
	}
	cmd.Flags().Var(&rate, "rate", "read at most so much in a second, like 50M (default: as fast as the disk)")
	a.addJSONFlag(cmd)
	return cmd
}

func printScrub(w io.Writer, r *scrubReport) error {
	for _, t := range r.BadTables {
		if _, err := fmt.Fprintf(w, "%s/meta/%s: damaged metadata: %s\n", r.Store, t.Name, t.Error); err != nil {
			return err
		}
	}
	for _, b := range r.Bad {
		path := b.Path
		if path == "" {
			path = fmt.Sprintf("inode %d, which has no name", b.Ino)
		}
		if _, err := fmt.Fprintf(w, "%s: offset %d: bad block (image block %d): %s\n", path, b.Offset, b.Block, b.Error); err != nil {
			return err
		}
	}
	if n := r.BadBlocks - uint64(len(r.Bad)); n > 0 {
		if _, err := fmt.Fprintf(w, "and %d more\n", n); err != nil {
			return err
		}
	}
	verdict := "no bad block"
	if r.BadBlocks > 0 {
		verdict = fmt.Sprintf("%d bad blocks", r.BadBlocks)
	}
	if n := len(r.BadTables); n > 0 {
		verdict += fmt.Sprintf(", %d of %d tables of the metadata are damaged: what they hold cannot be repaired here. Copy what can be read, and restore the store from a backup, "+
			"or, of a cluster, remove this node and join it anew", n, r.Tables)
	}
	if err := printComparison(w, r); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s: %s (%s read in %v)\n", r.Store, verdict, bytesText(r.Blocks*4096), time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond))
	return err
}

// printComparison tells how the node compares with the others.
func printComparison(w io.Writer, r *scrubReport) error {
	for _, d := range r.Different {
		path := d.Path
		if path == "" {
			path = fmt.Sprintf("inode %d, which has no name", d.Ino)
		}
		if _, err := fmt.Fprintf(w, "%s: from offset %d: node %d has something else\n", path, d.Offset, d.Node); err != nil {
			return err
		}
	}
	if n := r.DifferAll - uint64(len(r.Different)); n > 0 {
		if _, err := fmt.Fprintf(w, "and %d more\n", n); err != nil {
			return err
		}
	}
	if r.Compared+r.Skipped+r.DifferAll == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%s: %d files compared with those of other nodes, %d are different, %d could not be compared\n", r.Store, r.Compared+r.DifferAll, r.DifferAll, r.Skipped)
	return err
}

// scrubLineEvery is how often progress is told where there is no terminal.
const scrubLineEvery = 10 * time.Second

// scrubProgress shows a bar on a terminal, and a line now and then elsewhere.
type scrubProgress struct {
	*progress
	told time.Time
}

func newScrubProgress(w io.Writer) *scrubProgress {
	return &scrubProgress{newProgress(w), time.Now()}
}

func (p *scrubProgress) show(s vde.ScrubProgress) {
	if s.Inodes > 0 {
		p.showCompared(s)
		return
	}
	if p.bar != nil {
		p.progress.show(s.Blocks, s.Total, fmt.Sprintf("blocks, %d bad", s.Bad))
		return
	}
	if time.Since(p.told) < scrubLineEvery {
		return
	}
	p.told = time.Now()
	fmt.Fprintf(p.w, "%s of %s (%s), %d bad blocks\n", bytesText(s.Blocks*4096), bytesText(s.Total*4096), shareText(s.Blocks, s.Total), s.Bad)
}

func (p *scrubProgress) showCompared(s vde.ScrubProgress) {
	if p.bar != nil {
		p.progress.show(s.Compared, s.Inodes, "files compared")
	} else if time.Since(p.told) >= scrubLineEvery {
		p.told = time.Now()
		fmt.Fprintf(p.w, "%d of %d files compared\n", s.Compared, s.Inodes)
	}
}

// scrub has the daemon scrub, and tells how far it is. It ends with the context, and the scrub with it.
func (c *controlClient) scrub(ctx context.Context, rate uint64, show func(vde.ScrubProgress)) (*scrubReport, error) {
	lines, writer := io.Pipe()
	var report *scrubReport
	var failure error
	var reading sync.WaitGroup
	reading.Go(func() {
		decoder := json.NewDecoder(lines)
		for report == nil && failure == nil {
			var line scrubLine
			if err := decoder.Decode(&line); err != nil {
				failure = err
				break
			}
			switch {
			case line.Progress != nil:
				show(*line.Progress)
			case line.Error != nil:
				failure = &codedError{line.Error.Code, line.Error}
			case line.Report != nil:
				report = line.Report
			}
		}
		lines.CloseWithError(io.EOF)
	})
	err := c.stream(ctx, http.MethodPost, "/scrub?rate="+strconv.FormatUint(rate, 10), writer)
	writer.Close()
	reading.Wait()
	switch {
	case report != nil:
		return report, nil
	case err != nil:
		return nil, err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(failure, io.EOF), errors.Is(failure, io.ErrUnexpectedEOF):
		return nil, failf(exitDaemonDied, "the daemon of %s ended before the scrub did", c.store)
	}
	return nil, failure
}

// addScrubHandler serves POST /scrub?rate=N: one scrub at a time.
func (d *daemon) addScrubHandler(mux *http.ServeMux) {
	var one sync.Mutex
	mux.HandleFunc("POST /scrub", func(w http.ResponseWriter, r *http.Request) {
		rate, err := strconv.ParseUint(r.FormValue("rate"), 10, 64)
		if err != nil {
			writeFailure(w, http.StatusBadRequest, usagef("rate %q is no number of bytes", r.FormValue("rate")))
			return
		}
		if !one.TryLock() {
			writeFailure(w, http.StatusConflict, failf(exitBusy, "%s is being scrubbed already", d.cfg.Store))
			return
		}
		defer one.Unlock()
		d.scrub(w, r, rate)
	})
}

func (d *daemon) scrub(w http.ResponseWriter, r *http.Request, rate uint64) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w)
	encoder := json.NewEncoder(w)
	tell := func(line scrubLine) {
		if encoder.Encode(line) == nil {
			_ = flush.Flush() // a client that has gone ends the request's context
		}
	}
	d.log.WithField("rate", rate).Info("scrub begins")
	report, err := d.volume.Scrub(r.Context(), vde.ScrubOptions{Rate: rate, Progress: func(p vde.ScrubProgress) { tell(scrubLine{Progress: &p}) }})
	log := d.log.WithField("blocks", report.Blocks).WithField("bad_blocks", report.BadBlocks()).WithField("seconds", report.Elapsed.Seconds())
	answer := scrubReport{
		Store: d.cfg.Store, Blocks: report.Blocks, BadBlocks: report.BadBlocks(), Bad: []badBlock{}, Seconds: report.Elapsed.Seconds(),
		Tables: report.Tables, BadTables: report.BadTables,
	}
	if err == nil {
		var paths map[meta.Ino]string
		inos := make([]meta.Ino, 0, len(report.Bad))
		for _, b := range report.Bad {
			inos = append(inos, b.Ino)
		}
		c := &report.Comparison
		for _, d := range c.Different {
			inos = append(inos, d.Ino)
		}
		answer.Compared, answer.Skipped, answer.DifferAll = c.Compared, c.Skipped, uint64(len(c.Different))+c.More
		if paths, err = d.volume.Paths(inos); len(report.BadTables) > 0 {
			err = nil // then they have no names here
		}
		for _, b := range report.Bad {
			answer.Bad = append(answer.Bad, badBlock{paths[b.Ino], b})
		}
		for _, d := range c.Different {
			answer.Different = append(answer.Different, different{paths[d.Ino], d})
		}
	}
	if err != nil {
		log.WithError(err).Warn("scrub ended early")
		tell(scrubLine{Error: &controlError{err.Error(), codeOf(err)}})
		return
	}
	switch {
	case len(answer.BadTables) > 0:
		log.WithField("bad_tables", len(answer.BadTables)).Error("scrub found damaged metadata")
	case answer.BadBlocks > 0:
		log.Error("scrub found bad blocks")
	case answer.DifferAll > 0:
		log.WithField("different", answer.DifferAll).Error("scrub found differences from other nodes")
	default:
		log.Info("scrub found no bad block")
	}
	tell(scrubLine{Report: &answer})
}

// stream does one request and copies the answer as it comes.
func (c *controlClient) stream(ctx context.Context, method, path string, w io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://vde"+path, nil)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("control socket of %s: %w", c.store, err)
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusBadRequest {
		var body bytes.Buffer
		var failure controlError
		if _, err := io.Copy(&body, io.LimitReader(response.Body, 1<<16)); err != nil || json.Unmarshal(body.Bytes(), &failure) != nil || failure.Message == "" {
			failure = controlError{fmt.Sprintf("the daemon of %s answered %s: is it another version of vde?", c.store, response.Status), exitFailure}
		}
		return &codedError{failure.Code, &failure}
	}
	_, err = io.Copy(w, response.Body)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	if err != nil && ctx.Err() == nil {
		return failf(exitDaemonDied, "the daemon of %s ended before it had answered: %w", c.store, err)
	}
	return err
}
