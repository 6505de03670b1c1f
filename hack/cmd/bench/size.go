package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

// A large is an image of which only the size is of interest.
type large struct {
	name, target string
	gib          int
	args         []string
}

// size exports large layers, to see what grows with them.
func size(ctx context.Context, c *config) ([]section, error) {
	images := []*large{
		{name: "1 layer of 1 GiB", target: "one", gib: 1},
		{name: "8 layers of 1 GiB", target: "eight", gib: 8},
		{name: "1 layer of 5 GiB", target: "one", gib: 5, args: []string{"--set", "one.args.GIB=5"}},
		{name: "1 layer of 20 GiB", target: "one", gib: 20, args: []string{"--set", "one.args.GIB=20"}},
	}
	base, err := os.Stat(filepath.Join(c.base, "rootfs.tar"))
	if err != nil {
		return nil, err
	}
	all := &results{}
	err = turns(c.runs, images, func(run int, l *large) error {
		r, err := l.export(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		log.Printf("run %d of %d, %s: %.1fs, %d MiB", run, c.runs, l.name, r.wall.Seconds(), r.memory>>20)
		mib := float64(int64(l.gib)<<30+base.Size()) / (1 << 20) // the base is a layer of every image
		all.add("export", l.name, append(r.readings(), reading{mib / r.wall.Seconds(), "MiB/s"})...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []section{all.section("Large layers, exported by "+ourName, "What is read comes from the disk, not from the page cache.")}, nil
}

// export builds the image, and measures what it takes to export it then.
func (l *large) export(ctx context.Context, c *config) (r result, err error) {
	d, err := startDaemon(ctx, c, ourName, "")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if _, err := d.build(ctx, l.target, notExported, l.args...); err != nil {
		return r, err
	}
	if err := dropCaches(); err != nil { // as much as fits for the small, nothing for the large would be no comparison
		return r, err
	}
	if err := d.forgetPeak(); err != nil {
		return r, err
	}
	idle, err := d.peakMemory()
	if err != nil {
		return r, err
	}
	before, err := d.cpuTime()
	if err != nil {
		return r, err
	}
	image, err := d.export(ctx, l.target, "compression=estargz,estargz-profile=none", l.args...)
	if err != nil {
		return r, err
	}
	after, err := d.cpuTime()
	if err != nil {
		return r, err
	}
	peak, err := d.peakMemory()
	r.wall, r.cpu, r.memory = image.export, after-before, peak-idle
	return r, err
}
