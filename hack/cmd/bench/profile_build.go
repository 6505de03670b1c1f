package main

import (
	"context"
	"errors"
	"log"
)

// buildSubjects builds the images with our daemon, and pushes each of them
// twice. The daemon's gzip layers are those of the stock one.
func buildSubjects(ctx context.Context, c *config, r *registry, all []*subject) (err error) {
	d, err := startDaemon(ctx, c, ourName, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, s := range all {
		for tag, compression := range map[string]string{plain: "gzip", s.ours.tag: "estargz"} {
			log.Printf("building %s, %s", s.name, tag)
			output := "type=registry,oci-mediatypes=true,force-compression=true,compression=" + compression + ",name=" + r.ref(s.name, tag)
			if _, err := d.build(ctx, s.name, output); err != nil {
				return err
			}
		}
	}
	return nil
}
