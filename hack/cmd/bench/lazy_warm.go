package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"regexp"
	"strconv"
)

// A warm is work upon an image of which everything is here: done twice in one
// RUN step, so that the kernel knows nothing the first time and all the second.
// It prints numbers of which each is compared with overlayfs.
type warm struct {
	image, name, command string
	unit                 string // ms, or MB/s
}

// twice runs a command and prints the milliseconds of the first and of the
// second time.
func twice(command string) string {
	once := func(n string) string {
		return `t=$(date +%s%N); ` + command + `; echo "MEASURED ` + n + ` $(( ($(date +%s%N) - t) / 1000 ))"; `
	}
	return once("first") + once("second")
}

// fio reads the large file after the kernel has seen it, and prints kB/s.
func fio(mode, size string) string {
	return `cat /large >/dev/null; for n in first second; do echo "MEASURED $n $(fio --name=x --filename=/large --readonly --invalidate=0 --rw=` +
		mode + ` --bs=` + size + ` --runtime=5 --time_based --output-format=terse | cut -d';' -f7)"; done`
}

var warms = []warm{
	{"demo", "`find / -printf '%s %m\\n'`", twice(`find / -xdev -printf '%s %m\n' >/dev/null`), "ms"},
	{"demo", "`tar` of /usr", twice(`tar -C / -cf - usr | wc -c >/dev/null`), "ms"},
	{"demo", "python imports pandas, flask", twice(`python3 -c 'import pandas, flask'`), "ms"},
	{"large", "fio, sequential, 1 MiB", fio("read", "1M"), "MB/s"},
	{"large", "fio, random, 4 KiB", fio("randread", "4k"), "MB/s"},
}

// warmBuilds has both daemons fetch everything, and then compares what it costs
// to read it.
func warmBuilds(ctx context.Context, c *config, r *registry) (s section, err error) {
	all := &results{}
	tags := map[puller]string{eager: "gzip", ourLazy: "plain"}
	err = turns(c.runs, []puller{eager, ourLazy}, func(run int, who puller) error {
		log.Printf("run %d of %d, %s, what is here already", run, c.runs, who.name)
		return measureWarm(ctx, c, r, who, tags[who], all)
	})
	if err != nil {
		return s, err
	}
	return all.section("Everything is here, and is read"), nil
}

func measureWarm(ctx context.Context, c *config, r *registry, who puller, tag string, into *results) (err error) {
	d, err := startPuller(ctx, c, who)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, image := range []string{"demo", "large"} {
		if _, err := d.run(ctx, r.ref(image, tag), readAll); err != nil {
			return err
		}
	}
	for _, w := range warms {
		if err := dropCaches(); err != nil {
			return err
		}
		out, err := d.run(ctx, r.ref(w.image, tag), w.command)
		if err != nil {
			return err
		}
		found := measured.FindAllStringSubmatch(out, -1)
		if len(found) != 2 {
			return fmt.Errorf("%s: two measurements are missing in\n%s", w.name, out)
		}
		for _, m := range found {
			value, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				return err
			}
			f := reading{value * 1000, "ns/op"} // of microseconds
			if w.unit == "MB/s" {
				f = reading{value / 1000, w.unit}
			}
			into.add(w.name+", "+m[1], who.name, f)
		}
	}
	return nil
}

// measured is a line of output, not of the command that the progress shows.
var measured = regexp.MustCompile(`(?m)^#\d+ [\d.]+ MEASURED (first|second) (\d+)`)
