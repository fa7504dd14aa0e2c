"""The answers of a finished run, chosen again: as it would have with other settings of its last step.

What the run does not contain is refused. With two runs the choice is between their macro answers, as in the
ensembles of the paper's table 8. `models/host/replay_model.py` gives these answers to lmms-eval; a report
shows what `rechooser` makes of the run's traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import field_validator

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.calibrated import CalibratedRule, is_calibrated
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.flow import perplexities, skip_reason
from dualfocus_lmms.integrity import FINGERPRINT, read_data
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.options import Bool, Folder, Options, Probability, Rule, option
from dualfocus_lmms.selection import select
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace, read_settings
from dualfocus_lmms.trace_folder import InOrder, TracesBySample, find_traces
from dualfocus_lmms.types import Answer, Fallback

MODEL = "dualfocus_replay"  # the model class that answers from traces
SECOND = "second"  # the pathway of the second run's answer
FROM_RUN = ("protocol", "pathway", "select", "skip_confidence", "count_eos")
_SHOWN = 5

Key = tuple[str, str, Any]  # task, split, doc_id
Fingerprints = Mapping[tuple[str, str], str]  # of the questions, by task and split


class ReplayOptions(Options):
    """Everything a user can set with `--model_args`."""

    trace: Folder = option(help="trace folder of a finished run")
    select: Rule | None = option(
        None,
        unset="the run's",
        help="rule that picks the answer: `macro`, `micro`, `ppl`, `ppl_tie_macro`, "
        "`calibrated:FILE`, or one of another package; `release` or `micro_context` on a run with this rule",
    )
    skip_confidence: Probability | None = option(
        None,
        unset="the run's; 1 with `second`",
        help="samples whose macro answer is more confident keep it, as if the second look had been skipped",
    )
    count_eos: Bool | None = option(
        None,
        unset="the run's",
        help="whether the end-of-turn token counts in perplexity and confidence",
    )
    second: Folder | None = option(
        None, help="trace folder of another run: its macro answer takes the place of the micro one"
    )

    @field_validator("select", mode="before")
    @classmethod
    def _is_no_oracle(cls, rule: Any) -> Any:
        if rule == "oracle":
            raise ValueError(
                "select=oracle needs the right answers, which no model is given: `dualfocus report RUN` has "
                "the oracle beside the scores of macro and micro."
            )
        return rule

    @classmethod
    def kind(cls) -> str:
        return f"model argument of {MODEL}"

    @classmethod
    def missing(cls, name: str) -> str:
        return "No run to replay: give --model_args trace=<trace folder of a finished run>."

    def settings(self, run: Mapping[str, Any]) -> Settings:
        """How the answers of a run with the settings `run` (its run.json) are chosen, checked."""
        values = {name: run[name] for name in FROM_RUN if name in run}
        # The file of a fitted rule may have changed.
        fitted = {"select": None} if is_calibrated(str(values.get("select"))) else {}
        try:
            Settings.of(**values | fitted)
        except (UserError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{Path(self.trace) / 'run.json'} has settings that no run writes ({error}): restore it, "
                "or give another run."
            ) from error
        if self.second is not None:
            values |= {"pathway": "both", "skip_confidence": 1.0}
        elif values.get("pathway") == "macro":
            if self.select not in (None, "macro"):
                raise UserError(
                    f"The run in {self.trace} has macro answers only (pathway=macro): select={self.select} "
                    "has nothing to choose from. Leave select out, or replay a run with pathway=both."
                )
            values["select"] = "macro"
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        settings = Settings.of(**values | {name: given[name] for name in FROM_RUN if name in given})
        if self.second is None and run.get("looks", 1) != 1 and settings.count_eos != run.get("count_eos"):
            raise UserError(
                f"The run in {self.trace} has looks={run['looks']}: by its perplexities, with count_eos="
                f"{run.get('count_eos')}, it looked again or stopped. Leave count_eos out, or run it again."
            )
        if self.select is None and isinstance(settings.rule, CalibratedRule):
            _check_calibration(self.trace, settings, run.get("calibration"))
        return settings


def _check_calibration(folder: str, settings: Settings, then: Mapping[str, Any] | None) -> None:
    """UserError where the file of the run's own rule is not what it was. then: what it was."""
    if settings.to_dict().get("calibration") != then:
        raise UserError(
            f"The file of select={settings.rule_name} has changed since the run in {folder}: put the old one "
            f"back, or give select={settings.rule_name} to choose by the new one."
        )


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run left in its trace folder.

    data: see `integrity.write_data`. damaged: lines of the traces that could not be read, by name; their
    samples are missing.
    """

    folder: str
    settings: dict[str, Any]
    data: dict[str, dict[str, Any]]
    traces: TracesBySample
    damaged: tuple[str, ...]

    @classmethod
    def read(cls, folder: str) -> Recorded:
        """UserError where the folder holds no run."""
        traces, damaged = find_traces(folder)
        settings = read_settings(folder)
        return cls(folder, settings, read_data(folder), TracesBySample(traces), tuple(damaged))

    def tasks(self) -> set[tuple[str, str]]:
        """Tasks and their splits."""
        return self.traces.groups

    def fingerprint(self, task: str, split: str) -> str | None:
        """Of the questions; None where the run did not end."""
        return self.data.get(f"{task}/{split}", {}).get(FINGERPRINT)


# --- which traces ------------------------------------------------------------------------------------------


def find(run: Recorded, keys: Sequence[Mapping[str, Any]], questions: Fingerprints) -> Sequence[Trace]:
    """The run's trace of each key. UserError where the run was not asked all of them, or not the same.

    questions: of what is asked now.
    """
    for (task, split), now in questions.items():
        then = run.fingerprint(task, split)
        if then not in (None, now):
            raise UserError(
                f"The questions of {task} ({split}) have changed since the run in {run.folder}: their "
                f"fingerprint was {then} and is {now} now. Give the data of that run, or run it again."
            )
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
    """The traces as a run with these settings would have written them, each read once.

    UserError at the end where that run would have looked a second time and this one did not, and where it
    would have scored answers under one context and this one did not.
    """
    lacking, unscored = [], []
    for trace in traces:
        if _lacks_second_look(trace, settings):
            lacking.append(_key(trace.key))
        if _lacks_scores(trace, settings):
            unscored.append(_key(trace.key))
        if not lacking and not unscored:
            yield _choose(trace, settings)
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
    trace = _with_micro(first, replace(second.macro, pathway=SECOND), None)  # type: ignore[arg-type]
    return replace(trace, prompts=trace.prompts | {SECOND: second.prompts["macro"]})


def _with_micro(trace: Trace, micro: Answer | None, fallback: str | None) -> Trace:
    """The trace with this answer in place of the micro one, without the original second look."""
    return replace(
        trace, locate=None, micro=micro, box=None, crop=None, crop_size=None, given_reply=None,
        boxes=None, crops=None, crop_sizes=None, looks=None, shifted_box=None, judged=None, fallback=fallback,
        attention=None, prompts={"macro": trace.prompts["macro"]},
    )  # fmt: skip


def rechooser(options: ReplayOptions, settings: Settings) -> Callable[[Trace], Trace]:
    """What makes of a trace of the run the one that a replay would write. UserError as of `choose_again`.

    settings: `options.settings` of the run. With a second run, its answer is the micro one, and its prompt is
    among the prompts, as SECOND.
    """
    second = None if options.second is None else Recorded.read(options.second)
    data = read_data(options.trace)

    def choose(trace: Trace) -> Trace:
        if second is not None:
            task, split, _ = _key(trace.key)
            asked = str(data.get(f"{task}/{split}", {}).get(FINGERPRINT, "unknown"))
            (other,) = find_second(second, [trace], {(task, split): asked})
            trace = joined(trace, other)
        (chosen,) = choose_again([trace], settings)
        return chosen if second is None else _as_micro(chosen)

    return choose


def _as_micro(trace: Trace) -> Trace:
    """With the second run's answer, if there is one, under the name of the micro one, which figures know."""
    if trace.micro is None:  # the first run's was certain enough
        return trace
    chosen = trace.selection
    return replace(
        trace,
        micro=replace(trace.micro, pathway="micro"),
        selection=replace(chosen, pathway="macro" if chosen.pathway == "macro" else "micro"),
        ppl={"macro": trace.ppl["macro"], "micro": trace.ppl[SECOND]},
    )
