#!/bin/sh
# Installs Debian's redis-server and haproxy, the broker and the proxies of the serverless system that LIFL is compared
# with.  Their services are not started and not enabled: the benchmark starts both itself, on free ports of loopback.
set -eu
command -v redis-server >/dev/null && command -v haproxy >/dev/null && exit 0
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server haproxy
if command -v systemctl >/dev/null; then systemctl disable redis-server haproxy; fi
