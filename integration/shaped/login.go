package shaped

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A Login lets in who has a user's password or, unless it is Basic, a token that it
// gave for that and has not forgotten. Its methods may be called at any time, from
// many goroutines.
type Login struct {
	Users map[string]string // and their passwords
	Basic bool
	// Lasts is how long a token is good for. It is given out as one that is good
	// for an hour.
	Lasts time.Duration

	mu      sync.Mutex
	issued  int
	tokens  map[string]time.Time // until when they are good
	refused int
}

// Admits says whether a request may pass. It answers those that may not, and those
// for tokens. To a request for a part of a blob it does not say that its token is
// why it is refused.
func (l *Login) Admits(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case r.URL.Path == "/token" && !l.Basic:
		l.issue(w, r)
		return false
	case l.permits(r):
		r.Header.Del("Authorization")
		return true
	}
	challenge := `Basic realm="registry"`
	if !l.Basic {
		challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="registry",scope="repository:any:pull"`, r.Host)
		if r.Header.Get("Authorization") != "" && !IsPart(r) {
			challenge += `,error="invalid_token"`
		}
	}
	w.Header().Set("WWW-Authenticate", challenge)
	http.Error(w, "no entry", http.StatusUnauthorized)
	return false
}

// Forget makes all tokens worthless.
func (l *Login) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.tokens)
}

// Refused is the number of requests with a token that was forgotten.
func (l *Login) Refused() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refused
}

func (l *Login) issue(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	if !ok {
		user, password = r.FormValue("username"), r.FormValue("password")
	}
	if !l.knows(user, password) {
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tokens == nil {
		l.tokens = map[string]time.Time{}
	}
	l.issued++
	token := fmt.Sprint("token-", l.issued)
	l.tokens[token] = time.Now().Add(l.Lasts)
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 3600})
}

func (l *Login) knows(user, password string) bool { return user != "" && l.Users[user] == password }

func (l *Login) permits(r *http.Request) bool {
	if l.Basic {
		user, password, _ := r.BasicAuth()
		return l.knows(user, password)
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.tokens[token]) {
		return true
	}
	l.refused++
	return false
}

// IsPart says whether a request is for a part of a blob.
func IsPart(r *http.Request) bool {
	part := r.Header.Get("Range")
	return part != "" && part != "bytes=0-"
}
