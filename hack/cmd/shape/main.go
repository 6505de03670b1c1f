// Command shape puts a slow line before a registry on this machine, see package
// shaped, and writes down the requests that went over it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; it is printed")
	to := flag.String("to", "", "address of the registry, which speaks plain HTTP")
	delay := flag.Duration("delay", 20*time.Millisecond, "a round trip")
	rate := flag.Int64("rate", 400, "Mbit/s for all connections together; 0 is no limit")
	file := flag.String("log", "", "file for a line of JSON for each request")
	flag.Parse()
	if *to == "" || flag.NArg() > 0 {
		log.Fatal("usage: shape -to host:port [flags]")
	}
	link := shaped.Link{Delay: *delay, BytesPerSecond: *rate * 1e6 / 8}
	if err := serve(*listen, *to, link, *file); err != nil {
		log.Fatal(err)
	}
}

func serve(listen, to string, link shaped.Link, file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var done func(shaped.Request)
	if file != "" {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		defer f.Close()
		done = lines(f)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	p := shaped.Serve(l, to, link, done)
	fmt.Println(p.Addr())
	<-ctx.Done()
	return p.Close()
}

// lines writes requests to a file, one at a time.
func lines(f *os.File) func(shaped.Request) {
	var mu sync.Mutex
	enc := json.NewEncoder(f)
	return func(r shaped.Request) {
		mu.Lock()
		defer mu.Unlock()
		if err := enc.Encode(r); err != nil {
			log.Print(err)
		}
	}
}
