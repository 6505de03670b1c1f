package blob

import (
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// measured counts requests and takes the time of round trips.
type measured struct {
	next   http.RoundTripper
	counts *counts
	peer   *peer
}

func (m measured) RoundTrip(r *http.Request) (*http.Response, error) {
	m.counts.requests.Add(1)
	// The next request will find a connection that had to be made for this
	// one, so that the round trip begins when the request is out.
	start := time.Now()
	var sent atomic.Int64
	trace := &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) {
		sent.Store(int64(time.Since(start)))
	}}
	resp, err := m.next.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if err == nil && resp.StatusCode == http.StatusPartialContent {
		m.peer.waited(time.Since(start) - time.Duration(sent.Load()))
	}
	return resp, err
}
