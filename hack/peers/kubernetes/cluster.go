package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// A cluster is safe for concurrent use.
type cluster struct {
	dir    string
	podman []string

	mu      sync.Mutex
	objects map[string]runtime.Object // by resource and name
	pods    map[string]*pod           // by name of their workload
}

func newCluster(dir string, podman []string) *cluster {
	return &cluster{dir: dir, podman: podman, objects: map[string]runtime.Object{}, pods: map[string]*pod{}}
}

func (c *cluster) handler() http.Handler {
	mux := http.NewServeMux()
	for _, namespace := range []string{"/api/v1/namespaces/default", "/apis/apps/v1/namespaces/default"} {
		mux.HandleFunc("GET "+namespace+"/{resource}/{name}", c.get)
		mux.HandleFunc("POST "+namespace+"/{resource}", c.create)
		mux.HandleFunc("DELETE "+namespace+"/{resource}/{name}", c.delete)
	}
	mux.HandleFunc("GET /api/v1/namespaces/default/pods", c.list)
	mux.HandleFunc("POST /api/v1/namespaces/default/pods/{name}/exec", c.exec)
	mux.HandleFunc("POST /apply", c.apply)
	return mux
}

func answer(w http.ResponseWriter, object runtime.Object, err error) {
	code := http.StatusOK
	if err != nil {
		code = http.StatusBadRequest
		object = &metav1.Status{Status: metav1.StatusFailure, Message: err.Error(), Reason: metav1.StatusReasonBadRequest, Code: int32(code)}
	}
	if object == nil {
		code = http.StatusNotFound
		object = &metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: int32(code)}
	}
	data, err := encode(object)
	if err != nil {
		code, data = http.StatusInternalServerError, []byte(err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(data)
}

func key(r *http.Request) string { return r.PathValue("resource") + "/" + r.PathValue("name") }

// get tells of a workload whether its pod is ready.
func (c *cluster) get(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	object, p := c.objects[key(r)], c.pods[r.PathValue("name")]
	c.mu.Unlock()
	ready := int32(0)
	if p != nil && p.ready() {
		ready = 1
	}
	switch o := object.(type) {
	case *appsv1.Deployment:
		o = o.DeepCopy()
		o.Status.ReadyReplicas = ready
		object = o
	case *appsv1.StatefulSet:
		o = o.DeepCopy()
		o.Status.ReadyReplicas = ready
		object = o
	}
	answer(w, object, nil)
}

func (c *cluster) create(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		answer(w, nil, err)
		return
	}
	object, err := decode(data)
	if err == nil {
		err = c.add(object)
	}
	answer(w, object, err)
}

// apply takes a file of manifests, as kubectl does.
func (c *cluster) apply(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		answer(w, nil, err)
		return
	}
	objects, err := decodeAll(data)
	if err == nil {
		err = agree(objects)
	}
	for _, object := range objects {
		if err == nil {
			err = c.add(object)
		}
	}
	answer(w, &metav1.Status{Status: metav1.StatusSuccess}, err)
}

func (c *cluster) add(object runtime.Object) error {
	meta, ok := object.(metav1.Object)
	if !ok {
		return errors.New("has no name")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := asWorkload(object); w != nil {
		p, err := c.start(w)
		if err != nil {
			return err
		}
		c.pods[w.name] = p
	}
	resource := strings.ToLower(reflect.TypeOf(object).Elem().Name()) + "s"
	c.objects[resource+"/"+meta.GetName()] = object
	return nil
}

func (c *cluster) delete(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.objects[key(r)] == nil {
		answer(w, nil, nil)
		return
	}
	delete(c.objects, key(r))
	var err error
	if p := c.pods[r.PathValue("name")]; p != nil {
		delete(c.pods, r.PathValue("name"))
		err = p.end()
	}
	answer(w, &metav1.Status{Status: metav1.StatusSuccess}, err)
}

func (c *cluster) list(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		answer(w, nil, err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	found := &corev1.PodList{}
	for _, p := range c.pods {
		if selector.Matches(labels.Set(p.Labels)) {
			found.Items = append(found.Items, p.Pod)
		}
	}
	answer(w, found, nil)
}

func (c *cluster) exec(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	remotecommand.ServeExec(w, r, c, r.PathValue("name"), "", q.Get("container"), q["command"],
		&remotecommand.Options{Stdin: q.Get("stdin") == "true", Stdout: q.Get("stdout") == "true", Stderr: q.Get("stderr") == "true"},
		time.Hour, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

// ExecInContainer implements remotecommand.Executor.
func (c *cluster) ExecInContainer(ctx context.Context, name, _, _ string, command []string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	cmd := c.command(ctx, append([]string{"exec", "--interactive", name}, command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, errs
	// A client may leave its end open.
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); !errors.Is(err, exec.ErrWaitDelay) {
		return err
	}
	return nil
}

func (c *cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.podman[0], append(c.podman[1:len(c.podman):len(c.podman)], args...)...)
}

func (c *cluster) end() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pods {
		err = errors.Join(err, p.end())
	}
	return err
}
