"""What the benchmark asks of the machine: its name, clocks, peak memory, a profile, and how near an engine
comes to what the hardware could do. Knows nothing of DualFocus.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.models.bench.model import Engine, slot_bytes
from dualfocus_lmms.models.engines.shareable import language_model
from dualfocus_lmms.types import Prompt, Question, StopCriteria

STEPS = 16  # decoding steps that are timed against the floor
_TIMES = 5  # of each thing that is timed; the median counts
_COPIED = 1 << 30  # bytes
_SIDE = 8192  # of the matrices multiplied

Work = Callable[[], Any]


def hardware(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {names[0] if names else platform.processor()}"


def seconds(device: torch.device, work: Work) -> tuple[float, Any]:
    """How long `work` takes, to its last kernel; and what it returns."""
    wait(device)
    started = time.perf_counter()
    done = work()
    wait(device)
    return time.perf_counter() - started, done


def wait(device: torch.device) -> None:
    """Until the GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tells_peaks(device: torch.device) -> bool:
    """Whether the peak memory can be measured here: with CUDA, or on Linux."""
    return device.type == "cuda" or os.access("/proc/self/clear_refs", os.W_OK)


def peak_bytes(device: torch.device, work: Work) -> int:
    """Peak memory while `work` runs: what CUDA's allocator held, or what was resident of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    work()
    return resident("VmHWM")


def resident(name: str = "VmRSS") -> int:
    """A memory figure of this process in bytes: VmRSS is resident now, VmHWM its peak (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{name}:"))


def profile(device: torch.device, work: Work, folder: Path, name: str) -> None:
    """Run `work` under torch's profiler: profile-NAME.txt, a table, and trace-NAME.json.gz for chrome://tracing."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        wait(device)
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
    atomic_write(folder / f"profile-{name}.txt", table + "\n")
    profiler.export_chrome_trace(str(folder / f"trace-{name}.json.gz"))


def copy_rate(device: torch.device, size: int = _COPIED) -> float:
    """Bytes a second that memory takes and gives: a copy reads and writes each byte."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _median(device, lambda: target.copy_(source))


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = _SIDE) -> float:
    """Floating-point operations a second of a product of square matrices."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _median(device, lambda: left @ right)


def floors(engine: Engine, questions: Sequence[Question], copying: float, matmul: float) -> dict[str, Any]:
    """How near a batch of macro questions comes to the time that the hardware needs at least.

    Prefill (prepare, encode and read): its operations at the rate `matmul`. A decoding step: the bytes it has
    to read, all weights of the language model and the batch's cache, at the rate `copying`. Shares of 1.
    """
    device = engine.model.device
    conversations = [Conversation().user(question.prompt, question.image) for question in questions]

    def ask(tokens: int) -> None:
        engine.generate(Prompt.batch("macro", conversations, [StopCriteria(tokens)] * len(conversations)))
        engine.forget()

    counted = engine.counts.tokens
    with FlopCounterMode(display=False) as counter:
        ask(1)
    read = engine.counts.tokens - counted
    prepare = _median(device, lambda: engine.image_reader([question.image for question in questions]))
    prefill = _median(device, lambda: ask(1))
    step = (_median(device, lambda: ask(1 + STEPS)) - prefill) / STEPS
    operations = counter.get_total_flops()
    moved = _weight_bytes(engine.model) + (read + len(questions) * STEPS / 2) * slot_bytes(engine.checkpoint)
    return {
        "batch_size": len(questions),
        "copy_rate": copying,
        "matmul_rate": matmul,
        "prefill_operations": operations,
        "prepare_seconds": prepare,
        "prefill_seconds": prefill,
        "prefill_share": operations / matmul / prefill,
        "step_bytes": moved,
        "step_seconds": step,
        "step_share": moved / copying / step,
    }


def _median(device: torch.device, work: Work) -> float:
    work()  # warm
    return statistics.median(seconds(device, work)[0] for _ in range(_TIMES))


def _weight_bytes(model: Any) -> int:
    """Bytes of the weights that one decoding step reads: the language model's and the head's."""
    decoder = language_model(model) or model.model
    table = model.get_input_embeddings().weight
    read = [weight for weight in decoder.parameters() if weight is not table]
    return sum(weight.nbytes for weight in (*read, model.get_output_embeddings().weight))
