package inspect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/docker/go-units"
)

// WriteJSON writes the whole report as JSON.
func (im *Image) WriteJSON(w io.Writer) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(im); err != nil {
		return err
	}
	_, err := w.Write(printableJSON(b.Bytes()))
	return err
}

// maxRows is how many rows of a list are printed, unless all are wanted.
const maxRows = 10

// WriteText writes the report for people. Lists are cut unless all of them is
// wanted.
func (im *Image) WriteText(w io.Writer, all bool) error {
	p := &printer{most: maxRows}
	if all {
		p.most = -1
	}
	p.image(im)
	for i, l := range im.Layers {
		if len(l.Prioritized) > 0 {
			p.prioritized(i+1, l)
		}
	}
	p.profile(im)
	p.duplicates(im)
	p.shadowed(im)
	p.unknown(im)
	_, err := io.WriteString(w, p.String())
	return err
}

// A printer collects the text.
type printer struct {
	strings.Builder
	most int // rows of a list; -1 for all
}

func (p *printer) line(format string, args ...any) {
	fmt.Fprintf(p, format+"\n", args...)
}

func (p *printer) image(im *Image) {
	p.line("%s, %s", printable(im.Name), printable(im.Platform))
	p.line("manifest %s", im.Digest)
	p.line("%s, %s; a node that mounts them prefetches %s", count(len(im.Layers), "layer"), size(im.Size), part(im.PrefetchBytes, im.Size))
	if f := im.Fetched; f != nil {
		p.line("%s fetched in %s", size(f.Bytes), count(int(f.Requests), "request"))
	}
	t := table{columns: "rlrlllrrl"}
	t.add("LAYER", "DIGEST", "SIZE", "FORMAT", "TOC", "LANDMARK", "PREFETCH", "FILES", "CREATED BY")
	for i, l := range im.Layers {
		prefetch, files := "-", "-"
		if l.reader != nil {
			prefetch, files = part(l.PrefetchBytes, l.Size), fmt.Sprint(l.Files)
		}
		t.add(fmt.Sprint(i+1), shortDigest(l), size(l.Size), string(l.Format), l.tocState(), or(string(l.Landmark), "-"), prefetch, files, short(printable(l.CreatedBy), 60))
	}
	p.line("")
	t.write(p)
	for i, l := range im.Layers {
		if l.Error != "" {
			p.line("layer %d: %s", i+1, printable(l.Error))
		}
	}
}

// tocState says in a word whether the TOC can be relied on.
func (l *Layer) tocState() string {
	switch {
	case l.Error != "":
		return "BAD"
	case l.TOC == nil:
		return "-"
	case !l.TOC.Verified:
		return "no annotation"
	}
	return "verified"
}

func (p *printer) prioritized(number int, l *Layer) {
	p.line("\nlayer %d: %s prioritized, %s, in the first %s of the blob", number, count(len(l.Prioritized), "file"), size(l.PrioritizedBytes), size(l.PrefetchBytes))
	p.list(len(l.Prioritized), "rrrl", []string{"OFFSET", "IN BLOB", "SIZE", "FILE"}, func(i int) []string {
		f := l.Prioritized[i]
		offset, in := fmt.Sprint(f.Offset), size(f.End-f.Offset)
		switch {
		case f.Size == 0:
			offset, in = "-", "-"
		case f.Shared:
			in = "shared"
		}
		return []string{offset, in, size(f.Size), printable(f.Path)}
	})
}

func (p *printer) profile(im *Image) {
	if im.Profile == nil {
		if im.PrefetchBytes > 0 {
			p.line("\nThe image does not say what of the prioritized files is read. The build's --metadata-file does: give it with --metadata.")
		}
		return
	}
	p.line("\nprofile %s, %s", printable(string(im.Profile.Digest)), count(im.Profile.Files, "file"))
	for i, l := range im.Layers {
		switch f := l.Profile; {
		case f.Files > 0:
			p.line("  layer %d: %s of %s prioritized, %s are read", i+1, count(f.Files, "file"), size(f.Bytes), part(f.Read, f.Bytes))
		case l.Landmark == Prefetch:
			p.line("  layer %d: in the order of an earlier build", i+1)
		}
		if f := l.Profile; f.OtherFiles > 0 {
			p.line("  layer %d: %s behind the landmark, of which %s are read", i+1, count(f.OtherFiles, "file"), size(f.OtherRead))
		}
	}
}

func (p *printer) duplicates(im *Image) {
	if len(im.Duplicates) == 0 {
		return
	}
	p.line("\nduplicated: %s in %s", size(im.DuplicateBytes), count(len(im.Duplicates), "file"))
	p.list(len(im.Duplicates), "rrll", []string{"SIZE", "LAYER", "FILE", "SAME AS"}, func(i int) []string {
		d := im.Duplicates[i]
		of := fmt.Sprintf("layer %d", d.OfLayer)
		if d.OfPath != d.Path {
			of += ", " + printable(d.OfPath)
		}
		return []string{size(d.Bytes), fmt.Sprint(d.Layer), printable(d.Path), of}
	})
}

func (p *printer) shadowed(im *Image) {
	if len(im.Shadowed) == 0 {
		return
	}
	p.line("\nreplaced or deleted by upper layers: %s in %s", size(im.ShadowedBytes), count(len(im.Shadowed), "file"))
	p.list(len(im.Shadowed), "rrrl", []string{"SIZE", "LAYER", "BY LAYER", "FILE"}, func(i int) []string {
		s := im.Shadowed[i]
		return []string{size(s.Bytes), fmt.Sprint(s.Layer), fmt.Sprint(s.ByLayer), printable(s.Path)}
	})
}

// unknown says that the lists above may lack files.
func (p *printer) unknown(im *Image) {
	var numbers []string
	for i, l := range im.Layers {
		if l.reader == nil {
			numbers = append(numbers, fmt.Sprint(i+1))
		}
	}
	if len(numbers) > 0 && len(numbers) < len(im.Layers) {
		p.line("\nThe files of %s %s are not known and not counted.", plural(len(numbers), "layer"), strings.Join(numbers, ", "))
	}
}

// list writes a table of n rows, or of as many as are to be shown.
func (p *printer) list(n int, columns string, head []string, row func(int) []string) {
	shown := n
	if p.most >= 0 {
		shown = min(n, p.most)
	}
	t := table{columns: columns}
	t.add(head...)
	for i := range shown {
		t.add(row(i)...)
	}
	t.write(p)
	if shown < n {
		p.line("  and %d more; --all lists them", n-shown)
	}
}

// A table aligns its columns: to the left (l) or to the right (r).
type table struct {
	columns string
	rows    [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) {
	widths := make([]int, len(t.columns))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if t.columns[i] == 'l' {
				cell, space = space, cell
			}
			line.WriteString("  " + space + cell)
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

func shortDigest(l *Layer) string { return short(l.Digest.Encoded(), 13) }

func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	return units.CustomSize("%.1f %s", float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"})
}

// part is an amount with its share of the whole.
func part(n, whole int64) string {
	if n == 0 || whole == 0 {
		return size(n)
	}
	return fmt.Sprintf("%s (%.3g %%)", size(n), 100*float64(n)/float64(whole))
}

func count(n int, noun string) string { return fmt.Sprintf("%d %s", n, plural(n, noun)) }

func plural(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
