#!/usr/bin/env bash
# Installs Longview, all its extras and the tools of development into a virtual environment. Called by make; safe
# to call again.
#   ./install.sh VENV [PIP_OPTION ...]
set -euo pipefail
cd "$(dirname "$0")"
venv=$1
shift
torch=$(sed -n 's/^torch==//p' constraints.txt)

python=""
for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "Longview needs Python 3.11 or 3.12: install one, or name it: make install PYTHON=/path/to/python3.11" >&2
    exit 1
fi

# System packages. OpenCV (through robosuite) needs libGL and GLib; evdev (through pynput) is compiled; pictures
# are rendered by EGL or OSMesa.
missing=()
has_library() { { ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | grep -q "$1"; }
if [ "$(uname -s)" = Linux ]; then
    command -v redis-server >/dev/null || missing+=(redis-server)
    has_library libGL.so.1 || missing+=(libgl1)
    has_library libEGL.so.1 || has_library libOSMesa.so.8 || missing+=(libegl1)
    has_library libgthread-2.0.so.0 || missing+=(libglib2.0-0)
    command -v gcc >/dev/null || missing+=(gcc libc6-dev)
    "$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
        missing+=("$("$python" -c 'import sys; print(f"python3.{sys.version_info[1]}-dev")')")
elif ! command -v redis-server >/dev/null; then
    missing+=(redis-server)
fi

# Debian's packages of servers would start them, now and at every boot; runs start their own.
install_packages() {
    local policy=/usr/sbin/policy-rc.d server
    export DEBIAN_FRONTEND=noninteractive
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap "rm -f $policy" EXIT
    fi
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null || return
    for server in "$@"; do
        case $server in redis-server | prometheus*) update-rc.d "$server" disable >/dev/null 2>&1 || true ;; esac
    done
}

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing system packages: ${missing[*]}"
        install_packages "${missing[@]}"
    else
        echo "System packages are missing. Install them, then call make again:" >&2
        echo "    sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi

# Prometheus records a run's metrics; without it everything else works. The exporter is for a test of k8s/.
optional=()
command -v prometheus >/dev/null || optional+=(prometheus)
command -v prometheus-redis-exporter >/dev/null || optional+=(prometheus-redis-exporter)
if [ ${#optional[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${optional[*]}"
    for package in "${optional[@]}"; do install_packages "$package" || true; done
fi
if ! command -v prometheus >/dev/null; then
    echo "Prometheus is not installed: runs go without it, until you call: sudo apt-get install prometheus" >&2
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

# PyTorch first. Without a GPU its CPU build is enough, and saves gigabytes of CUDA packages: from the index
# that pip is configured with if it offers one, else with the help of uv, which knows where that build is.
if ! "$venv/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$torch')" 2>/dev/null; then
    echo "Installing PyTorch $torch"
    if [ "$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null; then
        pip install "torch==$torch" "$@"
    elif ! pip install "torch==$torch+cpu" "$@" 2>/dev/null; then
        pip install uv "$@"
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu "torch==$torch"
    fi
fi

echo "Installing Longview"
pip install --editable ".[all,dev]" "$@"
