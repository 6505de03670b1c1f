package inspect

import (
	"fmt"
	"html"
	"io"
	"strings"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// The measures of the picture, in its own units, which browsers show as pixels.
const (
	pageWidth = 1000.0
	margin    = 24.0
	barWidth  = pageWidth - 2*margin
	barHeight = 26.0
	thinnest  = 2.0 // of what is drawn of a layer; smaller files share a piece
)

// style has the colours, for a light and for a dark page.
const style = `
text { font: 12px ui-sans-serif, system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 18px; font-weight: 600 } .strong { font-weight: 600 } .muted { fill: #59636e } .on { fill: #fff }
.mono { font-family: ui-monospace, monospace }
.page { fill: #fff } .bar { fill: #e7eaee } .first { fill: #0969da } .rest { fill: #b3bcc7 } .toc { fill: #8250df } .footer { fill: #1f2328 }
.hatch { stroke: #8c959f } .plain { stroke: #b3bcc7; fill: url(#hatch) } .bad { stroke: #cf222e; fill: none }
.shadowed { fill: #cf222e } .duplicate { fill: #d4780a } .landmark { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .muted { fill: #9198a1 } .on { fill: #fff }
.page { fill: #0d1117 } .bar { fill: #262c36 } .first { fill: #388bfd } .rest { fill: #59636e } .toc { fill: #a371f7 } .footer { fill: #e6edf3 }
.hatch { stroke: #6e7681 } .plain { stroke: #59636e } .bad { stroke: #f85149 }
.shadowed { fill: #f85149 } .duplicate { fill: #e3962c } .landmark { stroke: #e6edf3 }
}
`

// WriteSVG draws the layers: all to one scale, and then each to its own.
func (im *Image) WriteSVG(w io.Writer) error {
	d := &drawing{}
	d.head(im)
	d.legend()
	d.overview(im)
	for i, l := range im.Layers {
		d.layer(i+1, l)
	}
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]v" height="%[2]v" viewBox="0 0 %[1]v %[2]v" role="img" aria-label="%[3]s">
<style>%[4]s</style>
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><line class="hatch" y2="6"/></pattern></defs>
<rect class="page" width="%[1]v" height="%[2]v"/>
%[5]s</svg>
`, pageWidth, d.y, attr("layers of "+im.Name), style, d.String())
	return err
}

// A drawing collects elements from the top of the page to y.
type drawing struct {
	strings.Builder
	y float64
}

// attr makes any text fit for an attribute or an element.
func attr(s string) string { return html.EscapeString(printable(s)) }

// lines are those of a tooltip.
func lines(all ...string) string {
	for i, s := range all {
		all[i] = attr(s)
	}
	return strings.Join(all, "\n")
}

func (d *drawing) text(class, anchor string, x, y float64, s string) {
	fmt.Fprintf(d, `<text class="%s" text-anchor="%s" x="%.1f" y="%.1f">%s</text>`+"\n", class, anchor, x, y, attr(s))
}

// rect draws a rectangle, with a tooltip that is escaped already.
func (d *drawing) rect(class string, x, y, width, height float64, tip string) {
	fmt.Fprintf(d, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"`, class, x, y, width, height)
	if tip == "" {
		d.WriteString("/>\n")
		return
	}
	fmt.Fprintf(d, "><title>%s</title></rect>\n", tip)
}

func (d *drawing) head(im *Image) {
	d.text("title", "start", margin, 36, short(printable(im.Name), 95))
	d.text("muted", "start", margin, 58, fmt.Sprintf("%s · %s, %s · a node that mounts them prefetches %s",
		im.Platform, count(len(im.Layers), "layer"), size(im.Size), part(im.PrefetchBytes, im.Size)))
	d.y = 72
}

func (d *drawing) legend() {
	x := margin
	for _, item := range []struct{ class, label string }{
		{"first", "prioritized"}, {"rest", "other files"}, {"bar", "headers"}, {"toc", "TOC"}, {"footer", "footer"},
		{"shadowed", "replaced or deleted above"}, {"duplicate", "duplicated"}, {"plain", "not eStargz"},
	} {
		d.rect(item.class, x, d.y, 11, 11, "")
		d.text("muted", "start", x+16, d.y+10, item.label)
		x += 40 + 6.2*float64(len(item.label))
	}
	fmt.Fprintf(d, `<line class="landmark" x1="%[1]v" x2="%[1]v" y1="%v" y2="%v"/>`+"\n", x+5, d.y-1, d.y+12)
	d.text("muted", "start", x+16, d.y+10, "landmark")
	d.y += 40
}

// overview draws the layers side by side, each as long as its blob is large.
func (d *drawing) overview(im *Image) {
	d.text("strong", "start", margin, d.y, "All layers")
	d.text("muted", "end", pageWidth-margin, d.y, size(im.Size))
	d.y += 8
	scale, x := barWidth/float64(max(im.Size, 1)), margin
	for i, l := range im.Layers {
		width := float64(l.Size) * scale
		class := "plain"
		if l.TOC != nil {
			class = "rest"
		}
		d.rect(class, x, d.y, visible(width), barHeight, lines(fmt.Sprintf("layer %d: %s", i+1, size(l.Size)), l.CreatedBy))
		if first := float64(l.PrefetchBytes) * scale; first > 0 {
			d.rect("first", x, d.y, first, barHeight, lines(fmt.Sprintf("layer %d: prefetch %s", i+1, part(l.PrefetchBytes, l.Size))))
		}
		if width > 16 {
			class := "strong"
			if float64(l.PrefetchBytes)*scale > width/2 {
				class = "strong on"
			}
			d.text(class, "middle", x+width/2, d.y+17, fmt.Sprint(i+1))
		}
		x += width
	}
	d.y += barHeight + 40
}

