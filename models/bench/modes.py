"""What the benchmark compares: the plain model, DualFocus by every engine, the release's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from pydantic import Field, model_validator

from dualfocus_lmms.flow import answer_batch
from dualfocus_lmms.models.bench.model import BatchedGenerate, Engine, ReleaseWay, force_replies
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.registry import ENGINES, make_engine
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.options import Bool, Options, Text, must_be, one_of
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Question, StopCriteria

MACRO, DUAL, SKIPPING, RELEASE = "macro only", "DualFocus", "DualFocus, skipping", "release's way"
NAIVE, GENERATE = "naive", "generate"
GRAPHS = " + CUDA graphs"  # after the name of an engine that has them


_Count = Annotated[int, Field(strict=True, ge=1), must_be("a whole number from 1")]


class Plan(Options):
    """What is run. samples: questions in each repeat. skip_share: of them, how many skip the second look.

    engines: modes of the engine by name, none: all that serve the checkpoint. cuda_graphs: also the first
    engine with them. seconds: for the turns of one batch size; there is one at least, None is no limit.
    """

    batch_sizes: Annotated[tuple[_Count, ...], Field(min_length=1), must_be("whole numbers from 1")] = (1, 4)
    samples: _Count = 12
    repeats: _Count = 2
    new_tokens: _Count = 3
    box_tokens: _Count = 24
    skip_share: Annotated[float, Field(strict=True, ge=0, le=1), must_be("a share from 0 to 1")] = 0.58
    engines: tuple[Annotated[Text, one_of(ENGINES, "engine")], ...] = ()
    cuda_graphs: Bool = False
    seconds: Annotated[float, Field(strict=True, ge=0), must_be("a number of seconds")] | None = None

    @model_validator(mode="after")
    def _fills_batches(self) -> Plan:
        if any(self.samples % size for size in self.batch_sizes):
            raise ValueError(f"samples must fill whole batches of {self.batch_sizes}, got {self.samples}.")
        return self


@dataclass(frozen=True, eq=False, slots=True)
class Mode:
    """One way to answer. batches, rows: in how many batches of a repeat it takes part, with how many of their
    questions; None is all of them. A slow mode takes few. run: it is given all questions of a repeat, as a
    whole run is, and makes its own batches."""

    name: str
    engine_name: str
    engine: Engine
    settings: Settings
    batches: int | None = None
    rows: int | None = None
    run: bool = False


def forced_engines(checkpoint: Checkpoint, plan: Plan) -> dict[str, Engine]:
    """The plan's engines, the one of the checkpoint's family first and the slow one last; then RELEASE."""
    own = checkpoint.family.engine
    fast = [name for name, engine in ENGINES.items() if issubclass(engine, SharedBackend)]
    names = plan.engines or [*(fast if own in fast else [own]), NAIVE]
    ordered = sorted(dict.fromkeys(names), key=lambda name: (name == NAIVE, name != own))
    engines = {name: force_replies(make_engine(name, checkpoint)) for name in ordered}
    if plan.cuda_graphs and ordered[0] in fast:
        with_graphs = force_replies(make_engine(ordered[0], checkpoint, cuda_graphs=True))
        engines = {ordered[0]: engines[ordered[0]], ordered[0] + GRAPHS: with_graphs} | engines
    others = {GENERATE: BatchedGenerate(checkpoint), RELEASE: ReleaseWay(checkpoint)}
    return engines | {name: force_replies(engine) for name, engine in others.items()}


def modes(engines: dict[str, Engine], plan: Plan) -> list[Mode]:
    """The plain model, the first engine's way first; DualFocus by every engine; and the release's way."""
    first, macro = next(iter(engines)), plan_settings(plan, pathway="macro")
    found = [
        Mode(MACRO, name, engine, macro)
        for name, engine in engines.items()
        if name in (first, first + GRAPHS, GENERATE)
    ]
    for name, engine in engines.items():
        if name == RELEASE:
            settings = plan_settings(plan, protocol="release")
            found.append(Mode(RELEASE, GENERATE, engine, settings, batches=2, rows=1))
        elif name == GENERATE:
            continue
        elif name == NAIVE:
            found.append(Mode(DUAL, name, engine, plan_settings(plan), batches=1, rows=1))
        else:
            found.append(Mode(DUAL, name, engine, plan_settings(plan)))
    return found


def plan_settings(plan: Plan, **chosen: Any) -> Settings:
    """Settings with a locate reply of the plan's length."""
    settings = Settings.of(**chosen)
    return replace(settings, protocol=replace(settings.protocol, locate_tokens=plan.box_tokens))


def answer(mode: Mode, questions: Sequence[Question], batch_size: int, plan: Plan) -> Sequence[Trace]:
    """The questions' traces, batch by batch."""
    if mode.run:
        limits = StopCriteria(plan.new_tokens)
        requests = [Request(one.key or {}, limits, partial(lambda given: given, one)) for one in questions]
        return Runner(mode.engine, mode.settings, batch_size).run(requests)
    traces = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        traces += answer_batch(
            mode.engine, batch, [StopCriteria(plan.new_tokens)] * len(batch), mode.settings
        )
    return traces


def skip_threshold(confidences: Sequence[float], share: float) -> float:
    """The `skip_confidence` that lets `share` of these answers skip, midway between two of them."""
    ranked = sorted(confidences, reverse=True)
    skipped = round(share * len(ranked))
    if skipped == 0:
        return 1.0
    return 0.0 if skipped == len(ranked) else (ranked[skipped - 1] + ranked[skipped]) / 2
