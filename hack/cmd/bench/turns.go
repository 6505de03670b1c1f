package main

import "slices"

// turns has every side measured once in each of so many runs. Their order is turned
// around from run to run, so that in the end none has been first more often.
func turns[S any](runs int, sides []S, measure func(run int, side S) error) error {
	order := slices.Clone(sides)
	for run := range runs {
		for _, side := range order {
			if err := measure(run+1, side); err != nil {
				return err
			}
		}
		slices.Reverse(order)
	}
	return nil
}
