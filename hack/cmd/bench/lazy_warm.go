package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
)

// A warm is work upon an image of which everything is here: done twice in one
// RUN step, so that the kernel knows nothing the first time and all the second.
type warm struct {
	image, name, command string
	reading              func(printed float64) reading
}

// twice runs a command and prints the microseconds of the first and of the
// second time.
func twice(command string) string {
	once := func(n string) string {
		return `t=$(date +%s%N); ` + command + `; echo "MEASURED ` + n + ` $(( ($(date +%s%N) - t) / 1000 ))"; `
	}
	return once("first") + once("second")
}

func microseconds(printed float64) reading { return reading{printed * 1000, "ns/op"} }

// fio reads the large file after the kernel has seen it, and prints kB/s.
func fio(mode, size string) string {
	return `cat /large >/dev/null; for n in first second; do echo "MEASURED $n $(fio --name=x --filename=/large --readonly --invalidate=0 --rw=` +
		mode + ` --bs=` + size + ` --runtime=5 --time_based --output-format=terse | cut -d';' -f7)"; done`
}

func kilobytes(printed float64) reading { return reading{printed / 1000, "MB/s"} }

var warms = []warm{
	{"demo", "find, with modes", twice(`find / -xdev -printf '%s %m\n' >/dev/null`), microseconds},
	{"demo", "tar of usr", twice(`tar -C / -cf - usr | wc -c >/dev/null`), microseconds},
	{"demo", "python imports pandas and flask", twice(`python3 -c 'import pandas, flask'`), microseconds},
	{"large", "fio, sequential, 1 MiB", fio("read", "1M"), kilobytes},
	{"large", "fio, random, 4 KiB", fio("randread", "4k"), kilobytes},
}

// warmBuilds has both daemons fetch everything, and then compares what it costs
// to read it.
func (b *bench) warmBuilds(ctx context.Context, r *registry) error {
	b.startSection("Everything is here, and is read")
	tags := map[puller]string{eager: "gzip", ourLazy: "plain"}
	return turns(b.runs, []puller{eager, ourLazy}, func(who puller) error {
		return b.withPuller(ctx, who, func(d *daemon) error {
			for _, image := range []string{"demo", "large"} {
				if _, err := d.run(ctx, r.ref(image, tags[who]), readAll.line); err != nil {
					return err
				}
			}
			for _, w := range warms {
				if err := d.readWarm(ctx, w, r.ref(w.image, tags[who]), who.name); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (d *daemon) readWarm(ctx context.Context, w warm, image, side string) error {
	if err := dropCaches(); err != nil {
		return err
	}
	out, err := d.run(ctx, image, w.command)
	if err != nil {
		return err
	}
	found := measured.FindAllStringSubmatch(out, -1)
	if len(found) != 2 {
		return fmt.Errorf("%s: two measurements are missing in\n%s", w.name, out)
	}
	for _, m := range found {
		printed, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		d.b.add(w.name+", "+m[1]+" time", side, w.reading(printed))
	}
	return nil
}

// measured is a line of output, not of the command that the progress shows.
var measured = regexp.MustCompile(`(?m)^#\d+ [\d.]+ MEASURED (first|second) (\d+)`)
