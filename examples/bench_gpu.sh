#!/usr/bin/env bash
# How fast DualFocus is on a GPU: a LLaVA-1.5 7B with random weights in bfloat16, at batch sizes 1, 4, 16 and 32, against
# the plain model and the authors' way; how near it comes to the GPU's memory bandwidth and arithmetic; and a profile.
# No checkpoint, no network. No figures from a GPU exist yet: whoever runs this has the first.
#
#   bash examples/bench_gpu.sh [folder]
#
# Needs a CUDA device with 40 GB or more, and dualfocus on the PATH. The folder gets report.md, report.json, profile.txt
# and trace.json.gz (for chrome://tracing). docs/speed.md says what is measured and what the columns are.
set -euo pipefail

out="${1:-bench_out}"
nvidia-smi --query-gpu=name,memory.total,clocks.max.sm,power.limit --format=csv

dualfocus bench --size 7b --device cuda --dtype bfloat16 \
    --batch-size 1 --batch-size 4 --batch-size 16 --batch-size 32 --samples 32 --repeats 3 \
    --profile --out "$out"

# bfloat16 rounds, so engines may differ in a token; in float32 they must not.
dualfocus bench --size 100m --device cuda --dtype float32 --batch-size 4 --out "$out/float32"
