package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/entitlements"
)

// knownEntitlements are what builds can be allowed to ask for.
var knownEntitlements = []string{
	string(entitlements.EntitlementNetworkHost),
	string(entitlements.EntitlementSecurityInsecure),
	string(entitlements.EntitlementDevice),
}

// setEntitlements replaces those of the configuration file.
func setEntitlements(cfg *config.Config, values []string) error {
	for _, v := range values {
		if !slices.Contains(knownEntitlements, v) {
			return fmt.Errorf("%q: want %s", v, strings.Join(knownEntitlements, ", "))
		}
	}
	cfg.Entitlements = values
	return nil
}

// allowedEntitlements is what the configuration allows. Devices are on with
// CDI: each one needs a specification on this machine and the client's consent.
func allowedEntitlements(cfg config.Config) []string {
	allowed := slices.Clone(cfg.Entitlements)
	for _, v := range allowed {
		// In the file, BuildKit passes over what it does not know: a daemon
		// that starts with one must start with the other.
		if !slices.Contains(knownEntitlements, v) {
			bklog.L.Warnf("insecure-entitlements: %q is ignored, want %s", v, strings.Join(knownEntitlements, ", "))
		}
	}
	if !devicesDisabled(cfg.CDI) {
		allowed = append(allowed, string(entitlements.EntitlementDevice))
	}
	return allowed
}
