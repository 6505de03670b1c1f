package main

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// recordedSteps are the RUN steps that are measured, by how their names begin.
var recordedSteps = []struct{ name, begins string }{
	{"apt-get install of some 50 packages", "] RUN : apt-get"},
	{"make -j2 of 300 C files", "] RUN : make"},
}

// record builds the same steps in turns, with their reads recorded and without, with
// one daemon. Only the steps measured run again; what comes before them is there
// from first builds that do not count.
func (b *bench) record(ctx context.Context) error {
	b.startSection("A step, and the same step recorded")
	workloads, builds := []string{"none", "run"}, 0
	names := map[string]string{"none": "not recorded", "run": "recorded"}
	return b.withDaemon(ctx, ourName, "", func(d *daemon) error {
		build := func(workload string) (progress string, err error) {
			builds++
			unix.Sync() // what is written later is somebody else's time
			output := "type=image,name=bench,push=false,oci-mediatypes=true,compression=estargz,compression-level=1,estargz-profile=" + workload
			return d.build(ctx, "record", output, "--set", fmt.Sprint("record.args.ROUND=", builds))
		}
		for _, workload := range workloads {
			if _, err := build(workload); err != nil {
				return err
			}
		}
		return turns(b.runs, workloads, func(workload string) error {
			progress, err := build(workload)
			if err != nil {
				return err
			}
			for _, s := range recordedSteps {
				took, err := stepTime(progress, s.begins)
				if err != nil {
					return err
				}
				b.add(s.name, names[workload], wall(took))
			}
			return nil
		})
	})
}
