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
			w.compression += fmt.Sprintf(",compression-level=%d", level+1)
			who = append(who, w)
		}
	}
	contenders, err := exportImage{target: "demo", before: notExported, contenders: who}.measure(ctx, c)
	if err != nil {
		return nil, err
	}
	return []section{levelsSection(contenders)}, nil
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
	contenders, err := exportImage{target: "demo", before: notExported, contenders: who}.measure(ctx, c)
	if err != nil {
		return nil, err
	}
	return []section{exportSection("The demo image, with small files in members of at least so many bytes", contenders, contenders[0])}, nil
}

// minChunkSize is what lets files share a gzip member. The stock snapshotter
// reads such layers, but the library's check of a whole layer refuses them.
const minChunkSize = "estargz-min-chunk-size="

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
