package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A step outlives tokens and redirects, and reads on.
func TestLazyExpiry(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGate(t)
	g.redirect = true
	d := startLazy(t, onDemand)
	const command = "head -c 100 /one >/dev/null; sleep 3; cat /two >/dev/null; sleep 3; " + sumAll
	p := d.build(t, upon(t, g.address+"/"+name, command))
	require.Equal(t, want, sum(t, p), p.text())
	require.NotZero(t, g.login.Refused(), "no token has expired")
	require.NotZero(t, g.gone.Load(), "no redirect has expired")
	g.requireLazy(t, name)
}
