// Command kubernetes is a cluster of one node. It has as much of the API as
// buildx's kubernetes driver and our manifests use: workloads of one replica, what
// their pods mount, and exec. A pod is a container of podman with the host's
// network.
//
// With -check it decodes manifests by the schemas of the API, and ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	listen := flag.String("listen", "", "address to serve the API on")
	dir := flag.String("dir", "", "directory for volumes")
	check := flag.Bool("check", false, "only check the manifests that are named")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: kubernetes -listen ADDRESS -dir DIR PODMAN [FLAG...]\n       kubernetes -check FILE...")
		flag.PrintDefaults()
	}
	flag.Parse()
	run := func() error { return serve(*listen, newCluster(*dir, flag.Args())) }
	if *check {
		run = func() error { return checkFiles(flag.Args()) }
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func checkFiles(files []string) error {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		objects, err := decodeAll(text)
		if err == nil {
			err = agree(objects)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

func serve(address string, c *cluster) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: address, Handler: c.handler()}
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe() }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		server.Close()
	}
	return errors.Join(err, c.end())
}
