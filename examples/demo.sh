#!/usr/bin/env bash
# `make demo`: questions about three drawn scenes, answered by DualFocus and by the plain model, without a network.
# The model is made on the spot and has random weights: this shows what runs, not how well.
set -euo pipefail
cd "$(dirname "$0")/.."

out=demo_out
checkpoint=$out/tiny-llava
export DUALFOCUS_LOCAL=$out/scenes/questions.jsonl
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

# evaluate NAME MODEL_ARGUMENTS
evaluate() {
    quietly "$out/$1.log" dualfocus eval --model dualfocus \
        --model_args "pretrained=$checkpoint,trace=$out/$1/traces$2" --tasks df_local \
        --batch_size 4 --output_path "$out/$1" --log_samples
}

echo "1. Draw three scenes and write questions about them"
python examples/scenes.py "$out/scenes"

echo "2. Make a model with random weights"
quietly "$out/tiny.log" dualfocus tiny "$checkpoint"

echo "3. Answer the questions twice each and keep the answer with the lower perplexity"
evaluate dualfocus ""

echo "4. Answer them with the plain model"
evaluate macro ",pathway=macro"

python examples/scores.py "$out/dualfocus" "$out/macro"
echo "The weights are random: these scores mean nothing."

echo
echo "5. One question as a picture: $out/answer.png"
dualfocus ask "$out/scenes/scene1.png" "What does the label on the green triangle say?" \
    --pretrained "$checkpoint" --save "$out/answer.png" 2>"$out/ask.log" || {
    code=$?
    cat "$out/ask.log" >&2
    exit "$code"
}
