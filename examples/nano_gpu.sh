#!/usr/bin/env bash
# The small model on a machine with one GPU: the base stage within a given time, then the last stage with seeds 0, 1
# and 2 as far as the limit allows.
#
#     bash examples/nano_gpu.sh OUT MINUTES [LIMIT] [OPTIONS]
#
# OUT gets base.safetensors, seed-0.safetensors, ... and the logs, also while it runs, so that what is done is kept when
# it is killed. LIMIT: seconds for everything, 570 if not given. OPTIONS: of `python -m dualfocus_lmms.train.nano`, for
# all stages. The weights belong into a copy of models/weights/dualfocus-nano, as model.safetensors.
# The package needs not be installed; PYTHON names the interpreter.
set -uo pipefail
start=$SECONDS
out=$(mkdir -p "$1" && cd "$1" && pwd) minutes=$2 limit=${3:-570}
shift $(($# < 3 ? $# : 3))
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
cd "$root" || exit 1

export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 WANDB_MODE=disabled HF_HOME="$work/hub"
# Families of models are found by the package's entry points.
mkdir "$work/site"
"$python" -c 'import setuptools; setuptools.setup()' -q egg_info --egg-base "$work/site" ||
    echo "no entry points: the base stage only"
export PYTHONPATH="$root:$work/site${PYTHONPATH:+:$PYTHONPATH}"

nano=("$python" -m dualfocus_lmms.train.nano --output "$work" --minutes "$minutes" "$@")
left() { echo $((limit - (SECONDS - start))); }
put() { cp "$1" "$2.part" && mv "$2.part" "$2"; }  # whole or not at all
keep() {
    local name seed weights
    for name in base.latest base; do
        [ -f "$work/$name/model.safetensors" ] && put "$work/$name/model.safetensors" "$out/base.safetensors"
    done
    for seed in 0 1 2; do
        weights=$work/seed-$seed/dualfocus/model/model.safetensors
        [ -f "$weights" ] && [ ! -f "$out/seed-$seed.safetensors" ] && put "$weights" "$out/seed-$seed.safetensors"
    done
}
(while sleep 15; do keep; done) &
keeper=$!
trap 'kill "$keeper" 2>/dev/null; keep; rm -f "$out"/*.part' EXIT
trap 'exit 143' TERM INT

nice -n 15 "${nano[@]}" --until data >"$out/data.log" 2>&1 &
data=$!
timeout "$(left)" "${nano[@]}" --until base 2>&1 | tee "$out/base.log" || exit 1
keep
echo "base: $((SECONDS - start)) s" | tee -a "$out/base.log"
wait "$data" || { tail -n 5 "$out/data.log"; exit 1; }
echo "data: $((SECONDS - start)) s" | tee -a "$out/base.log"
loaders=$(($(nproc) - 2))
for seed in 0 1 2; do
    [ "$(left)" -ge 180 ] || break # a seed that is killed before its end leaves nothing
    timeout "$(left)" "${nano[@]}" --seed "$seed" \
        training.dataloader_num_workers=$((loaders > 0 ? loaders : 0)) evaluation.every=1000 \
        >>"$out/last.log" 2>&1 || break
    keep
    echo "seed $seed: $((SECONDS - start)) s" | tee -a "$out/last.log"
    grep -o "'eval_[^}]*" "$out/last.log" | tail -n 1
done
ls -l "$out"
