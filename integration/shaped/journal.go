package shaped

import (
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A Request is one that a client made, and what it got.
type Request struct {
	Time    time.Time `json:"time"` // when it came
	Seconds float64   `json:"seconds,omitempty"`
	Method  string    `json:"method"`
	Path    string    `json:"path"`
	Blob    string    `json:"blob,omitempty"`  // the digest in the path of a blob
	Range   string    `json:"range,omitempty"` // the header
	Status  int       `json:"status,omitempty"`
	Bytes   int64     `json:"bytes"` // of the body, so far
}

// Blobs leaves those requests that read a blob.
func Blobs(requests []Request) []Request {
	var blobs []Request
	for _, r := range requests {
		if r.Blob != "" && r.Method == http.MethodGet {
			blobs = append(blobs, r)
		}
	}
	return blobs
}

// Bytes sums up what requests got.
func Bytes(requests []Request) int64 {
	var sum int64
	for _, r := range requests {
		sum += r.Bytes
	}
	return sum
}

// A journal remembers requests. It is safe for concurrent use.
type journal struct {
	done func(Request)

	mu      sync.Mutex
	entries []*entry
}

// An entry is a request that may still be going on.
type entry struct {
	request       Request // as it came
	bytes, status atomic.Int64
	nanoseconds   atomic.Int64 // that it took; zero while it goes on
}

func (j *journal) begin(r *http.Request) *entry {
	e := &entry{request: Request{
		Time: time.Now(), Method: r.Method, Path: r.URL.Path, Blob: blob(r.URL.Path), Range: r.Header.Get("Range"),
	}}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, e)
	return e
}

func (j *journal) end(e *entry) {
	e.nanoseconds.Store(int64(time.Since(e.request.Time)))
	if j.done != nil {
		j.done(e.now())
	}
}

// blob is the digest in /v2/<name>/blobs/<digest>; uploads have none.
func blob(name string) string {
	dir, base := path.Split(name)
	if strings.HasSuffix(dir, "/blobs/") && strings.Contains(base, ":") {
		return base
	}
	return ""
}

func (e *entry) now() Request {
	r := e.request
	r.Seconds = time.Duration(e.nanoseconds.Load()).Seconds()
	r.Status, r.Bytes = int(e.status.Load()), e.bytes.Load()
	return r
}

func (j *journal) since(mark time.Time) []Request {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []Request
	for _, e := range j.entries {
		if !e.request.Time.Before(mark) {
			all = append(all, e.now())
		}
	}
	return all
}

func (j *journal) reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = nil
}
