"""Every engine against `naive`, on random models of every family and random questions.

python tests/differential.py --models 40 --questions 24     # the tables of docs/architecture.md#engines

A comparison is one question of one model, answered by one engine and by `naive`: the tokens of all replies,
their log-probabilities, the box, the crop, what a joint rule scored, and the answer that was chosen. Where
two values that decide something lie closer together than the tolerance, such as the probabilities of two
tokens, either may win: that is a tie, and what follows from it is not compared. Ends with 1 where anything
else differs; `--only NUMBER` repeats one model.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when the libraries are imported

import torch
from loguru import logger
from random_models import FAMILIES, NANO, AnyReply, random_model, random_questions, random_settings
from tabulate import tabulate

from dualfocus_lmms import Answer, Question, Settings, StopCriteria, Trace
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner

TOLERANCE = 1e-4  # nats, in float32
ENGINES = {  # name in the table: name of the engine, whether its steps run as those of CUDA graphs do
    "shared": ("shared", False),
    "template": ("template", False),
    "tree": ("tree", False),
    "tree, cuda_graphs": ("tree", True),
    "batched": ("batched", False),
}


@dataclass
class Tally:
    """Of one family and engine. gap: the largest difference of two log-probabilities, in nats."""

    compared: int = 0
    ties: int = 0
    different: int = 0
    gap: float = 0.0


@dataclass
class Result:
    """tallies: by family and engine. seen: by family, what the answers of `naive` were."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    seen: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @property
    def different(self) -> int:
        return sum(tally.different for tally in self.tallies.values())


class DifferentError(Exception):
    """What one comparison found."""


class TieError(Exception):
    """Where one comparison ended, as either side may be right."""


def compare(trace: Trace, oracle: Trace, skip_confidence: float = 1.0) -> float:
    """The largest difference of two log-probabilities in nats. Raises DifferentError and TieError."""
    gap = _same_answer(trace.macro, oracle.macro)
    if trace.fallback != oracle.fallback and abs(oracle.macro.confidence() - skip_confidence) < TOLERANCE:
        raise TieError("skip_confidence")
    gap = max(gap, _same_answer(trace.locate, oracle.locate))
    for name in ("fallback", "box", "shifted_box", "crop", "given_reply", "prompts", "stop"):
        _same(name, getattr(trace, name), getattr(oracle, name))
    gap = max(gap, _same_answer(trace.micro, oracle.micro), _same_scores(trace, oracle))
    ours, theirs = trace.selection, oracle.selection
    _same("rule", ours.rule, theirs.rule)
    if ours.pathway != theirs.pathway and abs(theirs.margin or 0) < TOLERANCE:
        raise TieError("selection")
    _same("selection", (ours.pathway, ours.text), (theirs.pathway, theirs.text))
    return gap


