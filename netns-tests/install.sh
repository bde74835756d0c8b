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

# A policy that answers 101 keeps a package from starting its service.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get -qq update
# shellcheck disable=SC2086 # A list of package names.
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $missing >/dev/null
