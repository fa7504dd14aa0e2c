"""Times DualFocus against the plain model, side by side in one process.

    dualfocus bench --size 100m --batch-size 1 --batch-size 4

Only the ratios to the macro-only row of the same run mean something: modes take turns batch by batch, so
that a busy machine slows all of them alike. Random weights never write a box, so replies are forced to a
length and the box is a fixed one; everything else is the work of real use. Scores no answer.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, CLIPImageProcessorPil

from dualfocus_lmms._version import __version__
from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.flow import SKIPPED, Settings, answer_batch
from dualfocus_lmms.models.backend import Counts
from dualfocus_lmms.models.bench_report import markdown
from dualfocus_lmms.models.engines import make_engine
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.loading import Checkpoint, load_checkpoint, torch_device
from dualfocus_lmms.models.naive import NaiveBackend
from dualfocus_lmms.models.shared import SharedBackend
from dualfocus_lmms.models.tiny import SIZES, character_tokenizer, llava_config
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Limits, Question

MACRO, DUAL, SKIPPING, NAIVE = "macro only", "DualFocus", "DualFocus, skipping", "DualFocus, naive engine"
NAIVE_SAMPLES = 2  # it takes about five times as long
GUARD_SAMPLES = 4
TOLERANCE = 1e-4  # largest difference of log-probabilities between engines in float32, nats
TOKEN_BOUND = 2.1  # language-model tokens, DualFocus over macro only, at 576 image tokens
MEMORY_BOUND = 1.3  # peak memory, DualFocus over macro only, before the second image's tokens

Engine = SharedBackend | NaiveBackend
_BOX = Box(0.25, 0.25, 0.75, 0.75)
_OBJECTS = ("dog", "snowboard", "dining table", "person", "car", "traffic light", "cup", "baseball glove")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. samples: questions in each repeat. skip_share: of them, how many skip the second look."""

    batch_sizes: tuple[int, ...]
    samples: int
    repeats: int
    new_tokens: int
    box_tokens: int
    skip_share: float

    def __post_init__(self) -> None:
        counts = (*self.batch_sizes, self.samples, self.repeats, self.new_tokens, self.box_tokens)
        if not self.batch_sizes or not all(type(count) is int and count > 0 for count in counts):
            raise UserError(f"Batch sizes, samples, repeats and tokens are whole numbers from 1, got {self}.")
        if any(self.samples % size for size in self.batch_sizes):
            raise UserError(f"samples must fill whole batches of {self.batch_sizes}, got {self.samples}.")
        if not 0 <= self.skip_share <= 1:
            raise UserError(f"skip_share is a share from 0 to 1, got {self.skip_share!r}.")


@dataclass(frozen=True, eq=False, slots=True)
class Mode:
    """One way to answer. samples: how many of the plan's it answers."""

    name: str
    engine: Engine
    settings: Settings
    samples: int


@dataclass(slots=True)
class Tally:
    """What one mode did: seconds of each batch of each repeat, and work counted over all repeats."""

    seconds: list[list[float]] = field(default_factory=list)
    work: Counts = field(default_factory=Counts)
    batches: int = 0
    samples: int = 0
    skipped: int = 0


def bench(
    size: str = "100m",
    batch_sizes: Sequence[int] = (1, 4),
    samples: int = 8,
    repeats: int = 3,
    pretrained: str | None = None,
    new_tokens: int = 3,
    box_tokens: int = 24,
    skip_share: float = 0.58,
    out: str | None = None,
) -> str:
    """Run the benchmark and return its report in Markdown; `out` is a folder for report.md and report.json.

    size names a random checkpoint, pretrained a real one. UserError for an impossible value.
    """
    plan = Plan(tuple(batch_sizes), samples, repeats, new_tokens, box_tokens, skip_share)
    checkpoint = _load(size, pretrained)
    rows = measure(checkpoint, plan)
    report = {
        "setup": _setup(checkpoint, plan, pretrained or f"random, size {size}"),
        "rows": rows,
        "tokens": _token_facts(checkpoint, rows),
        "memory": [
            _memory_facts(checkpoint, batch_size, _peaks(checkpoint, size, pretrained, plan, batch_size))
            for batch_size in plan.batch_sizes
        ],
        "engines": compare_engines(checkpoint, plan),
    }
    text = markdown(report)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(text, encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return text


def random_checkpoint(size: str, device: str | None = None) -> Checkpoint:
    """A LLaVA checkpoint with random weights, in memory; float32 on a CPU, bfloat16 elsewhere."""
    if size not in SIZES:
        raise choose("size", size, SIZES)
    words = character_tokenizer()
    config = llava_config(size, words)
    place = torch_device(device)
    torch.manual_seed(0)
    with place:
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32 if place.type == "cpu" else torch.bfloat16
        )
    side = SIZES[size][2]
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return Checkpoint(model.to(place).eval(), words, processor, LLAVA)


