package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
)

// levels exports the demo image at each compression level, and with small files in
// larger gzip members.
func levels(ctx context.Context, c *config) (sections []section, err error) {
	prepared := filepath.Join(c.work, "prepared")
	defer os.RemoveAll(prepared)
	if err := prepare(ctx, c, prepared, "demo", "type=cacheonly"); err != nil {
		return nil, err
	}
	tars := filepath.Join(c.work, "tars")
	defer os.RemoveAll(tars)
	var byLevel []*contender
	for level := range 9 {
		for _, who := range []contender{stockEstargz, ourEstargz} {
			who.compression += fmt.Sprintf(",compression-level=%d", level+1)
			byLevel = append(byLevel, &who)
		}
	}
	ours := ourEstargz
	byChunk := []*contender{
		{name: "stock gzip", binary: "buildkitd", compression: "gzip"},
		{name: "pgzip alone, level 6", compression: "pgzip"},
		&ours,
	}
	for _, bytes := range []int{64 << 10, 1 << 20, 4 << 20} {
		byChunk = append(byChunk, &contender{
			name: fmt.Sprintf("%s, estargz-min-chunk-size=%d", ourName, bytes), binary: ourName,
			compression: fmt.Sprintf("%s,estargz-min-chunk-size=%d", ourEstargz.compression, bytes),
		})
	}
	for run := range c.runs {
		for _, who := range slices.Concat(byLevel, byChunk) {
			r, err := measure(ctx, c, prepared, tars, "demo", who)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", who.compression, err)
			}
			log.Printf("run %d of %d, %s, %s: %.1fs", run+1, c.runs, who.name, who.compression, r.wall.Seconds())
			who.results = append(who.results, r)
		}
	}
	return []section{levelsSection(byLevel), exportSection("The demo image, with small files in members of at least so many bytes", byChunk, byChunk[0])}, nil
}

// levelsSection shows theirs and ours by turns.
func levelsSection(contenders []*contender) section {
	s := section{
		Title: "The demo image, exported at levels 1 to 9",
		Table: table{Columns: []string{"compression-level", "stock: wall", "MB", ourName + ": wall", "MB", "speed", "size"}},
		Curve: &curve{X: "seconds", Y: "MB of layers", Series: []series{{Name: contenders[0].name}, {Name: contenders[1].name, Ours: true}}},
	}
	for i := 0; i < len(contenders); i += 2 {
		level, stock, ours := fmt.Sprint(i/2+1), contenders[i], contenders[i+1]
		s.Table.add(level, fmt.Sprintf("%.1f s", stock.wall().Seconds()), fmt.Sprintf("%.1f", megabytes(stock.layers())),
			fmt.Sprintf("%.1f s", ours.wall().Seconds()), fmt.Sprintf("%.1f", megabytes(ours.layers())),
			fmt.Sprintf("%.2f", ratio(stock.wall(), ours.wall())), fmt.Sprintf("%.3f", ratio(ours.layers(), stock.layers())))
		for n, who := range contenders[i : i+2] {
			line := &s.Curve.Series[n]
			line.Points = append(line.Points, point{level, who.wall().Seconds(), megabytes(who.layers())})
		}
	}
	return s
}
