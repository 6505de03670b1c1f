package seed

import "testing"

func TestAgain(t *testing.T) {
	t.Setenv(variable, "42")
	a, b := New(t), New(t)
	for range 10 {
		if x, y := a.Uint64(), b.Uint64(); x != y {
			t.Fatalf("%d and %d from the same seed", x, y)
		}
	}
}

func TestFromTheClock(t *testing.T) {
	t.Setenv(variable, "")
	if New(t).Uint64() == New(t).Uint64() {
		t.Error("two seeds are the same")
	}
}
