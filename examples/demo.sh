#!/usr/bin/env bash
# `make demo`: questions about drawn scenes, answered by the small model that comes with the project, without a network.
set -euo pipefail
cd "$(dirname "$0")/.."

out=demo_out
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # a model this small only gets slower with more
rm -rf "$out"
mkdir "$out"

# Runs a command with its output in a file, which is shown when it fails.
quietly() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 || {
        local code=$?
        tail -n 20 "$log" >&2
        exit "$code"
    }
}

echo "1. lmms-eval asks 100 questions of each kind: details, existence, the scene as a whole (df_nano)"
quietly "$out/eval.log" dualfocus eval --model dualfocus \
    --model_args "pretrained=dualfocus-nano,trace=$out/traces" --tasks df_nano --limit 100 \
    --batch_size 16 --output_path "$out/results" --log_samples
sed -n '/^|/p' "$out/eval.log"

echo
echo "2. The same answers by pathway: whole picture, region, what the perplexities chose, either of the two; the boxes"
quietly "$out/report.log" dualfocus report "$out/results" --out "$out/report"
awk -v RS= '/^### /{shown = /Right answers|against the annotated/} shown && /^[|]/{print $0 "\n"}' "$out/report/report.md"
echo "All tables, and every sample: $out/report/report.html"
echo

echo "3. Who wins where, in percent; in brackets: where one pathway alone is correct, how often it was chosen"
python examples/demo_story.py "$out"