def measure(checkpoint: Checkpoint, plan: Plan) -> list[dict[str, Any]]:
    """One row for each batch size and mode."""
    shared, naive = (forced_engine(name, checkpoint) for name in ("shared", "naive"))
    questions = noise_questions(plan.samples)
    rows = []
    for batch_size in plan.batch_sizes:
        macro, dual = plan_settings(plan, "macro"), plan_settings(plan, "both")
        warm = _batches(shared, questions, batch_size, macro, plan)
        threshold = skip_threshold(
            [trace.macro.confidence(macro.count_eos) for trace in warm], plan.skip_share
        )
        modes = [
            Mode(MACRO, shared, macro, plan.samples),
            Mode(DUAL, shared, dual, plan.samples),
            Mode(SKIPPING, shared, replace(dual, skip_confidence=threshold), plan.samples),
        ]
        if batch_size == 1:
            modes.append(Mode(NAIVE, naive, dual, min(NAIVE_SAMPLES, plan.samples)))
        for mode in modes[1:]:
            _batches(mode.engine, questions[:batch_size], batch_size, mode.settings, plan)
        tallies = _take_turns(modes, questions, batch_size, plan)
        rows += [_row(mode, tallies[mode.name], tallies[MACRO], batch_size) for mode in modes]
    return rows


def forced_engine(name: str, checkpoint: Checkpoint) -> Engine:
    """An engine whose replies end at their limit and whose every reply is read as the same box."""

    class FixedBox(BoxFormat):
        def read(self, *args: Any, **kwargs: Any) -> Box | None:
            return _BOX

    engine = make_engine(name, checkpoint)
    engine.eos_ids = frozenset()
    engine.box_format = FixedBox()
    return engine


def plan_settings(plan: Plan, pathway: str) -> Settings:
    """The paper's protocol with a locate reply of the plan's length."""
    settings = Settings.of(pathway=pathway)
    return replace(settings, protocol=replace(settings.protocol, locate_tokens=plan.box_tokens))


def noise_questions(count: int, seed: int = 0) -> list[Question]:
    """Questions as POPE asks them, each about a picture of its own: smooth noise, 640 by 480 pixels."""
    rng = random.Random(seed)
    questions = []
    for number in range(count):
        noise = Image.frombytes("RGB", (40, 30), rng.randbytes(40 * 30 * 3))
        text = f"Is there a {_OBJECTS[number % len(_OBJECTS)]} in the image?"
        prompt = f"{text}\nAnswer the question using a single word or phrase."
        picture = noise.resize((640, 480), Image.Resampling.BICUBIC)
        questions.append(Question(str(number), picture, text, prompt))
    return questions


def skip_threshold(confidences: Sequence[float], share: float) -> float:
    """The `skip_confidence` that lets `share` of these answers skip, midway between two of them."""
    ranked = sorted(confidences, reverse=True)
    skipped = round(share * len(ranked))
    if skipped == 0:
        return 1.0
    return 0.0 if skipped == len(ranked) else (ranked[skipped - 1] + ranked[skipped]) / 2


def _batches(
    engine: Engine, questions: Sequence[Question], batch_size: int, settings: Settings, plan: Plan
) -> list[Trace]:
    limits = [Limits(plan.new_tokens)] * batch_size
    traces = []
    for start in range(0, len(questions), batch_size):
        traces += answer_batch(engine, questions[start : start + batch_size], limits, settings)
    return traces


def _take_turns(
    modes: Sequence[Mode], questions: Sequence[Question], batch_size: int, plan: Plan
) -> dict[str, Tally]:
    """Time the modes on one batch after the other; each batch begins with another mode."""
    tallies = {mode.name: Tally() for mode in modes}
    for repeat in range(plan.repeats):
        for tally in tallies.values():
            tally.seconds.append([])
        for number, start in enumerate(range(0, plan.samples, batch_size)):
            first = (repeat + number) % len(modes)
            for mode in [*modes[first:], *modes[:first]]:
                if start < mode.samples:
                    _time(mode, questions[start : start + batch_size], plan, tallies[mode.name])
    return tallies


def _time(mode: Mode, batch: Sequence[Question], plan: Plan, tally: Tally) -> None:
    mode.engine.counts = tally.work
    started = time.perf_counter()
    traces = _batches(mode.engine, batch, len(batch), mode.settings, plan)
    tally.seconds[-1].append(time.perf_counter() - started)
    mode.engine.counts = Counts()  # the naive engine counts the model's calls, whoever makes them
    tally.batches += 1
    tally.samples += len(batch)
    tally.skipped += sum(trace.fallback == SKIPPED for trace in traces)


def _row(mode: Mode, tally: Tally, macro: Tally, batch_size: int) -> dict[str, Any]:
    """Figures of one mode; the ratio of a repeat compares the same batches."""
    ratios = [
        sum(own) / sum(unit[: len(own)]) for own, unit in zip(tally.seconds, macro.seconds, strict=True)
    ]
    tokens = tally.work.tokens / tally.samples
    return {
        "batch_size": batch_size,
        "mode": mode.name,
        "n": mode.samples,
        "time_ratio": statistics.median(ratios),
        "time_ratio_min": min(ratios),
        "time_ratio_max": max(ratios),
        "seconds_per_sample": statistics.median(sum(own) / mode.samples for own in tally.seconds),
        "skipped": tally.skipped / tally.samples,
        "tokens_per_sample": tokens,
        "token_ratio": tokens / (macro.work.tokens / macro.samples),
        "forwards_per_batch": tally.work.forwards / tally.batches,
        "encodes_per_sample": tally.work.encodes / tally.samples,
    }


