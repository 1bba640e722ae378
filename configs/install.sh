#!/bin/sh
# Installs a LIFL node as a systemd service, or takes it away again.
#
#   sh install.sh [WHEEL]          install, or upgrade: the wheel, or what `pip install lifl` gets
#   sh install.sh --uninstall      remove program and units; state folder, config and account stay
#   sh install.sh --purge          remove these, too: jobs, models and identities are gone
#
# DESTDIR=FOLDER puts all of it below a folder, without an account and without systemctl.
# PYTHON=python3.12 chooses the interpreter (3.11 or newer).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
program=$root/opt/lifl
command=$root/usr/local/bin/lifl
config=$root/etc/lifl
state=$root/var/lib/lifl
units=$root/etc/systemd/system

say() { printf '%s\n' "$*"; }
fail() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
has_systemd() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

uninstall() {
	if has_systemd; then
		systemctl disable --now lifld.socket lifld.service 2>/dev/null || true
	fi
	rm -f "$units/lifld.service" "$units/lifld.socket"
	if [ "$(readlink "$command" 2>/dev/null)" = "$program/bin/lifl" ]; then rm -f "$command"; fi
	rm -rf "$program"
	if has_systemd; then systemctl daemon-reload; fi
	if [ "$1" = purge ]; then
		rm -rf "$config" "$state"
		if [ -z "$root" ] && id lifl >/dev/null 2>&1; then userdel lifl; fi
		say "LIFL is removed, with its jobs, models and identities"
	else
		say "LIFL is removed; $state, $config and the account lifl are left (sh install.sh --purge removes them)"
	fi
}

install_node() {
	python=${PYTHON:-python3}
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
		fail "$python is not Python 3.11 or newer: PYTHON=python3.12 sh install.sh"
	"$python" -c 'import ensurepip' 2>/dev/null || fail "$python has no venv (Debian: apt-get install python3-venv)"
	if [ -z "$root" ] && ! id lifl >/dev/null 2>&1; then
		useradd --system --home-dir "$state" --shell /usr/sbin/nologin lifl
	fi
	# In place: a node that runs goes on with what it has loaded until it is started again.
	[ -x "$program/bin/python" ] || "$python" -m venv "$program"
	"$program/bin/python" -m pip install --quiet --upgrade --disable-pip-version-check "$1"
	mkdir -p "$(dirname "$command")" "$config" "$units"
	[ -e "$command" ] && [ ! -L "$command" ] && fail "$command is there and not ours: move it away"
	ln -sfn "$program/bin/lifl" "$command"
	[ -e "$config/node.toml" ] || cp "$here/node.toml" "$config/node.toml"
	chmod 644 "$config/node.toml"
	cp "$here/systemd/lifld.service" "$here/systemd/lifld.socket" "$units/"
	if has_systemd; then
		systemctl daemon-reload
		systemctl enable lifld.service
		systemctl restart lifld.service
		systemctl --no-pager --lines 0 status lifld.service
	else
		say "no systemd runs here: start the node by  $command up -d --config $config/node.toml --state $state"
	fi
	say "installed: $("$command" --version)"
}

case "${1:-}" in
-h | --help) sed -n 's/^# \{0,1\}//; 2,9p' "$0"; exit ;;
--uninstall | --purge | [!-]* | "") ;;
*) fail "unknown: $1 (--uninstall, --purge, or a wheel)" ;;
esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "run it as root (sudo sh install.sh)"
case "${1:-}" in
--uninstall) uninstall keep ;;
--purge) uninstall purge ;;
*) install_node "${1:-lifl}" ;;
esac
