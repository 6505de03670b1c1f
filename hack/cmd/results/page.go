package main

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

const intro = `# Results

Made by ` + "`hack/bench page`" + ` from the raw results beside the plots. All sides of a table were
measured on one machine, in turns. Numbers are medians with the larger distance of a
quartile; so are the ratios, each of two results of the same run, to the first side of the
work that is not ours. In a plot a bar is a median, and a dot is one run; ours are green.
`

// page returns the text of NAME.md and of the plots that it shows, by their paths
// from it, for a directory NAME with raw results. Without results there is no page.
func page(dir fs.FS, name string) (map[string]string, error) {
	raw, err := fs.Glob(dir, "*.txt")
	if err != nil {
		return nil, err
	}
	files, text := map[string]string{}, intro
	for _, file := range raw {
		b, err := readFile(dir, file)
		if err != nil {
			return nil, err
		}
		text += "\n" + b.markdown(name)
		for i, s := range b.sections() {
			files[b.plotFile(name, i)] = b.plot(s)
		}
		files[name+".md"] = text
	}
	return files, nil
}

func readFile(dir fs.FS, file string) (*results, error) {
	f, err := dir.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	r.name = strings.TrimSuffix(file, ".txt")
	return r, nil
}

// A section has what belongs into one table.
type section struct {
	title string
	rows  []*row
	units []string
}

func (r *results) sections() (all []section) {
	for rest := r.samples; len(rest) > 0; {
		title := rest[0].section
		n := slices.IndexFunc(rest, func(s sample) bool { return s.section != title })
		if n < 0 {
			n = len(rest)
		}
		s := section{title: title}
		s.rows, s.units = rows(rest[:n])
		all, rest = append(all, s), rest[n:]
	}
	return all
}

func (r *results) plotFile(dir string, section int) string {
	return fmt.Sprintf("%s/%s-%d.svg", dir, r.name, section+1)
}

func (r *results) plot(s section) string {
	if r.name == "levels" && slices.Contains(s.units, curveX) && slices.Contains(s.units, curveY) {
		return s.curve()
	}
	return s.bars()
}

// markdown shows the results, with plots that stand in a directory.
func (r *results) markdown(dir string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n\nBy `%s` at commit %s, %s; %s, %s.\n", r.about["title"], r.about["command"], r.about["commit"], r.about["date"], r.about["cpu"], r.about["machine"])
	for i, s := range r.sections() {
		fmt.Fprintf(&b, "\n### %s\n\n![%s](%s)\n\n%s", s.title, s.title, r.plotFile(dir, i), s.table())
	}
	return b.String()
}

// table has a column for each unit, and one of ratios where there are two sides to
// compare.
func (s *section) table() string {
	head, line := "| work | side | runs |", "|---|---|---:|"
	cells := make([]string, len(s.rows))
	for i, r := range s.rows {
		cells[i] = fmt.Sprintf("| %s | %s | %d |", r.work, r.side, r.runs)
	}
	for _, unit := range s.units {
		name, scale := display(unit)
		head, line = head+" "+name+" |", line+"---:|"
		compared := slices.ContainsFunc(s.rows, func(r *row) bool { return r.ratios(s.rows, unit) != nil })
		if compared {
			head, line = head+" ratio |", line+"---:|"
		}
		for i, r := range s.rows {
			cells[i] += " " + spread(r.values[unit], scale) + " |"
			if compared {
				cells[i] += " " + spread(r.ratios(s.rows, unit), 1) + " |"
			}
		}
	}
	return head + "\n" + line + "\n" + strings.Join(cells, "\n") + "\n"
}
