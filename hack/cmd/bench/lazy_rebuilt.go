package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// changedBytes is the contents that differ between the two builds of
// rebuilt.Dockerfile: they are random, so that compression changes nothing.
const changedBytes = 80 * 50_000

// rebuiltBase counts what is fetched of an image when the one that it replaces
// is here.
func rebuiltBase(ctx context.Context, c *config, r *registry) (err error) {
	if err := pushRebuilt(ctx, c, r); err != nil {
		return err
	}
	line, err := shaped.New(r.address, shaped.Link{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, line.Close()) }()
	d, err := startPuller(ctx, c, ourLazy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.discard()) }()
	if _, err := d.run(ctx, line.Addr()+"/rebuilt:1", readAll); err != nil {
		return err
	}
	line.Reset()
	if _, err := d.run(ctx, line.Addr()+"/rebuilt:2", readAll); err != nil {
		return err
	}
	fetched := shaped.Bytes(shaped.Blobs(line.Requests()))
	fmt.Print("| a base rebuilt | files changed | MB changed | MB fetched, index included | ratio |\n|---|---:|---:|---:|---:|\n")
	fmt.Printf("| 8,000 files of 50 kB | 80 | %.2f | %.2f | %.2f |\n\n", changedBytes/1e6, float64(fetched)/1e6, float64(fetched)/changedBytes)
	return nil
}

func pushRebuilt(ctx context.Context, c *config, r *registry) (err error) {
	file, err := writeLazyTargets(c)
	if err != nil {
		return err
	}
	root := filepath.Join(c.work, "rebuilder")
	d, err := startDaemon(ctx, c, c.tool("buildkitd-esgz"), root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop(), os.RemoveAll(root)) }()
	if err := d.createBuilder(ctx); err != nil {
		return err
	}
	for _, build := range []string{"1", "2"} {
		cmd := d.command(ctx, "buildx", "bake", "--file", file, "rebuilt", "--set", "rebuilt.args.BUILD="+build, "--set",
			"rebuilt.output=type=registry,oci-mediatypes=true,compression=estargz,estargz-profile=none,name="+r.ref("rebuilt", build))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("buildx bake rebuilt: %w\n%s", err, out)
		}
	}
	return nil
}
