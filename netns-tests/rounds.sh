#!/bin/sh
# The pair's promises round after round under full load: drains with 20 and with 100 live TCP connections, then killed
# daemons, lost disks, nodes that die while connections move, and a standby that a million messages are ahead of. Needs root,
# rsyslog, and a quarter of an hour; TWINLOG_ROUNDS=N (20) makes it longer or shorter.
set -eu
cd "$(dirname "$0")/.."
exec cargo test --locked --test netns -- --ignored --nocapture --test-threads=1 rounds:: hard_cases:: "$@"
