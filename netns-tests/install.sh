#!/bin/sh
# The programs that the tests beside this file run in their hosts. Nothing is started and no service is enabled.
# Run it as often as you like: what is there already stays.
set -eu

missing=
for program in ip:iproute2 bridge:iproute2 setpriv:util-linux unshare:util-linux keepalived:keepalived nft:nftables rsyslogd:rsyslog tshark:tshark cc:gcc; do
    command -v "${program%%:*}" >/dev/null || missing="$missing ${program##*:}"
done
[ -e "/usr/lib/$(uname -m)-linux-gnu/rsyslog/omrelp.so" ] || missing="$missing rsyslog-relp"
[ -n "$missing" ] || exit 0

# shellcheck disable=SC2086 # A list of package names.
"$(dirname "$0")/../packaging/apt-install" $missing
