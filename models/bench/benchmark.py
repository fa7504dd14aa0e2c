"""Times every way of answering against the plain model, side by side in one process.

    dualfocus bench --size 100m --batch-size 1 --batch-size 4

Only ratios of the same run mean something: modes take turns batch by batch, so that a busy machine slows all
of them alike. Replies are forced to a length and the box is a fixed one; everything else is the work of real
use. Scores no answer.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from dualfocus_lmms._version import __version__
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import atomic_write, writable
from dualfocus_lmms.models.bench import machine
from dualfocus_lmms.models.bench.bounds import LIMITS, bounds
from dualfocus_lmms.models.bench.model import Engine, Source, image_tokens, noise_questions, slot_bytes
from dualfocus_lmms.models.bench.modes import (
    DUAL,
    GENERATE,
    MACRO,
    NAIVE,
    RELEASE,
    SKIPPING,
    Mode,
    Plan,
    answer,
    forced_engines,
    modes,
    plan_settings,
    skip_threshold,
)
from dualfocus_lmms.models.bench.report import markdown
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.backend import Counts
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Fallback, Question

TOLERANCE = 1e-4  # largest difference of log-probabilities between engines in float32, nats

Key = tuple[int, int]  # a repeat, and the first question of a batch


@dataclass(slots=True)
class Tally:
    """What one mode did at one batch size: seconds per question of each batch, and work over all of them.

    units: of a run, the plain model's seconds per question right before and after it.
    """

    seconds: dict[Key, float] = field(default_factory=dict)
    units: dict[Key, float] = field(default_factory=dict)
    work: Counts = field(default_factory=Counts)
    traces: list[Trace] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class BatchSizeResult:
    """All modes at one batch size, the plain model first."""

    batch_size: int
    tallies: list[tuple[Mode, Tally]]


def bench(source: Source, plan: Plan, out: str | None = None, profile: bool = False) -> str:
    """Run the benchmark and return its report in Markdown.

    out: a folder for report.md and report.json, rewritten after each batch size. profile: a batch of each
    size under torch's profiler, into the same folder. UserError for an impossible value.
    """
    if profile and out is None:
        raise UserError("A profile is two files: give a folder for them with --out.")
    folder = None if out is None else writable(out, "--out")
    checkpoint = source.load()
    engines = forced_engines(checkpoint, plan)
    tokens = image_tokens(next(iter(engines.values())))
    setup = _setup(checkpoint, plan, source) | {"image_tokens": tokens}
    rates = _rates(checkpoint)
    blocks: list[BatchSizeResult] = []
    rows: list[dict[str, Any]] = []
    floors: list[dict[str, Any]] = []
    for batch_size in plan.batch_sizes:
        blocks.append(measure(engines, plan, batch_size))
        peaks = _peaks(source, engines, plan.but(batch_sizes=(batch_size,)))
        rows += rows_of(blocks[-1], peaks)
        if rates is not None:
            engine = next(iter(engines.values()))
            floors.append(machine.floors(engine, noise_questions(batch_size), *rates))
        report = {
            "setup": setup,
            "rows": rows,
            "bounds": bounds(rows, LIMITS[checkpoint.device.type], tokens, tokens * slot_bytes(checkpoint)),
            "engines": agreement(blocks, checkpoint.model.dtype),
            "floors": floors or None,
        }
        text = markdown(report)
        if folder is not None:
            _write(report, text, folder)
            if profile:
                _profile(engines, plan, batch_size, folder)
    return text


def _write(report: dict[str, Any], text: str, folder: Path) -> None:
    """The report so far; where that fails, the figures are in the error."""
    try:
        atomic_write(folder / "report.md", text)
        atomic_write(folder / "report.json", json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{text}\nCannot write these figures to {folder}: {error}.") from error


def measure(engines: dict[str, Engine], plan: Plan, batch_size: int) -> BatchSizeResult:
    """Every mode at one batch size."""
    questions = noise_questions(plan.samples)
    macro, *others = modes(engines, plan)
    warm = answer(macro, questions, batch_size, plan)
    for mode in others:
        if mode.rows is None:
            answer(mode, questions[:batch_size], batch_size, plan)
    confidences = [trace.macro.confidence(macro.settings.count_eos) for trace in warm]
    threshold = skip_threshold(confidences, plan.skip_share)
    settings = replace(plan_settings(plan), skip_confidence=threshold)
    skipping = [
        Mode(SKIPPING, mode.engine_name, mode.engine, settings, run=True)
        for mode in (macro, *others)
        if mode.name == MACRO and mode.engine_name != GENERATE
    ]
    tallies = [(mode, Tally()) for mode in (macro, *others, *skipping)]
    _take_turns(tallies, questions, batch_size, plan)
    return BatchSizeResult(batch_size, tallies)


def _take_turns(
    tallies: Sequence[tuple[Mode, Tally]], questions: Sequence[Question], batch_size: int, plan: Plan
) -> None:
    """Time the modes on one batch after the other; each batch begins with another mode."""
    starts = range(0, plan.samples, batch_size)
    turns = [(repeat, start) for repeat in range(plan.repeats) for start in starts]
    began = time.monotonic()
    for number, key in enumerate(tqdm(turns, f"batch size {batch_size}", disable=None)):
        if number and plan.seconds is not None and time.monotonic() - began > plan.seconds:
            break
        first = number % len(tallies)
        for mode, tally in (*tallies[first:], *tallies[:first]):
            if _takes_part(mode, key[0], starts.index(key[1]), len(starts)):
                if mode.run:
                    _time_run(mode, _unit(mode, tallies)[0], questions, batch_size, key, plan, tally)
                else:
                    _time(mode, questions[key[1] :][: mode.rows or batch_size], key, plan, tally)


def _unit(mode: Mode, tallies: Sequence[tuple[Mode, Tally]]) -> tuple[Mode, Tally]:
    """The plain model that a mode is compared with: as the same engine runs it, else the first."""
    units = [unit for unit in tallies if unit[0].name == MACRO]
    return next((unit for unit in units if unit[0].engine_name == mode.engine_name), units[0])


def _takes_part(mode: Mode, repeat: int, batch: int, batches: int) -> bool:
    """Whether a mode answers a batch; where it takes few, each repeat begins with another."""
    if mode.run:
        return batch == 0
    return mode.batches is None or (batch - repeat) % batches < mode.batches


def _time(mode: Mode, batch: Sequence[Question], key: Key, plan: Plan, tally: Tally) -> None:
    mode.engine.counts = tally.work
    spent, traces = machine.seconds(mode.engine.model.device, partial(answer, mode, batch, len(batch), plan))
    mode.engine.counts = Counts()  # the naive engine counts the model's calls, regardless of the caller
    tally.seconds[key] = spent / len(batch)
    tally.traces += traces


def _time_run(
    mode: Mode,
    macro: Mode,
    questions: Sequence[Question],
    batch_size: int,
    key: Key,
    plan: Plan,
    tally: Tally,
) -> None:
    """All questions at once, between two runs of the plain model: a run is too long to take turns with single
    batches, the machine may be another one meanwhile."""
    device, spent = mode.engine.model.device, []
    for one in (macro, mode, macro):
        mode.engine.counts = tally.work if one is mode else Counts()
        seconds, traces = machine.seconds(device, partial(answer, one, questions, batch_size, plan))
        spent.append(seconds / len(questions))
        if one is mode:
            tally.traces += traces
    mode.engine.counts = Counts()
    tally.units[key], tally.seconds[key] = (spent[0] + spent[2]) / 2, spent[1]


def rows_of(block: BatchSizeResult, peaks: dict[tuple[int, str, str], int]) -> list[dict[str, Any]]:
    """The figures of one batch size, a row for each mode."""
    first = block.tallies[0][1]
    release = next(tally for mode, tally in block.tallies if mode.name == RELEASE)
    return [
        {
            "batch_size": block.batch_size,
            "mode": mode.name,
            "engine": mode.engine_name,
            "n": len({trace.question_id for trace in tally.traces}),
            "time": spread(ratios(tally, first if mode.name == MACRO else _unit(mode, block.tallies)[1])),
            "time_to_release": None if mode.run else spread(ratios(tally, release)),
            "seconds_per_sample": spread(list(tally.seconds.values())),
            "skipped": sum(trace.fallback == Fallback.SKIPPED for trace in tally.traces) / len(tally.traces),
            "tokens_per_sample": (tokens := tally.work.tokens / len(tally.traces)),
            "token_ratio": tokens / (first.work.tokens / len(first.traces)),
            "forwards_per_batch": tally.work.forwards / _batches(mode, tally, block.batch_size),
            "encodes_per_sample": tally.work.encodes / len(tally.traces),
            "peak_bytes": peaks.get((block.batch_size, mode.name, mode.engine_name)),
        }
        for mode, tally in block.tallies
    ]


def _batches(mode: Mode, tally: Tally, batch_size: int) -> float:
    """How many batches were answered."""
    return len(tally.traces) / batch_size if mode.run else len(tally.seconds)


def ratios(own: Tally, unit: Tally) -> list[float]:
    """Times per question over the unit's: one for each batch that both answered, or for each run."""
    units = own.units or unit.seconds
    return [seconds / units[key] for key, seconds in own.seconds.items() if key in units]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median of one or more values, their quartiles, and the values themselves."""
    quartiles = statistics.quantiles([*values, *values][: max(len(values), 2)], n=4, method="inclusive")
    return {"median": statistics.median(values), "low": quartiles[0], "high": quartiles[2], "all": [*values]}


def agreement(blocks: Sequence[BatchSizeResult], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Whether every engine's answers equal the naive one's, on the questions that both answered: tokens, and
    the largest difference of log-probabilities."""
    traces_of: dict[str, list[Trace]] = {}
    for block in blocks:
        for mode, tally in block.tallies:
            if mode.name == DUAL:
                traces_of.setdefault(mode.engine_name, []).extend(tally.traces)
    known = {trace.question_id: trace for trace in traces_of.pop(NAIVE, [])}
    found = []
    for name, traces in traces_of.items():
        pairs = [
            pair
            for trace in traces
            if trace.question_id in known
            for pair in zip(trace.answers, known[trace.question_id].answers, strict=True)
        ]
        if not pairs:
            continue
        same = sum(one.tokens == other.tokens for one, other in pairs)
        gap = max(
            abs(a - b) for one, other in pairs for a, b in zip(one.logprobs, other.logprobs, strict=True)
        )
        found.append(
            {
                "engine": name,
                "answers": len(pairs),
                "same_tokens": same,
                "largest_gap": gap,
                "tolerance": TOLERANCE,
                "holds": same == len(pairs) and gap <= TOLERANCE if dtype == torch.float32 else None,
            }
        )
    return found


