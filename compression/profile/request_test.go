package profile

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// defaults returns the request of an exporter that says nothing, changed.
func defaults(change func(*Request)) *Request {
	r := &Request{
		Entrypoint: true, StageName: "profile",
		Period: 10 * time.Second, Idle: 2 * time.Second, Network: NoNetwork,
	}
	change(r)
	return r
}

func TestParseRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		attrs map[string]string
		want  *Request
	}{
		"nothing said": {nil, defaults(func(*Request) {})},
		"none":         {map[string]string{"estargz-profile": "none"}, defaults(func(r *Request) { r.Entrypoint = false })},
		"all": {map[string]string{"estargz-profile": "run+stage+entrypoint", "estargz-profile-stage": "warm"},
			defaults(func(r *Request) { r.Run, r.Stage, r.StageName = true, true, "warm" })},
		"command": {map[string]string{"estargz-profile-cmd": `sh -c 'echo "a b"'`},
			defaults(func(r *Request) { r.Command = []string{"sh", "-c", `echo "a b"`} })},
		"limits": {map[string]string{"estargz-profile-period": "1m30s", "estargz-profile-idle": "500ms", "estargz-profile-ready": "^ready"},
			defaults(func(r *Request) { r.Period, r.Idle, r.Ready = 90*time.Second, time.Second/2, "^ready" })},
		"network": {map[string]string{"estargz-profile-network": "host"}, defaults(func(r *Request) { r.Network = HostNetwork })},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := ParseRequest(tc.attrs, Default())
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestParseRequestLeavesTheRest(t *testing.T) {
	attrs := map[string]string{"estargz-profile": "run", "estargz-profil": "x", "name": "image"}
	_, rest, err := ParseRequest(attrs, Default())
	require.NoError(t, err)
	require.Equal(t, map[string]string{"estargz-profil": "x", "name": "image"}, rest)
	require.Len(t, attrs, 3, "the caller's map is its own")
}

func TestParseRequestBadValues(t *testing.T) {
	for _, tc := range []struct{ workloads, key, value, want string }{
		{"", "estargz-profile", "", "estargz-profile=: give none, or entrypoint, run, stage, joined with +"},
		{"", "estargz-profile", "none+run", "estargz-profile=none+run: give none, or"},
		{"", "estargz-profile", "run,stage", "joined with +"},
		{"", "estargz-profile-stage", "warm", "estargz-profile-stage=warm: needs stage among the workloads of estargz-profile"},
		{"stage", "estargz-profile-stage", "9 lives", "estargz-profile-stage=9 lives: give the name of a stage"},
		{"run", "estargz-profile-cmd", "ls", "estargz-profile-cmd=ls: needs entrypoint"},
		{"none", "estargz-profile-idle", "1s", "needs entrypoint"},
		{"", "estargz-profile-cmd", "echo 'open", "estargz-profile-cmd=echo 'open: give a command"},
		{"", "estargz-profile-cmd", " ", "give a command, or leave"},
		{"", "estargz-profile-period", "10", "estargz-profile-period=10: give a time like 10s, from 100ms to 1h"},
		{"", "estargz-profile-period", "2h", "give a time"},
		{"", "estargz-profile-idle", "-1s", "give a time"},
		{"", "estargz-profile-ready", "(", "estargz-profile-ready=(: give a regular expression"},
		{"", "estargz-profile-ready", "", "give a pattern"},
		{"", "estargz-profile-network", "bridge", "estargz-profile-network=bridge: give none, sandbox or host"},
	} {
		attrs := map[string]string{}
		if tc.workloads != "" {
			attrs["estargz-profile"] = tc.workloads
		}
		attrs[tc.key] = tc.value
		_, _, err := ParseRequest(attrs, Default())
		require.ErrorContains(t, err, tc.want, "%v", attrs)
	}
}

func TestAsked(t *testing.T) {
	require.True(t, Asked(map[string]string{"estargz-profile": "none"}))
	require.True(t, Asked(map[string]string{"estargz-profile-idle": "1s"}))
	require.False(t, Asked(map[string]string{"estargz-profiles": "1s", "compression": "estargz"}))
}

func TestSetDefault(t *testing.T) {
	d := Default()
	for k, v := range map[string]string{
		"estargz-profile": "none", "estargz-profile-period": "5s", "estargz-profile-idle": "1s", "estargz-profile-network": "sandbox",
	} {
		require.NoError(t, d.SetDefault(k, v))
	}
	set := func(r *Request) { r.Period, r.Idle, r.Network = 5*time.Second, time.Second, SandboxNetwork }
	for _, tc := range []struct {
		attrs  map[string]string
		change func(*Request)
	}{
		{nil, func(r *Request) { r.Entrypoint = false }},
		{map[string]string{"estargz-profile": "entrypoint"}, func(*Request) {}},
		{map[string]string{"estargz-profile": "run"}, func(r *Request) { r.Entrypoint, r.Run = false, true }},
		{map[string]string{"estargz-profile-period": "7s"}, func(r *Request) { r.Period = 7 * time.Second }},
		{map[string]string{"estargz-profile-network": "none"}, func(r *Request) { r.Network = NoNetwork }},
	} {
		got, _, err := ParseRequest(tc.attrs, d)
		require.NoError(t, err)
		require.Equal(t, defaults(func(r *Request) { set(r); tc.change(r) }), got, "%v", tc.attrs)
	}

	d = Default()
	require.NoError(t, d.SetDefault("estargz-profile", "run"))
	got, _, err := ParseRequest(map[string]string{"estargz-profile": "none"}, d)
	require.NoError(t, err)
	require.True(t, got.None(), "the build wins where it wants none")
	require.Error(t, d.SetDefault("estargz-profile-cmd", "ls"))
}
