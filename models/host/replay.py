"""The lmms-eval model `dualfocus_replay`: the answers of a finished run, chosen again. No weights are loaded.

lmms-eval --model dualfocus_replay --model_args trace=FOLDER,select=micro --tasks df_pope

It gives what the run would have given with other settings of its last step, or refuses. With two runs it
chooses between their macro answers, as the ensembles of the paper's table 8.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmms_eval.api.instance import GenerationResult
from loguru import logger

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.flow import perplexities, skip_reason
from dualfocus_lmms.integrity import FINGERPRINT, questions_fingerprint, read_data
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.models.host.model import GenerateOnly, SampleExtras, check_unseen
from dualfocus_lmms.models.host.options import parse_model_args
from dualfocus_lmms.models.host.replay_options import ReplayOptions
from dualfocus_lmms.models.host.requests import read_request
from dualfocus_lmms.models.run.answered import InOrder
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.selection import select
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace, read_settings
from dualfocus_lmms.trace_folder import TracesBySample, find_traces
from dualfocus_lmms.types import Answer, Fallback

SECOND = "second"  # the pathway of the second run's answer
_SHOWN = 5

Key = tuple[str, str, Any]  # task, split, doc_id
Fingerprints = Mapping[tuple[str, str], str]  # of the questions, by task and split


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run left in its trace folder. data: see `integrity.write_data`."""

    folder: str
    settings: dict[str, Any]
    data: dict[str, dict[str, Any]]
    traces: TracesBySample

    @classmethod
    def read(cls, folder: str) -> Recorded:
        """UserError where the folder holds no run."""
        traces, damaged = find_traces(folder)
        for line in damaged:
            logger.warning(f"Unreadable trace in {folder}, its sample is missing: {line}")
        settings = read_settings(folder)
        return cls(folder, settings, read_data(folder), TracesBySample(traces))

    def tasks(self) -> set[tuple[str, str]]:
        """Tasks and their splits."""
        return self.traces.groups

    def fingerprint(self, task: str, split: str) -> str | None:
        """Of the questions; None where the run did not end."""
        return self.data.get(f"{task}/{split}", {}).get(FINGERPRINT)


# --- which traces ------------------------------------------------------------------------------------------


def find(run: Recorded, requests: Sequence[Request], questions: Fingerprints) -> Sequence[Trace]:
    """The run's trace of each request. UserError where the run was not asked all of them, or not the same.

    questions: of what is asked now.
    """
    for (task, split), now in questions.items():
        then = run.fingerprint(task, split)
        if then not in (None, now):
            raise UserError(
                f"The questions of {task} ({split}) have changed since the run in {run.folder}: their "
                f"fingerprint was {then} and is {now} now. Give the data of that run, or run it again."
            )
    keys = [request.key for request in requests]
    traces = _present(run, keys)
    changed = [
        _key(key)
        for key in keys
        if not run.traces.is_same(key) and run.traces[key].key.get("context") != key["context"]
    ]
    if changed:
        raise UserError(
            f"The run in {run.folder} was asked with another prompt or other generation settings: "
            f"{_some(changed)}. Give the tasks and --gen_kwargs of that run."
        )
    return traces


def find_second(run: Recorded, firsts: Sequence[Trace], questions: Fingerprints) -> Sequence[Trace]:
    """The second run's trace for each of the first's: the same question and image.

    Its prompt may be another one, and its task then has another name. UserError where anything else differs.
    """
    twins = {asked: _twin(run, *asked, now) for asked, now in questions.items()}
    certain = {twin for asked, twin in twins.items() if run.fingerprint(*twin) == questions[asked]}
    keys = []
    for first in firsts:
        task, split = twins[first.key["task"], first.key["split"]]
        keys.append({"task": task, "split": split, "doc_id": first.key["doc_id"]})
    seconds = _present(run, keys)
    other_images, others = [], []
    for first, second in zip(firsts, seconds, strict=True):
        key = _key(second.key)
        if first.image_hash != second.image_hash:
            other_images.append(key)
        if key[:2] not in certain and first.key["context"] != second.key.get("context"):
            others.append(key)
    if other_images:
        raise UserError(
            f"The second run, in {run.folder}, saw other images than the first: {_some(other_images)}. "
            "Give two runs of the same data."
        )
    if others:  # two prompts may ask the same question: only the fingerprint of a finished run shows that
        raise UserError(
            f"The second run, in {run.folder}, was not asked the same questions as the first: "
            f"{_some(others)}. Give a run of the same data; with another prompt, one that has ended."
        )
    return seconds


def _twin(run: Recorded, task: str, split: str, questions: str) -> tuple[str, str]:
    """The task of `run` with these questions: that of the same name, else the only one that has them."""
    held = run.tasks()
    if (task, split) in held:
        return task, split
    same = sorted(other for other in held if run.fingerprint(*other) == questions)
    if len(same) != 1:
        found = f"{len(same)} tasks" if same else "no task"
        raise UserError(
            f"The second run, in {run.folder}, has {found} with the questions of {task} ({split}); it holds "
            f"{_names(held)}. Give a run with one such task."
        )
    return same[0]


def _present(run: Recorded, keys: Sequence[Mapping[str, Any]]) -> Sequence[Trace]:
    missing = [_key(key) for key in keys if key not in run.traces]
    if missing:
        raise UserError(
            f"The run in {run.folder} did not answer {len(missing)} of {len(keys)} questions: "
            f"{_some(missing)}. It holds {_names(run.tasks())}. Finish it with resume=True, or ask for less "
            "with --tasks and --limit."
        )
    return InOrder(run.traces, keys)


