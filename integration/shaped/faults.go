package shaped

import "net/http"

// A CutWriter passes on the first Left bytes of an answer, and calls Cut when
// there are more.
type CutWriter struct {
	http.ResponseWriter
	Left int
	Cut  func()
}

func (w *CutWriter) Write(p []byte) (int, error) {
	if len(p) < w.Left {
		w.Left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.Left])
	w.Cut()
	return w.Left, http.ErrBodyNotAllowed
}

// A WrongWriter passes on as many bytes as there are, all of them wrong.
type WrongWriter struct{ http.ResponseWriter }

func (w *WrongWriter) Write(p []byte) (int, error) {
	wrong := make([]byte, len(p))
	for i, c := range p {
		wrong[i] = c ^ 0x55
	}
	return w.ResponseWriter.Write(wrong)
}
