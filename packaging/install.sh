#!/bin/sh
# The programs that build the packages, judge them and try them. Nothing is started and no service is enabled.
# Run it as often as you like: what is there already stays.
set -eu

missing=
for program in dpkg-shlibdeps:dpkg-dev objdump:binutils rpmbuild:rpm lintian:lintian rpmlint:rpmlint man:man-db \
    groff:groff-base systemd-analyze:systemd systemd-nspawn:systemd-container ip:iproute2 python3:python3 xz:xz-utils \
    promtool:prometheus; do
    command -v "${program%%:*}" >/dev/null || missing="$missing ${program##*:}"
done
[ -n "$missing" ] || exit 0

# shellcheck disable=SC2086 # A list of package names.
"$(dirname "$0")/apt-install" $missing
