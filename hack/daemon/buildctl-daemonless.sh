#!/bin/sh
# Runs one command of buildctl with a daemon that is started for it and ends with
# it:
#
#	buildctl-daemonless.sh build --frontend dockerfile.v0 ...
#
# The environment is that of BuildKit's script of this name: $BUILDKITD_FLAGS are
# flags for the daemon; $BUILDKITD, $BUILDCTL and $ROOTLESSKIT are other programs
# than those in $PATH; $BUILDCTL_CONNECT_RETRIES_MAX says how many times to ask
# again whether the daemon is ready, after 0.1 s and 0.02 s more each time.
set -eu

: "${BUILDCTL:=buildctl}" "${BUILDCTL_CONNECT_RETRIES_MAX:=50}"
: "${BUILDKITD:=buildkitd}" "${BUILDKITD_FLAGS:=}" "${ROOTLESSKIT:=rootlesskit}"

launcher=''
[ "$(id -u)" = 0 ] || launcher=$ROOTLESSKIT

# Each run has a socket of its own: another one's daemon may be in this container.
dir=$(mktemp -d)
log=$dir/log address=unix://$dir/buildkitd.sock
running=''
finish() {
    status=$?
    trap '' INT TERM HUP
    # The client first, which ends its build.
    for pid in $running; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" || true
    done
    rm -rf "$dir"
    exit "$status"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

give_up() {
    cat "$log" >&2
    echo "${0##*/}: $1" >&2
    exit 1
}

# The variables may hold several words each.
# shellcheck disable=SC2086
$launcher $BUILDKITD $BUILDKITD_FLAGS --addr="$address" >"$log" 2>&1 &
daemon=$!
running=$daemon

tries=0
# shellcheck disable=SC2086
until $BUILDCTL --addr="$address" debug workers >/dev/null 2>&1; do
    kill -0 "$daemon" 2>/dev/null || give_up "the daemon has ended"
    [ "$tries" -lt "$BUILDCTL_CONNECT_RETRIES_MAX" ] || give_up "no answer from $address"
    wait=$((100 + 20 * tries))
    sleep "$((wait / 1000)).$(printf '%03d' $((wait % 1000)))"
    tries=$((tries + 1))
done

# A shell that waits for a command in the background handles signals meanwhile.
# Such a command has no standard input unless it is given one.
exec 3<&0
# shellcheck disable=SC2086
$BUILDCTL --addr="$address" "$@" <&3 &
client=$!
running="$client $daemon"
wait "$client"
