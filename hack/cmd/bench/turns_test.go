package main

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTurns(t *testing.T) {
	sides, order := []string{"a", "b", "c"}, ""
	require.NoError(t, turns(3, sides, func(run int, side string) error {
		order += fmt.Sprint(side, run, " ")
		return nil
	}))
	require.Equal(t, "a1 b1 c1 c2 b2 a2 a3 b3 c3 ", order)
	require.Equal(t, []string{"a", "b", "c"}, sides)

	broken := errors.New("broken")
	require.Equal(t, broken, turns(3, sides, func(run int, side string) error { return broken }))
}
