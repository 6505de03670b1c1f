package main

import (
	"context"
	"errors"
	"log"
)

// lazyImages are the attributes that each tag of the demo image is exported with.
var lazyImages = []struct{ tag, attributes string }{
	{"gzip", "compression=gzip"},
	{"plain", "compression=estargz,estargz-profile=none"},
	{"profiled", "compression=estargz"},
}

// pushLazyImages builds the demo image once and pushes it in all ways, and an
// image with a large file.
func pushLazyImages(ctx context.Context, c *config, r *registry) (err error) {
	d, err := startDaemon(ctx, c, ourName, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for _, target := range []string{"demo", "large"} {
		for _, image := range lazyImages {
			if target == "large" && image.tag == "profiled" {
				continue
			}
			log.Printf("pushing %s, %s", target, image.tag)
			if _, err := d.build(ctx, target, "type=registry,oci-mediatypes=true,force-compression=true,name="+r.ref(target, image.tag)+","+image.attributes); err != nil {
				return err
			}
		}
	}
	return nil
}
