# Copyright: kvm.liveupdate contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
#
# What every command of the tests needs on a fresh Debian machine. To be sourced by bash under "set -euo pipefail":
#
#   . tests/setup.sh
#   ensure_packages FILE...    install the Debian packages named in FILE, one a line, "#" comments
#   ensure_venv [FILE]         export VENV, PATH (its bin first) and ANSIBLE_COLLECTIONS_PATH (holds this checkout); FILE names what
#                              is in the environment, tests/requirements.txt if it is not given
#   ensure_awx                 export AWX_COLLECTIONS (holds the collection awx.awx); after ensure_venv
#   bounded SECONDS COMMAND    run a program without stdin, interrupt it at the limit
#   say_how_long WHAT SECONDS PATTERN:SECONDS...   a line that says what will be done and about how long that takes
#   say MESSAGE, die MESSAGE   a line of progress; a last line and exit 1
#
# Call the ensure functions plainly, not in a condition. PYTHON=/path/to/python3 overrides the choice of the interpreter.
# INT, TERM and HUP are trapped: a program under "bounded" is interrupted and waited for.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
export HOME
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/kvm-liveupdate

# One locale that exists everywhere; nobody's own Python path.
export LC_ALL=C.UTF-8
unset PYTHONPATH PYTHONHOME

APT_LIMIT=1800
PACE_US=1000000
PIP_LIMIT=1800
LOCK_LIMIT=3600

