#!/bin/sh
# The programs that the tests beside this file talk to: rsyslogd with its TLS driver and RELP, logger, syslog-ng with its loggen, and
# the client libraries of fluent-forward for Python, Node and Go.
#
# rsyslog, logger and nftables (for tests/blackhole.rs) come as packages. Debian's rsyslog and syslog-ng exclude each other,
# so syslog-ng and the libraries it misses are only unpacked, into $TWINLOG_PEERS. Nothing is started and no service is
# enabled.
# Run it as often as you like: what is there already stays.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
peers=${TWINLOG_PEERS:-/var/cache/twinlog-peers}
syslog_ng='syslog-ng-core libivykis0 libnet1 libwrap0 libpcre3'

install() { "$here/../../packaging/apt-install" "$@"; }

if ! command -v rsyslogd >/dev/null || ! command -v logger >/dev/null || ! ls /usr/lib/*/rsyslog/lmnsd_gtls.so >/dev/null 2>&1 ||
    ! ls /usr/lib/*/rsyslog/omrelp.so >/dev/null 2>&1; then
    install rsyslog rsyslog-gnutls rsyslog-relp bsdutils
fi

if ! command -v nft >/dev/null || ! command -v ip >/dev/null; then
    install nftables iproute2
fi

if [ ! -e "$peers/complete" ]; then
    apt-get -qq update
    mkdir -p "$peers/packages" "$peers/root"
    (
        cd "$peers/packages"
        # apt drops to the user _apt for downloads and warns where that user may not write; the files arrive all the same.
        for package in $syslog_ng; do
            apt-get -qq download "$package" 2>/dev/null || echo "install.sh: no package $package here, trying without" >&2
        done
        for archive in *.deb; do
            dpkg-deb -x "$archive" "$peers/root"
        done
    )
    rm -rf "$peers/packages"
    : >"$peers/complete"
fi

# Node comes with npm from some sources and without from Debian, where asking for both at once may not resolve.
wanted=golang-github-fluent-fluent-logger-golang-dev
command -v go >/dev/null || wanted="$wanted golang-go"
command -v node >/dev/null || wanted="$wanted nodejs"
command -v npm >/dev/null || wanted="$wanted npm"
python3 -c 'import ensurepip, venv' 2>/dev/null || wanted="$wanted python3-venv"
forward=$peers/forward
if [ ! -x "$forward/go-client" ]; then
    # shellcheck disable=SC2086 # A list of package names.
    install $wanted
    mkdir -p "$forward/node"
    # Debian's Go libraries are sources below one GOPATH; nothing is downloaded.
    GOPATH=/usr/share/gocode GO111MODULE=off GOCACHE="$forward/go-cache" \
        go build -o "$forward/go-client" "$here/forward/client.go"
fi
if [ ! -d "$forward/node/node_modules/@fluent-org/logger" ]; then
    (cd "$forward/node" && npm install --silent --no-fund --no-audit @fluent-org/logger)
fi
if ! "$forward/python/bin/python" -c 'import fluent' 2>/dev/null; then
    python3 -m venv "$forward/python"
    "$forward/python/bin/pip" -q install fluent-logger
fi
