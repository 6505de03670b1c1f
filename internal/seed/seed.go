// Package seed gives tests random numbers that can be had again. Only tests
// import it.
package seed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// variable names the seed of all tests, in place of one from the clock.
const variable = "BUILDKITD_ESGZ_SEED"

// New returns random numbers, safe for concurrent use, and logs how to have
// them again: a test that fails shows it, and so does go test -v.
func New(t testing.TB) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv(variable); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", variable, err)
		}
	}
	t.Logf("%s=%d", variable, n)
	return rand.New(&source{pcg: rand.NewPCG(n, 0)})
}

type source struct {
	mu  sync.Mutex
	pcg *rand.PCG
}

func (s *source) Uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pcg.Uint64()
}
