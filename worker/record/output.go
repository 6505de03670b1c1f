package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/snapshot"
)

// A Summary tells how a recording went.
type Summary struct {
	// End is what ended it, nothing if there was none.
	End End `json:"end"`
	// Reason says why the process was not started, not recorded, or stopped for
	// what it did.
	Reason string `json:"reason,omitempty"`
	// Began is when, by the builder's clock.
	Began time.Time `json:"began"`
	// ExitCode is that of the process, if it exited by itself.
	ExitCode int `json:"exitCode"`
	// Seconds is the time from start to end.
	Seconds float64 `json:"seconds"`
	// Files and Bytes are those of the profile; ranges count, not whole files.
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	// Overflow says that the kernel's queue was full, Lost how many events came
	// to nothing otherwise, in all runs that the profile is of: in both cases it
	// lacks files.
	Overflow bool `json:"overflow,omitempty"`
	Lost     int  `json:"lost,omitempty"`
	// Cut says that a workload still read new files at the end of its period,
	// in its second run as well. A third would be no different.
	Cut bool `json:"cut,omitempty"`
	// Ranges says whether parts of large files are told apart.
	Ranges bool `json:"ranges"`
}

// String is the line for the vertex's log.
func (s Summary) String() string {
	if s.End == "" {
		return "not recorded: " + s.Reason
	}
	line := fmt.Sprintf("recorded %d files, %.1f MB in %.1f s (%s)", s.Files, float64(s.Bytes)/1e6, s.Seconds, s.End)
	if s.End == EndExit && s.ExitCode != 0 {
		line += fmt.Sprintf(", exit code %d", s.ExitCode)
	}
	if s.Reason != "" {
		line += ": " + s.Reason
	}
	if s.Cut {
		line += "; it still read new files when its period ended"
	}
	if s.lost() {
		line += "; events were lost, the profile is incomplete"
	}
	if !s.Ranges && s.Files > 0 {
		line += "; large files count as read whole"
	}
	return line
}

func (s Summary) lost() bool { return s.Overflow || s.Lost > 0 }

// Incomplete tells whether the profile lacks something that was read, or would
// have been. Another recording may do better.
func (s Summary) Incomplete() bool { return s.Reason != "" || s.lost() }

// count adds what the profile holds.
func (s *Summary) count(p *profile.Profile) {
	s.Files = len(p.Files)
	for _, f := range p.Files {
		s.Bytes += f.Touched()
	}
}

// write writes profile and summary into the output.
func write(ctx context.Context, output executor.Mountable, p *profile.Profile, s Summary) (err error) {
	ref, err := output.Mount(ctx, false)
	if err != nil {
		return fmt.Errorf("record: output: %w", err)
	}
	// A layer of its own is a plain directory, which needs no mount.
	m := snapshot.LocalMounter(ref)
	dir, err := m.Mount()
	if err != nil {
		return fmt.Errorf("record: output: %w", err)
	}
	defer func() { err = errors.Join(err, m.Unmount()) }()
	encoded, err := p.Encode()
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	summary, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("record: summary: %w", err)
	}
	if err := writeNew(dir, map[string][]byte{ProfileFile: encoded, SummaryFile: append(summary, '\n')}); err != nil {
		return fmt.Errorf("record: output: %w", err)
	}
	return nil
}

// writeNew writes files into an empty directory. One that is not empty is not the
// output, and nothing in it is followed or replaced.
func writeNew(dir string, files map[string][]byte) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	there, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	if len(there) > 0 {
		return fmt.Errorf("%s is there before the recording", there[0].Name())
	}
	for name, content := range files {
		if err := writeFile(root, name, content); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(root *os.Root, name string, content []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}