say() {
    printf '[%3d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# How slow this machine is at present, in percent of the quiet one on which the seconds of say_how_long were taken: a moment's counting.
pace() {
    local begun=$EPOCHREALTIME ended count
    for ((count = 0; count < 300000; count++)); do :; done
    ended=$EPOCHREALTIME
    echo $(((${ended/[.,]/} - ${begun/[.,]/}) * 100 / PACE_US))
}

# The seconds of each pattern that matches nothing in the cache are added to those that are always needed.
say_how_long() {
    local what=$1 seconds=$2 percent part prepared=
    shift 2
    for part; do
        if compgen -G "$CACHE/${part%:*}" >/dev/null; then
            prepared=' (some of it is prepared already)'
        else
            seconds=$((seconds + ${part##*:}))
        fi
    done
    percent=$(pace)
    say "$what: about $(((seconds * percent / 100 + 59) / 60)) minutes$prepared, by the pace of this machine ($percent % of the time of a quiet one)"
}

child=
interrupted() {
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        say "interrupted, waiting for what runs to clean up" >&2
        kill -INT "$child" 2>/dev/null || true
        wait "$child" || true
    fi
    exit 130
}
trap interrupted INT TERM HUP

# In the background, so that a trap is served at once. Such a child would ignore SIGINT unless told otherwise.
bounded() {
    local limit=$1 status=0
    shift
    env --default-signal=INT timeout --signal=INT --kill-after=60 "$limit" "$@" </dev/null &
    child=$!
    wait "$child" || status=$?
    child=
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        printf 'error: %s was stopped at its limit of %d s\n' "$1" "$limit" >&2
    fi
    return "$status"
}

# logged LIMIT LOG COMMAND: output goes to LOG, and its end is shown if the command fails.
logged() {
    local limit=$1 log=$2
    shift 2
    mkdir -p "$(dirname "$log")"
    bounded "$limit" "$@" >"$log" 2>&1 && return
    tail -n 40 "$log" >&2
    die "'$*' failed; all of its output is in $log"
}

# The lock is closed by the caller, so that no later child keeps it: exec {lock}>&-
take_lock() {
    mkdir -p "$(dirname "$1")"
    exec {lock}>"$1"
    flock -n "$lock" && return
    say "waiting for another run that holds $1"
    flock -w "$LOCK_LIMIT" "$lock" || die "no lock on $1 after $LOCK_LIMIT s"
}

packages_missing() {
    local name
    for name in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || printf '%s\n' "$name"
    done
}

install_packages() {
    local missing options=(-q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=600)
    command -v apt-get >/dev/null || die "this machine is not a Debian; install the equivalent of: $*"
    mapfile -t missing < <(packages_missing "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "as root: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    logged "$APT_LIMIT" "$CACHE/log/apt-update" apt-get "${options[@]}" update
    logged "$APT_LIMIT" "$CACHE/log/apt-install" apt-get "${options[@]}" install --no-install-recommends "${missing[@]}"
}

ensure_packages() {
    local names
    mapfile -t names < <(sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' "$@")
    [ ${#names[@]} -gt 0 ] || die "no package is named in $*"
    install_packages "${names[@]}"
}

# The newest Python that ansible-core runs on and that can make a virtual environment. It prints its own path: a name in
# PATH may be a shim, and Debian's python3 lacks ensurepip until python3-venv is installed.
find_python() {
    local name
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        "$name" -c 'import ensurepip, ssl, sys; sys.version_info >= (3, 11) or sys.exit(1); print(sys._base_executable)' \
            2>/dev/null && return
    done
    return 1
}

ensure_venv() {
    local requirements=${1:-$REPO/tests/requirements.txt} python key
    if ! python=$(find_python); then
        [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python of 3.11 or later with the venv module"
        install_packages python3 python3-venv
        python=$(find_python) || die "no Python of 3.11 or later with the venv module"
    fi
    key=$({ "$python" -c 'import sys; print(sys.executable, sys.version)' && cat "$requirements"; } |
        sha256sum | cut -c-12)
    VENV=$CACHE/venv/$key
    # Scripts in an environment hold its path, so it is built in place: only the mark at the end makes it one.
    if [ ! -e "$VENV/complete" ]; then
        take_lock "$VENV.lock"
        if [ ! -e "$VENV/complete" ]; then
            say "making the Python environment in $VENV (a minute or two)"
            rm -rf "$VENV"
            logged "$PIP_LIMIT" "$VENV.log" "$python" -m venv "$VENV"
            logged "$PIP_LIMIT" "$VENV.log" "$VENV/bin/python" -m pip --disable-pip-version-check install \
                --no-input --prefer-binary --requirement "$requirements"
            touch "$VENV/complete"
        fi
        exec {lock}>&-
    fi
    PATH=$VENV/bin:$PATH
    ANSIBLE_COLLECTIONS_PATH=$CACHE/collections/$(printf %s "$REPO" | sha256sum | cut -c-12)
    local link=$ANSIBLE_COLLECTIONS_PATH/ansible_collections/kvm/liveupdate
    mkdir -p "$(dirname "$link")"
    [ "$(readlink "$link")" = "$REPO" ] || ln -sfn "$REPO" "$link"
    export VENV PATH ANSIBLE_COLLECTIONS_PATH
}

# The package that tests/awx/requirements.txt names holds a hundred collections. Only awx.awx is kept.
ensure_awx() {
    local requirements=$REPO/tests/awx/requirements.txt
    AWX_COLLECTIONS=$CACHE/awx/$(sha256sum "$requirements" | cut -c-12)
    if [ ! -e "$AWX_COLLECTIONS/complete" ]; then
        take_lock "$AWX_COLLECTIONS.lock"
        if [ ! -e "$AWX_COLLECTIONS/complete" ]; then
            say "getting the collection awx.awx (half a minute)"
            rm -rf "$AWX_COLLECTIONS"
            logged "$PIP_LIMIT" "$AWX_COLLECTIONS.log" "$VENV/bin/python" -m pip --disable-pip-version-check download \
                --no-input --no-deps --only-binary :all: --dest "$AWX_COLLECTIONS/download" --requirement "$requirements"
            "$VENV/bin/python" -c '
import glob, sys, zipfile
for name in glob.glob(f"{sys.argv[1]}/download/*.whl"):
    with zipfile.ZipFile(name) as wheel:
        wheel.extractall(sys.argv[1], [each for each in wheel.namelist() if each.startswith("ansible_collections/awx/awx/")])
' "$AWX_COLLECTIONS"
            rm -r "$AWX_COLLECTIONS/download"
            [ -e "$AWX_COLLECTIONS/ansible_collections/awx/awx" ] || die "no collection awx.awx in the package of $requirements"
            touch "$AWX_COLLECTIONS/complete"
        fi
        exec {lock}>&-
    fi
    export AWX_COLLECTIONS
}
