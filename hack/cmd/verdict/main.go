// Command verdict runs go test with its arguments, and does not take a skipped
// test for one that passed: it fails unless the reason is one of those below.
// Nothing comes from the cache. With -v as the first argument all output is shown.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"slices"
)

func main() {
	log.SetFlags(0)
	args := os.Args[1:]
	v := newVerdict(os.Stdout)
	if len(args) > 0 && args[0] == "-v" {
		v.verbose, args = true, args[1:]
	}
	if err := run(context.Background(), v, args); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, v *verdict, args []string) error {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"test", "-json", "-count=1"}, args)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = v.read(out)
	_, _ = io.Copy(io.Discard, out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	return v.skips()
}
