package snapshot

import "sync"

// names are locks, one for each name. The zero value holds none.
type names struct {
	mu   sync.Mutex
	held map[string]*name
}

type name struct {
	sync.Mutex
	users int // that hold the lock or wait for it
}

// lock waits for a name's lock. The caller calls unlock once.
func (n *names) lock(key string) (unlock func()) {
	n.mu.Lock()
	if n.held == nil {
		n.held = map[string]*name{}
	}
	l := n.held[key]
	if l == nil {
		l = &name{}
		n.held[key] = l
	}
	l.users++
	n.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		n.mu.Lock()
		defer n.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(n.held, key)
		}
	}
}