// visible leaves room between rectangles that are wide enough for it.
func visible(width float64) float64 {
	if width > 3 {
		return width - 0.8
	}
	return width
}

// layer draws one layer to its own scale, with a heading.
func (d *drawing) layer(number int, l *Layer) {
	d.text("strong", "start", margin, d.y, fmt.Sprint(number))
	d.text("strong", "start", margin+22, d.y, string(l.Format))
	d.text("muted mono", "start", margin+170, d.y, shortDigest(l))
	d.text("muted", "start", margin+280, d.y, short(printable(l.CreatedBy), 65))
	d.text("", "end", pageWidth-margin, d.y, l.heading())
	d.y += 8
	if l.reader != nil {
		d.blob(l)
	} else {
		class := "plain"
		if l.Error != "" {
			class = "bad"
		}
		d.rect(class, margin, d.y, barWidth, barHeight, lines(l.Error))
	}
	d.y += barHeight + 34
}

func (l *Layer) heading() string {
	switch {
	case l.Error != "":
		return size(l.Size) + " · cannot be mounted"
	case l.Format == ZstdChunked, l.Format == ExternalTOC:
		return size(l.Size) + " · files not known here"
	case l.reader == nil:
		return size(l.Size) + " · pulled whole"
	case l.Landmark != Prefetch:
		return size(l.Size) + " · no prefetch"
	}
	return size(l.Size) + " · prefetch " + part(l.PrefetchBytes, l.Size)
}

// blob draws the parts of a blob. What no file takes are headers.
func (d *drawing) blob(l *Layer) {
	scale := barWidth / float64(l.Size)
	d.rect("bar", margin, d.y, barWidth, barHeight, "")
	for _, p := range l.pieces(int64(thinnest / scale)) {
		x, width := margin+float64(p.start)*scale, float64(p.end-p.start)*scale
		class := "rest"
		if p.first {
			class = "first"
		}
		d.rect(class, x, d.y, visible(width), barHeight, p.tip())
		d.mark("shadowed", p.shadowed, p.size, x, d.y+barHeight+2, width)
		d.mark("duplicate", p.duplicate, p.size, x, d.y+barHeight+6, width)
	}
	if l.Landmark == Prefetch {
		x := margin + float64(l.PrefetchBytes)*scale
		fmt.Fprintf(d, `<line class="landmark" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"><title>landmark at %d</title></line>`+"\n", x, x, d.y-3, d.y+barHeight+3, l.PrefetchBytes)
	}
	// The footer has 51 bytes, which no scale would show.
	end, toc := pageWidth-margin, max(float64(l.TOC.Size)*scale, thinnest)
	d.rect("toc", end-toc-thinnest, d.y, toc, barHeight, lines(fmt.Sprintf("TOC: %d entries", l.TOC.Entries),
		fmt.Sprintf("%s from %d, %s", size(l.TOC.Size), l.TOC.Offset, l.tocState())))
	d.rect("footer", end-thinnest, d.y, thinnest, barHeight, lines(fmt.Sprintf("footer: %d bytes", l.TOC.FooterSize)))
}

// mark underlines as much of a piece as n is of its size.
func (d *drawing) mark(class string, n, size int64, x, y, width float64) {
	if n > 0 {
		d.rect(class, x, y, max(width*float64(n)/float64(size), 0.5), 3, "")
	}
}

// A piece is a part of a blob that is drawn as one: a file, or several that are
// too small to be told apart.
type piece struct {
	start, end          int64 // in the blob
	first               bool  // before the landmark
	from, to            string
	files               int
	size                int64 // of what follows, uncompressed
	shadowed, duplicate int64
}

// pieces divides the contents of a layer. One that takes less of the blob than
// least is joined with the next.
func (l *Layer) pieces(least int64) (all []piece) {
	var file *estargz.Entry
	for _, e := range l.reader.Entries() {
		if e.Type == estargz.TypeReg {
			file = e
		}
		if !e.HasContents() || isLandmark(e.Name) {
			continue
		}
		first := e.Offset < l.PrefetchBytes
		last := len(all) - 1
		if last < 0 || all[last].first != first || all[last].to != e.Name && all[last].end-all[last].start >= least && e.Offset >= all[last].end {
			all, last = append(all, piece{start: e.Offset, first: first, from: e.Name}), last+1
		}
		p := &all[last]
		if p.to != e.Name {
			p.files++
		}
		p.end, p.to, p.size = e.MemberEnd(), e.Name, sum(p.size, e.ChunkSize)
		if l.shadowed[file] {
			p.shadowed = sum(p.shadowed, e.ChunkSize)
		}
		if l.duplicates[e] {
			p.duplicate = sum(p.duplicate, e.ChunkSize)
		}
	}
	return all
}

func (p *piece) tip() string {
	head := []string{p.from}
	if p.files > 1 {
		head = []string{fmt.Sprintf("%d files", p.files), "from " + p.from, "to " + p.to}
	}
	head = append(head, fmt.Sprintf("%s, %s in the blob, from %d", size(p.size), size(p.end-p.start), p.start))
	if p.first {
		head = append(head, "prioritized")
	}
	if p.shadowed > 0 {
		head = append(head, size(p.shadowed)+" replaced or deleted by upper layers")
	}
	if p.duplicate > 0 {
		head = append(head, size(p.duplicate)+" duplicated")
	}
	return lines(head...)
}