def _same(name: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise DifferentError(f"{name}: {ours!r}, not {theirs!r}")


def _same_answer(ours: Answer | None, theirs: Answer | None) -> float:
    if ours is None or theirs is None:
        _same("answers", ours, theirs)
        return 0.0
    gap = 0.0
    tokens = [(*answer.tokens, *(["end"] if answer.ended else [])) for answer in (ours, theirs)]
    for number, (one, other) in enumerate(zip(ours.logprobs, theirs.logprobs, strict=False)):
        same = tokens[0][number] == tokens[1][number]
        if not abs(one - other) < TOLERANCE:
            raise DifferentError(f"{ours.pathway}, log-probability of token {number}: {one}, not {other}")
        if not same:  # both were the most probable one, and equally probable
            raise TieError(f"{ours.pathway}, token {number}")
        gap = max(gap, abs(one - other))
    _same(ours.pathway, (ours.text, *tokens[0]), (theirs.text, *tokens[1]))
    return gap


def _same_scores(ours: Trace, theirs: Trace) -> float:
    one, other = ours.judged, theirs.judged
    if one is None or other is None:
        _same("scores", one, other)
        return 0.0
    _same("winner", one.winner, other.winner)
    values = [
        [scores.logprobs + scores.closings for scores in (judged.macro, judged.micro) if scores is not None]
        for judged in (one, other)
    ]
    pairs = [pair for turn in zip(*values, strict=True) for pair in zip(*turn, strict=True)]
    gap = max((abs(one - other) for one, other in pairs), default=0.0)
    if not gap < TOLERANCE:
        raise DifferentError(f"scores of the rule: {gap} nats apart")
    return gap


def answers(
    name: str,
    graphs: bool,
    checkpoint: Checkpoint,
    asked: tuple[Sequence[Question], Sequence[StopCriteria]],
    settings: Settings,
    batch_size: int,
    any_reply: bool,
) -> list[Trace]:
    """The traces of one engine. any_reply: every reply to Q1 is read as a box."""
    backend = make_engine(name, checkpoint, graphs)
    if any_reply:
        backend.box_format = AnyReply(backend.box_format)
    requests = [
        Request(question.key, limits, partial(lambda one: one, question))
        for question, limits in zip(*asked, strict=True)
    ]
    return Runner(backend, settings, batch_size).run(requests)


def runs(engine: str, checkpoint: Checkpoint) -> bool:
    """Whether one of ENGINES is compared on a model: those that share prefixes where they take it, else
    `batched`."""
    shared = checkpoint.family.engine == "tree"
    eager = checkpoint.model.config.get_text_config()._attn_implementation == "eager"
    return shared != (engine == "batched") and not (ENGINES[engine][1] and eager)


def middle_confidence(
    checkpoint: Checkpoint, asked: tuple[Sequence[Question], Sequence[StopCriteria]]
) -> float:
    """The confidence that half of the macro answers exceed."""
    macros = answers("naive", False, checkpoint, asked, Settings.of(pathway="macro"), 1, False)
    ordered = sorted(trace.macro.confidence() for trace in macros)
    return sum(ordered[len(ordered) // 2 :][:2]) / 2 if len(ordered) > 2 else 1.0


def one_model(number: int, seed: int, questions: int, result: Result) -> Iterator[str]:
    """Compare all engines on one model, which in every other round of the families was taught to write boxes:
    half of its questions with one kind of settings, half with another. Yields a line for each comparison that
    differs, and for each tie."""
    random = Random(f"{seed} {number}")
    family = FAMILIES[number % len(FAMILIES)]
    taught = number // len(FAMILIES) % 2 == 1 or family == NANO
    checkpoint = random_model(family, random, taught)
    result.seen[family]["models"] += 1
    for half in (questions - questions // 2, questions // 2):
        own_boxes = taught or random.random() < 0.6
        asked = random_questions(random, half, drawn=family == NANO and random.random() < 0.8)
        skip = middle_confidence(checkpoint, asked) if random.random() < 0.4 else 1.0
        settings = random_settings(random, checkpoint, own_boxes, skip)
        any_reply = own_boxes and not taught
        sizes = [random.choice([1, 2, 3, 4, 5, 8]) for _ in ENGINES]
        run = partial(answers, checkpoint=checkpoint, asked=asked, settings=settings, any_reply=any_reply)
        oracle = run("naive", False, batch_size=1)
        _count(result.seen[family], oracle, own_boxes and not any_reply)
        for (engine, (name, graphs)), size in zip(ENGINES.items(), sizes, strict=True):
            if not runs(engine, checkpoint):
                continue
            tally = result.tallies[family, engine]
            for trace, other in zip(run(name, graphs, batch_size=size), oracle, strict=True):
                where = (
                    f"model {number} ({family}), question {trace.question_id}, {engine}, batches of {size}"
                )
                tally.compared += 1
                try:
                    tally.gap = max(tally.gap, compare(trace, other, settings.skip_confidence))
                except TieError as tie:
                    tally.ties += 1
                    yield f"tie: {where}: {tie}"
                except DifferentError as found:
                    tally.different += 1
                    yield f"DIFFERENT: {where}: {found}; {settings.to_dict()}"


def _count(seen: Counter[str], traces: Sequence[Trace], own_boxes: bool) -> None:
    for trace in traces:
        seen["questions"] += 1
        seen["micro answers"] += trace.micro is not None
        seen["own boxes"] += own_boxes and trace.locate is not None and trace.box is not None
        replies = [answer for answer in (trace.macro, trace.locate, trace.micro) if answer is not None]
        seen["replies"] += len(replies)
        seen["closed at once"] += sum(answer.ended and not answer.tokens for answer in replies)
        seen["skipped"] += trace.fallback == "skip_confidence"


def tables(result: Result) -> str:
    """What was compared, and what the questions were, as Markdown."""
    totals = sorted(result.tallies.items(), key=lambda item: FAMILIES.index(item[0][0]))
    compared = [
        [family, engine, f"{tally.compared:,}", tally.ties, tally.different, f"{tally.gap:.0e}"]
        for (family, engine), tally in totals
    ]
    all_of = [tally for _, tally in totals]
    sums = [sum(getattr(tally, name) for tally in all_of) for name in ("compared", "ties", "different")]
    compared.append(["all", "", f"{sums[0]:,}", *sums[1:], f"{max(tally.gap for tally in all_of):.0e}"])
    headers = ["family", "engine", "comparisons", "ties", "differences", "largest gap, nats"]
    names = ["models", "questions", "replies", "micro answers", "own boxes", "closed at once", "skipped"]
    seen = [[family, *(counts[name] for name in names)] for family, counts in result.seen.items()]
    show = partial(tabulate, tablefmt="github", disable_numparse=True)
    right = ["right"] * 7
    return "\n\n".join(
        [
            show(compared, headers, colalign=["left", "left", *right[:4]]),
            show(seen, ["family", *names], colalign=["left", *right]),
        ]
    )


def differential(models: Sequence[int], questions: int, seed: int = 0, seconds: float = math.inf) -> Result:
    """Compare on the models with these numbers, beginning with none after so many seconds; prints what
    differs."""
    result, started = Result(), time.monotonic()
    for number in models:
        if time.monotonic() - started > seconds:
            break
        for line in one_model(number, seed, questions, result):
            print(line, flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every engine against naive.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=int, default=2 * len(FAMILIES), help="the families in turn")
    parser.add_argument("--questions", type=int, default=24, help="of each model")
    parser.add_argument("--only", type=int, help="the number of a model")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin with no other model then")
    given = parser.parse_args(arguments)
    numbers = range(given.models) if given.only is None else [given.only]
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    torch.set_num_threads(1)  # for models this small, threads only wait for each other
    result = differential(numbers, given.questions, given.seed, given.seconds)
    print(tables(result))
    return 1 if result.different else 0


if __name__ == "__main__":
    sys.exit(main())
