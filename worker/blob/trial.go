package blob

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	firstWait = 100 * time.Millisecond
	maxWait   = 5 * time.Second
)

// A trial is what has gone wrong since the last byte came. The zero value is
// one in which nothing has.
type trial struct {
	since    time.Time // from when on no byte came
	rounds   int       // in which all hosts failed
	stalls   int
	failures []failure // in this round, one of each host
	earlier  []failure // in the round before
}

type failure struct {
	key
	err error
}

func (t *trial) tried(k key) bool {
	return slices.ContainsFunc(t.failures, func(f failure) bool { return f.key == k })
}

func (t *trial) add(k key, err error, lastByte time.Time) {
	if t.since.IsZero() {
		t.since = lastByte
	}
	var s *stall
	if errors.As(err, &s) {
		t.stalls++
	}
	t.failures = append(t.failures, failure{k, err})
}

// refused tells whether all hosts would say the same again.
func (t *trial) refused() bool {
	return !slices.ContainsFunc(t.failures, func(f failure) bool { return !refusal(f.err) })
}

// wait is how long to wait before the next round: longer each time, unless all
// hosts that are worth another request have said when to come.
func (t *trial) wait() time.Duration {
	backoff := min(firstWait<<min(t.rounds, 10), maxWait)
	backoff -= rand.N(backoff / 2) // many readers shall not come at once
	wait := maxDuration
	for _, f := range t.failures {
		var s *statusError
		switch {
		case refusal(f.err):
		case errors.As(f.err, &s) && s.after > 0:
			wait = min(wait, max(s.after, backoff))
		default:
			wait = min(wait, backoff)
		}
	}
	return wait
}

const maxDuration = time.Duration(1<<63 - 1)

// next begins another round.
func (t *trial) next() {
	t.rounds++
	t.earlier, t.failures = t.failures, nil
}

// last is what the last host said, with what the others said in brackets; nil
// if nothing has failed.
func (t *trial) last() error {
	failures := t.failures
	if len(failures) == 0 {
		failures = t.earlier
	}
	if len(failures) == 0 {
		return nil
	}
	err := failures[len(failures)-1].err
	for _, f := range failures[:len(failures)-1] {
		err = fmt.Errorf("%w (%s: %v)", err, f.host, f.err)
	}
	return err
}