def compare_engines(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """Whether the shared engine says what the naive one says: tokens, and the largest log-probability gap."""
    questions = noise_questions(GUARD_SAMPLES, seed=1)
    settings = plan_settings(plan, "both")
    said = []
    for name in ("shared", "naive"):
        traces = _batches(forced_engine(name, checkpoint), questions, len(questions), settings, plan)
        said.append([answer for trace in traces for answer in trace.answers])
    pairs = list(zip(*said, strict=True))
    same = sum(one.tokens == other.tokens for one, other in pairs)
    gap = max(abs(a - b) for one, other in pairs for a, b in zip(one.logprobs, other.logprobs, strict=True))
    return {
        "samples": len(questions),
        "answers": len(pairs),
        "same_tokens": same,
        "largest_gap": gap,
        "tolerance": TOLERANCE,
        "dtype": _dtype(checkpoint),
        "holds": same == len(pairs) and gap <= TOLERANCE,
    }


def _load(size: str, pretrained: str | None) -> Checkpoint:
    return load_checkpoint(pretrained) if pretrained else random_checkpoint(size)


def _peaks(
    checkpoint: Checkpoint, size: str, pretrained: str | None, plan: Plan, batch_size: int
) -> dict[str, int] | None:
    """Peak bytes of one batch by mode, weights included; None where the system does not tell.

    On a CPU a process of its own measures, and what its libraries took before the model is not counted.
    """
    if checkpoint.device.type == "cuda":
        return {mode: _peak(checkpoint, plan, batch_size, mode) for mode in (MACRO, DUAL)}
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peaks_here, size, pretrained, plan, batch_size).result()


def _peaks_here(size: str, pretrained: str | None, plan: Plan, batch_size: int) -> dict[str, int]:
    before = _resident("VmRSS")
    checkpoint = _load(size, pretrained)
    return {mode: _peak(checkpoint, plan, batch_size, mode) - before for mode in (MACRO, DUAL)}


def _peak(checkpoint: Checkpoint, plan: Plan, batch_size: int, mode: str) -> int:
    """Peak bytes of the GPU's allocator, or of this process, while one batch is answered."""
    engine = forced_engine("shared", checkpoint)
    questions = noise_questions(batch_size)
    cuda = checkpoint.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from what is resident now
    _batches(engine, questions, batch_size, plan_settings(plan, "macro" if mode == MACRO else "both"), plan)
    return torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")


def _resident(name: str) -> int:
    """A memory figure of this process in bytes: VmRSS is resident now, VmHWM its peak (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{name}:"))


def _memory_facts(checkpoint: Checkpoint, batch_size: int, peaks: dict[str, int] | None) -> dict[str, Any]:
    """The peaks against their bound: 1.3 times macro only's, and the cache of the second image's tokens."""
    text = checkpoint.model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    slot = 2 * text.num_hidden_layers * text.num_key_value_heads * head * checkpoint.model.dtype.itemsize
    second = batch_size * checkpoint.model.config.image_seq_length * slot
    facts = {"batch_size": batch_size, "second_image_bytes": second, "factor": MEMORY_BOUND, "holds": None}
    if peaks is None:
        return facts
    bound = round(MEMORY_BOUND * peaks[MACRO] + second)
    return facts | {
        "macro_bytes": peaks[MACRO],
        "dualfocus_bytes": peaks[DUAL],
        "ratio": peaks[DUAL] / peaks[MACRO],
        "bound_bytes": bound,
        "holds": peaks[DUAL] <= bound,
    }


def _token_facts(checkpoint: Checkpoint, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ratio = max(row["token_ratio"] for row in rows if row["mode"] == DUAL)
    image_tokens = checkpoint.model.config.image_seq_length
    holds = ratio <= TOKEN_BOUND if image_tokens == 576 else None  # the bound is for 576
    return {"image_tokens": image_tokens, "ratio": ratio, "bound": TOKEN_BOUND, "holds": holds}


def _setup(checkpoint: Checkpoint, plan: Plan, name: str) -> dict[str, Any]:
    cuda = checkpoint.device.type == "cuda"
    return {
        "date": date.today().isoformat(),
        "hardware": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dualfocus_lmms": __version__,
        },
        "checkpoint": name,
        "parameters": sum(weight.numel() for weight in checkpoint.model.parameters()),
        "dtype": _dtype(checkpoint),
        **asdict(plan),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {names[0] if names else platform.processor()}"


def _dtype(checkpoint: Checkpoint) -> str:
    return str(checkpoint.model.dtype).removeprefix("torch.")