def _key(key: Mapping[str, Any]) -> Key:
    return key["task"], key["split"], key["doc_id"]


def _some(keys: Sequence[Key]) -> str:
    """The first samples by name."""
    shown = ", ".join(f"{task}/{split}/{doc_id}" for task, split, doc_id in keys[:_SHOWN])
    return shown + (f", ... ({len(keys)} in all)" if len(keys) > _SHOWN else "")


def _names(tasks: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{task} ({split})" for task, split in sorted(tasks)) or "no answer"


# --- choosing again ----------------------------------------------------------------------------------------


def choose_again(traces: Sequence[Trace], settings: Settings) -> Iterator[Trace]:
    """The traces as a run with these settings would have written them.

    UserError where that run would have looked a second time and this one did not, and where it would have
    scored answers under one context and this one did not.
    """
    lacking, unscored = [], []
    for trace in traces:
        if _lacks_second_look(trace, settings):
            lacking.append(_key(trace.key))
        if _lacks_scores(trace, settings):
            unscored.append(_key(trace.key))
    if lacking:
        raise UserError(
            f"With skip_confidence={settings.skip_confidence:g} and count_eos={settings.count_eos}, "
            f"{len(lacking)} samples need a second look that the run skipped: "
            f"{_some(lacking)}. Give a lower skip_confidence, or select=macro."
        )
    if unscored:
        raise UserError(
            f"select={settings.rule_name} compares both answers under one context, and the run has no such "
            f"scores of {len(unscored)} samples: {_some(unscored)}. Choose "
            f"another rule, such as ppl, or run again with select={settings.rule_name}."
        )
    return (_choose(trace, settings) for trace in traces)


def _lacks_second_look(trace: Trace, settings: Settings) -> bool:
    if trace.fallback != Fallback.SKIPPED or settings.rule_name == "macro":
        return False
    return skip_reason(trace.macro, settings) is None


def _lacks_scores(trace: Trace, settings: Settings) -> bool:
    compared = trace.micro is not None and skip_reason(trace.macro, settings) is None
    scored = trace.judged is not None and trace.judged.rule == settings.rule_name
    return isinstance(settings.rule, JointRule) and compared and not scored


def _choose(trace: Trace, settings: Settings) -> Trace:
    if settings.pathway == "both" and skip_reason(trace.macro, settings) is not None:
        trace = _with_micro(trace, None, Fallback.SKIPPED.value)
    answers = [trace.macro] if trace.micro is None else [trace.macro, trace.micro]
    judged = trace.judged if isinstance(settings.rule, JointRule) else None
    box = None if trace.box is None else Box(*trace.box)
    name, rule = settings.rule_name, settings.rule
    chosen = select(name, rule, trace.macro, trace.micro, settings.count_eos, judged, box)
    return replace(trace, selection=chosen, judged=judged, ppl=perplexities(answers, settings))


class Joined(Sequence[Trace]):
    """The traces of two runs, see `joined`, each pair when it is taken."""

    def __init__(self, firsts: Sequence[Trace], seconds: Sequence[Trace]) -> None:
        self._pairs = firsts, seconds

    def __len__(self) -> int:
        return len(self._pairs[0])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Joined(*(traces[index] for traces in self._pairs))
        return joined(*(traces[index] for traces in self._pairs))


def joined(first: Trace, second: Trace) -> Trace:
    """Two macro answers as one sample: the second run's takes the place of the micro one."""
    return _with_micro(first, replace(second.macro, pathway=SECOND), None)  # type: ignore[arg-type]


def _with_micro(trace: Trace, micro: Answer | None, fallback: str | None) -> Trace:
    """The trace with this answer in place of the micro one, without the original second look."""
    return replace(
        trace, locate=None, micro=micro, box=None, crop=None, crop_size=None, given_reply=None,
        boxes=None, crops=None, crop_sizes=None, looks=None, shifted_box=None, judged=None, fallback=fallback,
        prompts={"macro": trace.prompts["macro"]},
    )  # fmt: skip


# --- the host ----------------------------------------------------------------------------------------------


class Replay(GenerateOnly):
    """Chat adapter. Model arguments: see `ReplayOptions`."""

    is_simple = False

    def __init__(self, **given: Any) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("A replay runs no model: start it as one process, without torchrun.")
        options = ReplayOptions.of(given)
        self._run = Recorded.read(options.trace)
        self._settings = options.settings(self._run.settings)
        self._second = None if options.second is None else Recorded.read(options.second)
        logger.info(
            f"Replay of {options.trace}{f' and {options.second}' if options.second else ''} with "
            f"select={self._settings.rule_name}, skip_confidence={self._settings.skip_confidence:g}, "
            f"count_eos={self._settings.count_eos}"
        )

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Replay:
        """As the host's, without its batch size and device, which mean nothing here."""
        return cls(**parse_model_args(arg_string, ReplayOptions))

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        read = [read_request(instance, self.task_dict, chat=not self.is_simple) for instance in requests]
        asked = {(request.key["task"], request.key["split"]) for request in read}
        questions = {
            (task, split): questions_fingerprint(self.task_dict[task][split]) for task, split in sorted(asked)
        }
        check_unseen(self._settings, self.task_dict, asked)
        traces = find(self._run, read, questions)
        if self._second is not None:
            seconds = find_second(self._second, traces, questions)
            traces = Joined(traces, seconds)
        chosen = choose_again(traces, self._settings)
        return [GenerationResult(trace.selection.text, SampleExtras.of(trace)) for trace in chosen]


class ReplaySimple(Replay):
    """Simple adapter, for tasks without messages (`--force_simple`)."""

    is_simple = True
