// Command verify checks every layer of an image in a registry on loopback with
// the stock estargz library, and prints what it found as a table.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

func main() {
	log.SetFlags(0)
	out := flag.String("o", "", "file to write the table to, instead of standard output")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: verify [-o file] registry/name:tag")
	}
	f := os.Stdout
	if *out != "" {
		var err error
		if f, err = os.Create(*out); err != nil {
			log.Fatal(err)
		}
	}
	if err := verify(context.Background(), f, flag.Arg(0)); err != nil {
		log.Fatal(err)
	}
	if err := f.Close(); err != nil {
		log.Fatal(err)
	}
}

func verify(ctx context.Context, out io.Writer, ref string) error {
	found, err := pushed.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	if len(found.Images) == 0 {
		return fmt.Errorf("%s has no image", ref)
	}
	for _, im := range found.Images {
		start := time.Now()
		layers, err := im.CheckEStargz(ctx)
		if err != nil {
			return err
		}
		if err := table(out, im, layers); err != nil {
			return err
		}
		fmt.Fprintf(out, "stock estargz.Open, VerifyTOC, every chunk and every diffID checked in %.1fs\n",
			time.Since(start).Seconds())
	}
	return nil
}

func table(out io.Writer, im *pushed.Image, layers []*pushed.Layer) error {
	fmt.Fprintf(out, "%s/%s %s, %d layers\n", im.Config.OS, im.Config.Architecture, im.Descriptor.Digest, len(layers))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "layer\tblob\tuncompressed\tentries\tfiles\tchunks\tTOC\tcheck\t")
	for _, l := range layers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\tok\t\n",
			short(l.Descriptor.Digest.Encoded()), size(l.Descriptor.Size), size(l.UncompressedSize),
			l.Entries, l.Files, l.Chunks, short(l.TOCDigest.Encoded()))
	}
	return w.Flush()
}

func size(n int64) string { return units.HumanSize(float64(n)) }

func short(s string) string { return s[:12] }
