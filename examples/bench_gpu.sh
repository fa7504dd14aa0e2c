#!/usr/bin/env bash
# How fast DualFocus is on a GPU, in about six minutes: a LLaVA-1.5 7B with random weights in bfloat16 at batch sizes 16, 1,
# 32 and 4, against the plain model (also by transformers' batched generate) and the authors' way; how near it
# comes to the GPU's memory bandwidth and arithmetic; a profile of each batch size; and whether all engines
# say the same in float32 and in bfloat16. No checkpoint, no network, no installed dualfocus.
#
#   bash examples/bench_gpu.sh [folder] [seconds for the turns of one batch size]
#   bash examples/bench_gpu.sh --gather WHEELS     # before, with a network: the wheels that a bare machine lacks
#
# Needs Python 3.12 with torch, torchvision, transformers, accelerate, pandas, scikit-learn, scipy, tabulate, tqdm, typer and
# pydantic, and a CUDA device with 40 GB or more; PYTHON names another python3, DEVICE and SIZE another device and size
# (DEVICE=cpu SIZE=tiny tries the script itself). WHEELS, a folder, is where `--gather` put what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}" device="${DEVICE:-cuda}" size="${SIZE:-7b}" wheels="${WHEELS:-}"

if [ "${1:-}" = --gather ]; then
    exec "$python" -m pip download --quiet --only-binary=:all: --python-version 3.12 --dest "$2" loguru==0.7.3 pydantic==2.14.3
fi
out="${1:-bench_out}" seconds="${2:-30}"
mkdir -p "$out"
if ! "$python" -c "import dualfocus_lmms.cli, importlib.metadata as m; m.version('dualfocus-lmms')" 2>/dev/null; then
    site="$(mktemp -d)"
    [ -z "$wheels" ] || "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-build-isolation --target "$site" .
    export PYTHONPATH="$site"
fi
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
kind=bfloat16 small=100m
if [ "$device" = cuda ]; then nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv; else kind=float32 small=tiny; fi

agree() { "$python" examples/engine_agreement.py --device "$device" --dtype "$1" --out "$out/agreement-$1.json" 2>>"$out/log" || echo "float32 DIFFERS or failed: see $out/log"; }
bench() { "$python" -m dualfocus_lmms bench --device "$device" "$@" 2>>"$out/log"; }

bench --size "$size" --dtype "$kind" --batch-size 16 --batch-size 1 --batch-size 32 --batch-size 4 --samples 32 --repeats 4 \
    --seconds "$seconds" --cuda-graphs --profile --out "$out"
agree float32
agree bfloat16
bench --size "$small" --dtype float32 --batch-size 4 --samples 8 --repeats 1 --cuda-graphs --out "$out/float32"
