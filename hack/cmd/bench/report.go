package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A report is what one benchmark found. It is kept, so that the page shows what
// all of them found last.
type report struct {
	Name     string
	Command  string // that makes it again
	Title    string
	Revision string
	Machine  string
	Date     time.Time
	Sections []section
}

// A section is a table, with a plot where that shows more.
type section struct {
	Title string
	Table table
	Notes []string
	Bars  *bars
	Curve *curve

	raw *results // nil if there are none
}

// plot is the section's as SVG, or nothing.
func (s *section) plot() string {
	switch {
	case s.Curve != nil:
		return s.Curve.svg()
	case s.Bars != nil:
		return s.Bars.svg()
	}
	return ""
}

// A table is aligned to the right but for its first column.
type table struct {
	Columns []string
	Rows    [][]string
}

func (t *table) add(cells ...string) { t.Rows = append(t.Rows, cells) }

// markdown is the report for a terminal.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\n", r.Title)
	for _, s := range r.Sections {
		fmt.Fprintf(&b, "### %s\n\n%s\n", s.Title, s.Table.markdown())
		for _, n := range s.Notes {
			fmt.Fprintf(&b, "%s\n\n", n)
		}
	}
	fmt.Fprintf(&b, "By `%s` at %s; %s.\n", r.Command, r.Revision, r.Machine)
	return b.String()
}

func (t *table) markdown() string {
	var b strings.Builder
	row := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	row(t.Columns)
	fmt.Fprintf(&b, "|---|%s\n", strings.Repeat("---:|", len(t.Columns)-1))
	for _, r := range t.Rows {
		row(r)
	}
	return b.String()
}

// keep writes the report and its plots beside those of other benchmarks, and the
// page of all of them.
func (r *report) keep(dir string) (page string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	raw, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, r.Name+".json"), raw, 0o644); err != nil {
		return "", err
	}
	if err := r.keepPlots(dir); err != nil {
		return "", err
	}
	all, err := readReports(dir)
	if err != nil {
		return "", err
	}
	page = filepath.Join(dir, "index.html")
	return page, writePage(page, all)
}

// keepRaw writes what was measured to a file, for benchstat.
func (r *report) keepRaw(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, r.raw())
	return errors.Join(err, f.Close())
}

// raw has the samples of all sections, one line each.
func (r *report) raw() string {
	var b strings.Builder
	fmt.Fprintf(&b, "goos: %s\ngoarch: %s\ncpu: %s\ncommit: %s\ncommand: %s\n\n", runtime.GOOS, runtime.GOARCH, processor(), r.Revision, r.Command)
	for _, s := range r.Sections {
		if s.raw != nil {
			s.raw.write(&b)
		}
	}
	return b.String()
}

// processor is the name of the first one.
func processor() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(raw), "model name\t: ")
	name, _, _ := strings.Cut(rest, "\n")
	return name
}

// keepPlots writes the plots as files, for documents that show one.
func (r *report) keepPlots(dir string) error {
	for i, s := range r.Sections {
		plot := s.plot()
		if plot == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d.svg", r.Name, i+1)), []byte(plot), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readReports returns those that there are, in the order of the benchmarks.
func readReports(dir string) (all []report, err error) {
	for _, b := range benchmarks {
		raw, err := os.ReadFile(filepath.Join(dir, b.name+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var r report
		if err := json.Unmarshal(raw, &r); err != nil {
			return nil, fmt.Errorf("%s.json: %w", b.name, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// revision is the commit that this program was built from.
func revision() string {
	info, _ := debug.ReadBuildInfo()
	value := func(key string) string {
		i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == key })
		if i < 0 {
			return ""
		}
		return info.Settings[i].Value
	}
	commit := value("vcs.revision")
	if commit == "" {
		return "an unknown commit"
	}
	if value("vcs.modified") == "true" {
		return commit[:12] + " with changes"
	}
	return commit[:12]
}
