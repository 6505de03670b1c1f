package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// A puller is a daemon that builds upon an image.
type puller struct {
	name, binary, snapshotter string
}

var (
	eager     = puller{"overlayfs", "buildkitd", "overlayfs"}
	stockLazy = puller{"stock stargz", "buildkitd", "stargz"}
	ourLazy   = puller{ourName + " stargz", ourName, "stargz"}
)

// lazyLinks are those that cold builds are measured behind.
var lazyLinks = []shaped.Link{
	{Delay: 20 * time.Millisecond, BytesPerSecond: 400e6 / 8},
	{Delay: 80 * time.Millisecond, BytesPerSecond: 100e6 / 8},
}

// Commands of RUN steps, and their names.
var (
	runApp  = command{"python imports pandas and flask", `python3 /app/app.py --once`}
	readAll = command{"tar reads all files", `tar --one-file-system -cf - / 2>/dev/null | wc -c`}
)

type command struct{ name, line string }

// lazy measures builds upon an image that is not here yet, and upon one that is.
func (b *bench) lazy(ctx context.Context) error {
	return b.withRegistry(ctx, func(r *registry) error {
		if err := b.pushLazyImages(ctx, r); err != nil {
			return err
		}
		for _, link := range lazyLinks {
			err := r.withLine(link, func(line *shaped.Proxy) error { return b.coldBuilds(ctx, line, link) })
			if err != nil {
				return err
			}
		}
		if err := b.warmBuilds(ctx, r); err != nil {
			return err
		}
		if err := b.rebuiltBase(ctx, r); err != nil {
			return err
		}
		return b.mounting(ctx)
	})
}

// pushLazyImages builds the demo image once and pushes it in all ways, and an
// image with a large file.
func (b *bench) pushLazyImages(ctx context.Context, r *registry) error {
	return b.withDaemon(ctx, ourName, "", func(d *daemon) error {
		for _, image := range []struct{ target, tag, compression string }{
			{"demo", "gzip", "gzip"},
			{"demo", "plain", "estargz,estargz-profile=none"},
			{"demo", "profiled", "estargz"},
			{"large", "gzip", "gzip"},
			{"large", "plain", "estargz,estargz-profile=none"},
		} {
			log.Printf("pushing %s, %s", image.target, image.tag)
			if _, err := d.push(ctx, image.target, r.ref(image.target, image.tag), image.compression); err != nil {
				return err
			}
		}
		return nil
	})
}

// coldBuilds builds upon the demo image with daemons that have nothing yet.
func (b *bench) coldBuilds(ctx context.Context, line *shaped.Proxy, link shaped.Link) error {
	b.startSection("Cold builds behind " + describe(link))
	type job struct {
		command
		who puller
		tag string
	}
	jobs := []job{
		{runApp, eager, "gzip"},
		{runApp, stockLazy, "plain"},
		{runApp, ourLazy, "plain"},
		{runApp, stockLazy, "profiled"},
		{runApp, ourLazy, "profiled"},
		{readAll, eager, "gzip"},
		{readAll, ourLazy, "plain"},
	}
	return turns(b.runs, jobs, func(j job) error {
		return b.withPuller(ctx, j.who, func(d *daemon) error {
			if err := dropCaches(); err != nil {
				return err
			}
			line.Reset()
			begin := time.Now()
			if _, err := d.run(ctx, line.Addr()+"/demo:"+j.tag, j.line); err != nil {
				return err
			}
			took, requests := time.Since(begin), shaped.Blobs(line.Requests())
			b.add(j.name, j.who.name+" "+j.tag, wall(took), bytesIn("fetched", shaped.Bytes(requests)), count("requests", len(requests)))
			return nil
		})
	})
}

func (b *bench) withPuller(ctx context.Context, who puller, do func(*daemon) error) error {
	return b.withDaemon(ctx, who.binary, "", do, "--oci-worker-snapshotter="+who.snapshotter)
}

// run builds one RUN step upon an image and returns what it printed.
func (d *daemon) run(ctx context.Context, image, commands string) (string, error) {
	dir, err := os.MkdirTemp(d.b.work, "context")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	dockerfile := "FROM " + image + "\nUSER root\nENV PYTHONDONTWRITEBYTECODE=1\nRUN " + commands + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return "", err
	}
	out, err := d.Client(ctx, "buildctl", "build", "--frontend=dockerfile.v0", "--no-cache", "--progress=plain",
		"--local=context="+dir, "--local=dockerfile="+dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build upon %s: %w\n%s", image, err, out)
	}
	return string(out), nil
}

// changedBytes is the contents that differ between the two builds of
// rebuilt.Dockerfile: they are random, so that compression changes nothing.
const changedBytes = 80 * 50_000

// rebuiltBase counts what is fetched of an image when the one that it replaces
// is here. It is the same each time.
func (b *bench) rebuiltBase(ctx context.Context, r *registry) error {
	b.startSection("A base image was rebuilt, and the one before is here")
	err := b.withDaemon(ctx, ourName, "", func(d *daemon) error {
		for _, build := range []string{"1", "2"} {
			if _, err := d.push(ctx, "rebuilt", r.ref("rebuilt", build), "estargz,estargz-profile=none", "--set", "rebuilt.args.BUILD="+build); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.withLine(shaped.Link{}, func(line *shaped.Proxy) error {
		return b.withPuller(ctx, ourLazy, func(d *daemon) error {
			if _, err := d.run(ctx, line.Addr()+"/rebuilt:1", readAll.line); err != nil {
				return err
			}
			line.Reset()
			if _, err := d.run(ctx, line.Addr()+"/rebuilt:2", readAll.line); err != nil {
				return err
			}
			fetched := shaped.Bytes(shaped.Blobs(line.Requests()))
			b.add("80 of 8,000 files of 50 kB changed", ourLazy.name, bytesIn("fetched", fetched), bytesIn("changed", changedBytes), reading{float64(fetched) / changedBytes, "fetched/changed"})
			return nil
		})
	})
}
