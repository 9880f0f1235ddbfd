#!/usr/bin/env bash
# Makes .venv with all that `make demo` and `make test` need. Looks before it downloads; does nothing the second time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.setup-done
log=$venv/setup.log
is_python_311='import sys; raise SystemExit(sys.version_info[:2] != (3, 11))'
wanted=$({ pwd -P; cat pyproject.toml constraints-cpu.txt .ci/setup.sh; } | sha256sum | cut -d' ' -f1)
if [[ -x $venv/bin/minillm && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    exit 0
fi

faults=()
fault() { faults+=("$1"); }

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
        if "$name" -c "$is_python_311" 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}

# Faults unless FOLDER has so many GiB free: check_room FOLDER GIB WAY_OUT
check_room() {
    local free_kib
    free_kib=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
    if ((free_kib < $2 * 1024 * 1024)); then
        fault "$((free_kib / 1024)) MiB are free in $1 and $2 GiB are needed. $3"
    fi
}

# Everything is looked at before anything is said, so that a person mends all of it at once.
check_machine() {
    if [[ $(uname -s) != Linux || $(uname -m) != x86_64 ]]; then
        fault "this is $(uname -s) on $(uname -m); the CPU build of vLLM is for Linux on x86-64. Use such a machine or container"
    elif ! grep -qw avx2 /proc/cpuinfo; then
        fault "this processor has no AVX2 (see /proc/cpuinfo), which the CPU build of vLLM needs. Use a newer machine"
    fi
    command -v git >/dev/null || fault "git is missing; try: apt-get install git"

    python=$(find_python)
    if [[ -z $python ]]; then
        fault "no Python 3.11 among python3.11, python3 and python. Install it, or name it: make setup PYTHON=/path/to/python3.11"
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fault "$python cannot make a virtual environment with pip in it; try: apt-get install python3.11-venv"
        "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
            fault "the system library libnuma.so.1 is missing, which vLLM links; try: apt-get install libnuma1"
    fi

    local needed_gib=7
    [[ -d $venv/lib/python3.11/site-packages/torch ]] && needed_gib=2
    check_room . "$needed_gib" "Free some, or clone to a larger disk"
    check_room "${TMPDIR:-/tmp}" 2 "pip unpacks there; free some, or set TMPDIR to a folder with room"

    if ((${#faults[@]})); then
        echo "minillm-ray cannot be set up here; nothing was downloaded:" >&2
        printf '  - %s\n' "${faults[@]}" >&2
        exit 1
    fi
}

# Runs pip with all it says in the log; on a terminal a line counts what has been looked at so far.
install() {
    local what=$1
    shift
    printf '  %s\n' "$what"
    if ! "$venv/bin/python" -m pip install --no-input --progress-bar off "$@" 2>&1 | tee -a "$log" | count; then
        return 1
    fi
}

count() {
    if [[ -t 1 ]]; then
        awk '/^(Collecting|Obtaining) / { n++; printf "\r    %d packages: %-50.50s", n, $2; fflush() }
             /^Installing collected/ { printf "\r    unpacking and installing %-50s", ""; fflush() }
             END { printf "\r%-80s\r", "" }'
    else
        cat >/dev/null
    fi
}

give_up() {
    echo "Setting up stopped: $1" >&2
    echo "The last lines of $log:" >&2
    grep -v '^WARNING: Location' "$log" | tail -n 8 | sed 's/^/    /' >&2
    exit 1
}

check_machine
started=$SECONDS
cat <<MESSAGE
Setting up minillm-ray in $PWD/$venv
  downloads about 1 GB of Python packages (PyTorch and vLLM for CPUs, Ray, DeepSpeed, transformers and what they
  need) and takes 2 to 4 minutes on a good line and 4.5 GB of disk; outside this folder only pip's cache grows.
MESSAGE

as_new=()
if [[ -e $venv ]] && ! { "$venv/bin/python" -c "$is_python_311" && grep -q "$PWD/$venv/" "$venv/bin/pip"; } 2>/dev/null; then
    echo "  $venv was made for another Python or another folder: making it anew"
    as_new=(--clear)
fi
"$python" -m venv "${as_new[@]}" "$venv"
: >"$log"
install "1/4 pip" --upgrade 'pip>=26,<27' || give_up "pip could not be renewed; is the package index reachable?"

# The CPU build of torch is not on PyPI. Some machines have it nearby, so the extra index is asked only if need be, and
# only for this one package: an index that cannot be reached slows every look-up.
torch=$(grep '^torch==' constraints-cpu.txt)
install "2/4 $torch" --no-deps "$torch" ||
    install "    not found where pip looks by default; asking PyTorch's own index" \
        --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "$torch" ||
    give_up "$torch could not be installed"

# The file is complete, so nothing needs resolving: what was tested is what is installed.
install "3/4 the $(grep -c '==' constraints-cpu.txt) packages of constraints-cpu.txt" \
    --no-deps --build-constraint constraints-cpu.txt -r constraints-cpu.txt ||
    give_up "a package could not be installed; run \`make setup\` again if the line broke"

install "4/4 minillm-ray itself, editable" --no-deps --no-build-isolation -e . ||
    give_up "this project could not be installed"

# Builds of these three that do not match the CPU torch break `import transformers`; without them all works.
if "$venv/bin/python" -m pip show -q torchvision >/dev/null 2>&1 &&
    ! "$venv/bin/python" -c 'import torchvision' >/dev/null 2>&1; then
    "$venv/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec >>"$log" 2>&1
fi
"$venv/bin/python" -c 'import torch, transformers, vllm, ray, minillm_ray' >>"$log" 2>&1 ||
    give_up "the installed packages do not work together"

echo "$wanted" >"$stamp"
echo "  done in $((SECONDS - started)) seconds. Next: make demo"
