#!/bin/sh
# Makes the virtual environments of the systems that LIFL is compared with: .venv-rivals/flower and .venv-rivals/nvflare.
#
#   sh bench/rivals.sh            (PYTHON=python3.12 for another interpreter, LIFL_RIVALS=/path for another place)
#
# It is done at once when they are there.  What cannot be installed is said here and in .venv-rivals/NAME.why, which the
# benchmark's report shows; the exit code is 0 all the same, for the other systems can be compared without it.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
venvs=${LIFL_RIVALS:-$root/.venv-rivals}
python=${PYTHON:-python3}
FLWR=1.42.0
FLWR_OLDER=1.41.0
NVFLARE=2.9.0
mkdir -p "$venvs"

pip() { name=$1; shift; "$venvs/$name/bin/python" -m pip install -q --disable-pip-version-check "$@"; }

# flwr 1.42.0 asks for releases of certifi and uv that an index may not have yet; neither is used here (no TLS, no
# installation of apps).  So first as it asks, then with the requirements of the release before.
flower() {
    pip flower "flwr==$FLWR" 2>>"$venvs/flower.log" && return
    pip flower "flwr==$FLWR_OLDER" 2>>"$venvs/flower.log" && pip flower --no-deps "flwr==$FLWR" 2>>"$venvs/flower.log"
}

nvflare() { pip nvflare "nvflare==$NVFLARE" 2>>"$venvs/nvflare.log"; }

install() {
    name=$1
    wanted="$2"
    [ "$(cat "$venvs/$name/.installed" 2>/dev/null)" = "$wanted" ] && return
    echo "installing $wanted into $venvs/$name"
    rm -rf "$venvs/${name:?}" "$venvs/$name.why" "$venvs/$name.log"
    if "$python" -m venv "$venvs/$name" >>"$venvs/$name.log" 2>&1 && "$name"; then
        echo "$wanted" >"$venvs/$name/.installed"
    else
        { echo "$wanted cannot be installed:"; grep -v '^WARNING' "$venvs/$name.log" | tail -2; } |
            tr '\n' ' ' | cut -c1-500 >"$venvs/$name.why"
        cat "$venvs/$name.why" >&2
    fi
}

install flower "flwr $FLWR"
install nvflare "nvflare $NVFLARE"
