package worker

import (
	"testing"

	"github.com/moby/buildkit/session"
	"github.com/stretchr/testify/require"
)

// A call fails for another's session once for each that has ended while it went on.
func TestOverlaps(t *testing.T) {
	var o overlaps
	ended := map[string]bool{}
	alive := func(session string) bool { return !ended[session] }
	begin := func(sessions ...string) *overlap { return o.begin(session.NewGroup(sessions...)) }

	earlier := begin("earlier")
	earlier.end()
	first := begin("first", "both")
	second := begin("second", "both")
	third := begin("third")
	require.False(t, second.failed(alive), "all are there")

	ended["earlier"] = true
	require.False(t, second.failed(alive), "it had returned before")

	ended["first"] = true
	first.end()
	for _, call := range []*overlap{second, third} {
		require.True(t, call.failed(alive))
		require.False(t, call.failed(alive), "counted before")
	}

	ended["third"], ended["both"] = true, true
	require.True(t, second.failed(alive), "the third ended")
	third.end()
	second.end()
	require.Empty(t, o.calls)

	only := o.begin(nil)
	defer only.end()
	require.False(t, only.failed(alive))
}

func TestOwnSessionIsNotAnothers(t *testing.T) {
	var o overlaps
	gone := func(string) bool { return false }
	a, b := o.begin(session.NewGroup("s")), o.begin(session.NewGroup("s"))
	require.False(t, a.failed(gone))
	require.False(t, b.failed(gone))
}

// A call that began after the one of an ended session had returned may wait for
// work of that session all the same, which another call has kept going.
func TestOverlapsOfOverlaps(t *testing.T) {
	var o overlaps
	ended := map[string]bool{}
	alive := func(session string) bool { return !ended[session] }
	begin := func(id string) *overlap { return o.begin(session.NewGroup(id)) }
	first, second := begin("first"), begin("second")
	ended["first"] = true
	first.end()
	third := begin("third")
	for _, call := range []*overlap{second, third} {
		require.True(t, call.failed(alive))
		require.False(t, call.failed(alive), "counted before")
	}
	again := begin("first")
	require.False(t, again.failed(alive), "its own session")
}
