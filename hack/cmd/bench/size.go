package main

import (
	"context"
	"fmt"
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
func (b *bench) size(ctx context.Context) error {
	b.startSection("Large layers, exported by " + ourName + ", read from the disk")
	images := []large{
		{name: "1 layer of 1 GiB", target: "one", gib: 1},
		{name: "8 layers of 1 GiB", target: "eight", gib: 8},
		{name: "1 layer of 5 GiB", target: "one", gib: 5, args: []string{"--set", "one.args.GIB=5"}},
		{name: "1 layer of 20 GiB", target: "one", gib: 20, args: []string{"--set", "one.args.GIB=20"}},
	}
	base, err := os.Stat(filepath.Join(b.base, "rootfs.tar"))
	if err != nil {
		return err
	}
	return turns(b.runs, images, func(l large) error {
		r, err := b.exportLarge(ctx, l)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		r.memory -= r.idle
		mib := float64(int64(l.gib)<<30+base.Size()) / (1 << 20) // the base is a layer of every image
		b.add(l.name, ourName, append(r.readings(), reading{mib / r.wall.Seconds(), "MiB/s"})...)
		return nil
	})
}

// exportLarge builds the image, and measures what it takes to export it then.
func (b *bench) exportLarge(ctx context.Context, l large) (r result, err error) {
	err = b.withDaemon(ctx, ourName, "", func(d *daemon) error {
		if _, err := d.build(ctx, l.target, notExported, l.args...); err != nil {
			return err
		}
		if err := dropCaches(); err != nil { // as much as fits for the small, nothing for the large would be no comparison
			return err
		}
		r, err = d.export(ctx, l.target, "compression=estargz,estargz-profile=none", l.args...)
		return err
	})
	return r, err
}
