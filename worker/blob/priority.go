package blob

// A Priority says who goes first. Zero is the highest.
type Priority int

const (
	Wanted     Priority = iota // somebody waits for it
	Prefetch                   // somebody will ask for it soon
	Background                 // it might be asked for some day
	priorities = iota
)

func (p Priority) String() string {
	return [priorities]string{"wanted", "prefetch", "background"}[p]
}
