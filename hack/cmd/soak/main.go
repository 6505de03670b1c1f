// Command soak builds at random for a given time, while what a build depends on
// dies, freezes, fails and fills up, and checks after each round that nobody got
// a wrong byte and that nothing is left that nobody owns. hack/soak starts it.
//
// What happens comes from a seed, which it prints; when it happens depends on the
// machine, so that the same seed finds the same defect often, not always.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(log.Ltime)
	var opt options
	flag.DurationVar(&opt.lasts, "for", time.Minute, "how long to go on")
	flag.Uint64Var(&opt.seed, "seed", uint64(time.Now().UnixNano()), "where chance begins")
	flag.StringVar(&opt.daemon, "daemon", "buildkitd-esgz", "what to run")
	flag.StringVar(&opt.bin, "bin", "", "what hack/tools built")
	flag.StringVar(&opt.dir, "dir", "", "directory for everything else")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log.Printf("seed %d", opt.seed)
	if err := soak(ctx, opt); err != nil {
		log.Fatalf("seed %d: %v", opt.seed, err)
	}
}

type options struct {
	lasts            time.Duration
	seed             uint64
	daemon, bin, dir string
}

func soak(ctx context.Context, opt options) (err error) {
	w, err := newWorld(ctx, opt)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.showLogs()
		}
		err = errors.Join(err, w.close())
	}()
	round := 0
	for end := time.Now().Add(opt.lasts); time.Now().Before(end) && ctx.Err() == nil; round++ {
		r := rand.New(rand.NewPCG(opt.seed, uint64(round)))
		if err := w.round(ctx, r, round); err != nil && ctx.Err() == nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	log.Printf("%d rounds, %d steps, %d of them disturbed, %d failed for it and then succeeded", round, w.steps, w.disturbed, w.failed)
	return ctx.Err()
}

// round takes some steps at once while something happens, takes those again that
// failed for it, and looks at what is left.
func (w *world) round(ctx context.Context, r *rand.Rand, n int) error {
	d := w.daemons[r.IntN(len(w.daemons))]
	what := d.disturbances()[r.IntN(len(d.disturbances()))]
	var steps []step
	for range 1 + r.IntN(3) {
		on := d
		if r.IntN(4) == 0 {
			on = w.daemons[r.IntN(len(w.daemons))]
		}
		steps = append(steps, w.randomStep(r, on))
	}
	names := make([]string, len(steps))
	for i, s := range steps {
		names[i] = s.name
	}
	log.Printf("round %d: %s: %s; %q", n, d.name, what.name, names)

	errs := w.together(ctx, r, steps, what)
	for i, s := range steps {
		if errs[i] == nil {
			continue
		}
		if s.on != d || what.do == nil || what.harmless || errors.Is(errs[i], errWrong) {
			return fmt.Errorf("%s: %w", s.name, errs[i])
		}
		w.failed++
		log.Printf("failed, as it may: %s: %.300q", s.name, errs[i].Error())
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: once more, after %s: %w (at first: %w)", s.name, what.name, err, errs[i])
		}
	}
	for _, d := range w.daemons {
		err := d.check(ctx)
		if errors.Is(err, errInUse) && what.do != nil {
			// BuildKit keeps what it was pulling in use, or making a checksum of, if
			// the build is canceled. That ends with the daemon.
			log.Printf("%s: restarted: %v", d.name, err)
			if err = errors.Join(d.stop(), d.start()); err == nil {
				err = d.check(ctx)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: after %s: %w", d.name, what.name, err)
		}
	}
	if n%4 != 3 {
		return nil
	}
	return d.checkEmpty(ctx)
}

// together returns the error of each step.
func (w *world) together(ctx context.Context, r *rand.Rand, steps []step, what disturbance) []error {
	w.steps += len(steps)
	errs := make([]error, len(steps))
	done := make(chan struct{})
	for i, s := range steps {
		go func() {
			defer func() { done <- struct{}{} }()
			ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
			defer cancel()
			errs[i] = s.do(ctx)
		}()
	}
	if what.do != nil {
		w.disturbed += len(steps)
		time.Sleep(time.Duration(r.Int64N(int64(1500 * time.Millisecond))))
		what.do(r)
	}
	for range steps {
		<-done
	}
	if what.undo != nil {
		what.undo()
	}
	return errs
}

// errWrong is an error that nothing excuses.
var errWrong = errors.New("wrong")

var errInUse = errors.New("in use, while nobody builds")

func (w *world) temp() (string, error) { return os.MkdirTemp(filepath.Join(w.opt.dir, "tmp"), "") }
