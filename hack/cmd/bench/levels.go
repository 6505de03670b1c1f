package main

import (
	"context"
	"fmt"
)

// levels exports the demo image at each compression level.
func levels(ctx context.Context, c *config) (sections []section, err error) {
	var who []contender
	for level := range 9 {
		for _, w := range []contender{stockEstargz, ourEstargz} {
			w.work = fmt.Sprint("level ", level+1)
			w.compression += fmt.Sprintf(",compression-level=%d", level+1)
			who = append(who, w)
		}
	}
	r := &results{}
	if err := (exportImage{target: "demo", before: notExported, contenders: who}).measure(ctx, c, r); err != nil {
		return nil, err
	}
	return []section{levelsSection(r)}, nil
}

// chunks exports the demo image with small files in larger gzip members.
func chunks(ctx context.Context, c *config) (sections []section, err error) {
	who := []contender{stockGzip, pgzipAlone, ourEstargz}
	for _, bytes := range []int{64 << 10, 1 << 20, 4 << 20} {
		w := ourEstargz
		w.name = fmt.Sprintf("%s, estargz-min-chunk-size=%d", ourName, bytes)
		w.compression += fmt.Sprintf(",%s%d", minChunkSize, bytes)
		who = append(who, w)
	}
	r := &results{}
	if err := (exportImage{target: "demo", what: "demo", before: notExported, contenders: who}).measure(ctx, c, r); err != nil {
		return nil, err
	}
	return []section{r.section("The demo image, with small files in members of at least so many bytes")}, nil
}

// minChunkSize is what lets files share a gzip member. The stock snapshotter
// reads such layers, but the library's check of a whole layer refuses them.
const minChunkSize = "estargz-min-chunk-size="

// levelsSection shows size by time.
func levelsSection(r *results) section {
	s := r.section("The demo image, exported at levels 1 to 9")
	s.Bars, s.Curve = nil, &curve{X: "seconds", Y: "MB of layers"}
	for _, who := range []contender{stockEstargz, ourEstargz} {
		line := series{Name: who.name, Ours: who.binary == ourName}
		for level := range 9 {
			name := fmt.Sprint("level ", level+1)
			line.Points = append(line.Points, point{fmt.Sprint(level + 1), r.median(name, who.name, "ns/op") / 1e9, r.median(name, who.name, "B-layers") / 1e6})
		}
		s.Curve.Series = append(s.Curve.Series, line)
	}
	return s
}
