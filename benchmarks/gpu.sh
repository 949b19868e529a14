#!/usr/bin/env bash
# All that one GPU is asked for, in one go: bash benchmarks/gpu.sh FOLDER [PART...]
#
# Writes a JSON record and a log of every part into FOLDER. A part that fails, or takes longer than it may, does not
# stop the others; the exit code says whether all went well. Parts, in this order; without any named, all of them:
#
#   kernel     tests/gpu/test_steering_kernel.py: the fused edit against the reference, captured and compiled
#   decoding   benchmarks/decoding.py: what steering costs per token
#   building   benchmarks/building.py: what vectors cost, where that script is there
#   suite      tests/gpu: five full-size models
#
# Nothing is downloaded. The package need not be installed: where it is not, the checkout itself is put on the path.
# PYTHON names the interpreter (python3), CONFIG the model of the benchmarks (llama-3.1-8b), and PYTEST_ADDOPTS narrows
# the suite: PYTEST_ADDOPTS='-k "not fifty"' leaves out the minute of the reference's 50 pairs.
set -u
folder=${1:?usage: bash benchmarks/gpu.sh FOLDER [PART...]}
shift
parts=${*:-kernel decoding building suite}
python=${PYTHON:-python3}
config=${CONFIG:-llama-3.1-8b}
cd "$(dirname "$0")/.." || exit 2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if ! "$python" -c "import grains_ref.tiny_models" 2>/dev/null; then
    for name in tiny_models fixtures; do # packages that lie beside grains_ref in the checkout
        ln -s "../$name" "grains_ref/$name"
    done
    trap 'rm -f grains_ref/tiny_models grains_ref/fixtures' EXIT
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
export HF_HUB_OFFLINE=1 GRAINS_GPU_RECORDS="$folder/records"

failed=""
part() { # name, seconds at most, command
    local name=$1 most=$2 code
    shift 2
    case " $parts " in *" $name "*) ;; *) return ;; esac
    echo "=== $name"
    SECONDS=0
    timeout "$most" "$@" >"$folder/$name.log" 2>&1
    code=$?
    tail -n 40 "$folder/$name.log"
    echo "=== $name: exit $code after $SECONDS s"
    [ $code -eq 0 ] || failed="$failed $name"
}

part kernel 90 "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_steering_kernel.py
part decoding 150 "$python" benchmarks/decoding.py --config "$config" --device cuda --output "$folder/decoding.json"
if [ -e benchmarks/building.py ]; then
    part building 240 "$python" benchmarks/building.py --device cuda --config "$config" --output "$folder/building.json"
fi
part suite 720 "$python" -m pytest -q -p no:cacheprovider -s --durations=15 tests/gpu --deselect tests/gpu/test_steering_kernel.py

[ -z "$failed" ] || echo "failed:$failed"
[ -z "$failed" ]
