#!/bin/sh
# The programs that the tests beside this file talk to: rsyslogd, logger, and syslog-ng with its loggen.
#
# rsyslog, logger and nftables (of tests/netns.rs) come as packages. Debian's rsyslog and syslog-ng exclude each other, so syslog-ng and the
# libraries it misses are only unpacked, into $TWINLOG_PEERS. Nothing is started and no service is enabled.
# Run it as often as you like: what is there already stays.
set -eu

peers=${TWINLOG_PEERS:-/var/cache/twinlog-peers}
syslog_ng='syslog-ng-core libivykis0 libnet1 libwrap0 libpcre3'

update() {
    [ -n "${updated:-}" ] || apt-get -qq update
    updated=yes
}

if ! command -v rsyslogd >/dev/null || ! command -v logger >/dev/null; then
    update
    # A policy that answers 101 keeps the package from starting its service.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends rsyslog bsdutils
fi

if ! command -v nft >/dev/null || ! command -v ip >/dev/null; then
    update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends nftables iproute2
fi

if [ ! -e "$peers/complete" ]; then
    update
    mkdir -p "$peers/packages" "$peers/root"
    cd "$peers/packages"
    # apt drops to the user _apt for downloads and warns where that user may not write; the files arrive all the same.
    for package in $syslog_ng; do
        apt-get -qq download "$package" 2>/dev/null || echo "install.sh: no package $package here, trying without" >&2
    done
    for archive in *.deb; do
        dpkg-deb -x "$archive" "$peers/root"
    done
    rm -rf "$peers/packages"
    : >"$peers/complete"
fi
