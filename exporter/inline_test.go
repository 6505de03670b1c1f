package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/exporter/util/epoch"
	"github.com/moby/buildkit/solver/result"
	"github.com/stretchr/testify/require"
)

func inline(data string) *exptypes.InlineCacheEntry {
	return &exptypes.InlineCacheEntry{Data: []byte(data)}
}

func cacheOf(res *result.Result[*exptypes.InlineCacheEntry], err error) exptypes.InlineCache {
	return func(context.Context) (*result.Result[*exptypes.InlineCacheEntry], error) { return res, err }
}

// An inline cache is the same whenever it was made.
func TestInlineCacheEpoch(t *testing.T) {
	records := func(tm time.Time) string {
		at, err := json.Marshal(tm)
		require.NoError(t, err)
		return `[{"layers":[{"layer":1,"createdAt":` + string(at) + `}],"digest":"sha256:a"},` +
			`{"chains":[{"layers":[0,2],"createdAt":` + string(at) + `}],"digest":"sha256:b","inputs":[[{"link":0}]]}]`
	}
	src := &bkexporter.Source{Metadata: map[string][]byte{
		exptypes.ExporterPlatformsKey:   platformsKey(t, "amd64", "arm64"),
		"source.date.epoch/linux/arm64": []byte("1000000000"),
	}}
	for name, tc := range map[string]struct {
		epoch                  *epoch.Epoch
		time, wantAMD, wantARM time.Time
	}{
		"later":     {&epoch.Epoch{Value: &middle}, recent, middle, middle},
		"earlier":   {&epoch.Epoch{Value: &middle}, old, old, old},
		"platforms": {nil, recent, recent, old},
	} {
		t.Run(name, func(t *testing.T) {
			stock := &result.Result[*exptypes.InlineCacheEntry]{}
			stock.AddRef("linux/amd64", inline(records(tc.time)))
			stock.AddRef("linux/arm64", inline(records(tc.time)))
			res, err := (&rewriter{epoch: tc.epoch}).inlineCache(src, cacheOf(stock, nil))(t.Context())
			require.NoError(t, err)
			require.JSONEq(t, records(tc.wantAMD), string(res.Refs["linux/amd64"].Data))
			require.JSONEq(t, records(tc.wantARM), string(res.Refs["linux/arm64"].Data))
		})
	}
}

func TestInlineCacheOfNothing(t *testing.T) {
	r := &rewriter{epoch: &epoch.Epoch{Value: &middle}}
	res, err := r.inlineCache(&bkexporter.Source{}, cacheOf(nil, nil))(t.Context())
	require.NoError(t, err)
	require.Nil(t, res)

	_, err = r.inlineCache(&bkexporter.Source{}, cacheOf(nil, errors.New("no cache")))(t.Context())
	require.EqualError(t, err, "no cache")

	none := &result.Result[*exptypes.InlineCacheEntry]{}
	none.SetRef(nil)
	res, err = r.inlineCache(&bkexporter.Source{}, cacheOf(none, nil))(t.Context())
	require.NoError(t, err)
	require.Nil(t, res.Ref)
}
