package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// changedBytes is the contents that differ between the two builds of
// rebuilt.Dockerfile: they are random, so that compression changes nothing.
const changedBytes = 80 * 50_000

// rebuiltBase counts what is fetched of an image when the one that it replaces
// is here.
func rebuiltBase(ctx context.Context, c *config, r *registry) (s section, err error) {
	if err := pushRebuilt(ctx, c, r); err != nil {
		return s, err
	}
	line, err := shaped.New(r.Address, shaped.Link{})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, line.Close()) }()
	d, err := startPuller(ctx, c, ourLazy)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if _, err := d.run(ctx, line.Addr()+"/rebuilt:1", readAll); err != nil {
		return s, err
	}
	line.Reset()
	if _, err := d.run(ctx, line.Addr()+"/rebuilt:2", readAll); err != nil {
		return s, err
	}
	fetched := shaped.Bytes(shaped.Blobs(line.Requests()))
	s.Title = "A base image was rebuilt, and the one before is here"
	s.Table.Columns = []string{"image", "files changed", "MB changed", "MB fetched, index included", "ratio"}
	s.Table.add("8,000 files of 50 kB", "80", fmt.Sprintf("%.2f", changedBytes/1e6), fmt.Sprintf("%.2f", float64(fetched)/1e6), fmt.Sprintf("%.2f", float64(fetched)/changedBytes))
	return s, nil
}

func pushRebuilt(ctx context.Context, c *config, r *registry) (err error) {
	d, err := startDaemon(ctx, c, ourName, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, build := range []string{"1", "2"} {
		output := "type=registry,oci-mediatypes=true,compression=estargz,estargz-profile=none,name=" + r.ref("rebuilt", build)
		if _, err := d.build(ctx, "rebuilt", output, "--set", "rebuilt.args.BUILD="+build); err != nil {
			return err
		}
	}
	return nil
}
