// Command optimize does to an image what `ctr-remote image optimize --oci` of
// stargz-snapshotter does, with the same libraries: it pulls the image into
// containerd, runs it and watches which files it opens, converts its layers to
// eStargz with those files first, and pushes the result. The registry is one on
// this machine that speaks plain HTTP.
//
// It is a module of its own: upstream's command is part of a module that cannot
// be had from a proxy, and the library that watches the container is in
// stargz-snapshotter until v0.18.2 only. The library that writes eStargz is the
// newest.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/stargz-snapshotter/analyzer/fanotify/service"
)

// options are named as ctr-remote's.
type options struct {
	address    string
	period     time.Duration
	waitOnLine string
	recordOut  string
	level      int
	noOptimize bool
}

func main() {
	// The analyzer starts its own program with these arguments in a mount
	// namespace that the container then shares.
	if len(os.Args) == 3 && os.Args[1] == "fanotify" {
		if err := service.Serve(os.Args[2], os.Stdin, os.Stdout); err != nil {
			log.Fatal(err)
		}
		return
	}
	var o options
	flag.StringVar(&o.address, "address", os.Getenv("CONTAINERD_ADDRESS"), "containerd's unix socket, also $CONTAINERD_ADDRESS")
	flag.DurationVar(&o.period, "period", 10*time.Second, "how long the container runs at most")
	flag.StringVar(&o.waitOnLine, "wait-on-line", "", "a line of the container's stdout that contains this ends it")
	flag.StringVar(&o.recordOut, "record-out", "", "file for the record of accessed files")
	flag.IntVar(&o.level, "estargz-compression-level", 9, "gzip level")
	flag.BoolVar(&o.noOptimize, "no-optimize", false, "convert the layers as they are, without running the image")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: optimize [flags] source target")
		os.Exit(2)
	}
	if err := optimize(o, flag.Arg(0), flag.Arg(1)); err != nil {
		log.Fatal(err)
	}
}

func optimize(o options, source, target string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client, err := containerd.New(o.address)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, release, err := client.WithLease(namespaces.WithNamespace(ctx, namespaces.Default))
	if err != nil {
		return err
	}
	defer release(context.WithoutCancel(ctx))

	im, err := pull(ctx, client, source)
	if err != nil {
		return fmt.Errorf("pull %s: %w", source, err)
	}
	var record []byte
	if !o.noOptimize {
		begin := time.Now()
		if record, err = im.analyze(ctx, o); err != nil {
			return fmt.Errorf("run %s: %w", source, err)
		}
		fmt.Printf("%s ran for %s\n", source, time.Since(begin))
	}
	if o.recordOut != "" {
		if err := os.WriteFile(o.recordOut, record, 0o600); err != nil {
			return err
		}
	}
	if err := im.convert(ctx, target, record, o.level); err != nil {
		return fmt.Errorf("convert %s: %w", source, err)
	}
	return push(ctx, client, target)
}
