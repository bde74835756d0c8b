#!/bin/sh
# The pair's promises round after round under full load: drains with 20 and with 100 live TCP connections, then killed daemons.
# Needs root, rsyslog, and ten minutes; TWINLOG_ROUNDS=N (20) makes it longer or shorter.
set -eu
cd "$(dirname "$0")/.."
exec cargo test --locked --test netns -- --ignored --nocapture --test-threads=1 rounds:: "$@"