def _peaks(source: Source, engines: dict[str, Engine], plan: Plan) -> dict[tuple[int, str, str], int]:
    """Peak bytes of one batch by batch size, mode and engine, weights included; empty where the system does
    not tell.

    On a CPU a separate process measures, and the memory of its libraries before the model is not counted.
    """
    device = next(iter(engines.values())).model.device
    if not machine.tells_peaks(device):
        return {}
    if device.type == "cuda":
        return _peaks_of(engines, plan)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peaks_here, source, plan).result()


def _peaks_here(source: Source, plan: Plan) -> dict[tuple[int, str, str], int]:
    before = machine.resident()
    peaks = _peaks_of(forced_engines(source.load(), plan), plan)
    return {key: peak - before for key, peak in peaks.items()}


def _peaks_of(engines: dict[str, Engine], plan: Plan) -> dict[tuple[int, str, str], int]:
    peaks = {}
    for batch_size in plan.batch_sizes:
        for mode in modes(engines, plan):
            if mode.engine_name == NAIVE and mode.name == DUAL:
                continue  # slow, and held to no bound
            gc.collect()
            batch = noise_questions(batch_size)[: mode.rows]
            work = partial(answer, mode, batch, len(batch), plan)
            key = (batch_size, mode.name, mode.engine_name)
            peaks[key] = machine.peak_bytes(mode.engine.model.device, work)
    return peaks


def _rates(checkpoint: Checkpoint) -> tuple[float, float] | None:
    """What the GPU's memory and its arithmetic reach, see `machine.floors`; None without a GPU."""
    if checkpoint.device.type != "cuda":
        return None
    return machine.copy_rate(checkpoint.device), machine.matmul_rate(
        checkpoint.device, checkpoint.model.dtype
    )


def _profile(engines: dict[str, Engine], plan: Plan, batch_size: int, folder: Path) -> None:
    """One batch of DualFocus by the first engine."""
    mode = next(mode for mode in modes(engines, plan) if mode.name == DUAL)
    work = partial(answer, mode, noise_questions(batch_size), batch_size, plan)
    machine.profile(mode.engine.model.device, work, folder, f"batch-{batch_size}")


def _setup(checkpoint: Checkpoint, plan: Plan, source: Source) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "hardware": machine.hardware(checkpoint.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dualfocus_lmms": __version__,
        },
        "checkpoint": source.name,
        "parameters": sum(weight.numel() for weight in checkpoint.model.parameters()),
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        **plan.model_dump(),
    }
