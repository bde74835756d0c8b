#!/bin/sh
# twinlog beside keepalived, and how punctual and how cheap the election is: prints the tables of BENCHMARKS.md. Needs root
# and a quarter of an hour on a machine that does nothing else. `compare.sh compare` or `compare.sh timing` runs one of
# the two; TWINLOG_REPEATS=1 and TWINLOG_ONLY="host lost" make the first shorter.
set -eu
cd "$(dirname "$0")/.."
exec cargo test --locked --test netns -- --ignored --nocapture --test-threads=1 "$@"
