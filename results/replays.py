"""Replays on disk: the traces of a run, with the choice that the replay made between their answers.

A replay writes no traces. Its results name those of the run and the rule, and the choice is made here again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.options import as_written
from dualfocus_lmms.replay import FROM_RUN, SECOND, ReplayOptions, rechooser
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.trace_folder import Traces

_FITTED = "calibration"
# What a choice between two macro answers does not depend on.
_OF_SECOND_LOOKS = (
    "grounding",
    "grounding_checkpoint",
    "box_shift",
    "box_margin",
    "crop_pixels",
    "regions",
    "looks",
)


@dataclass(frozen=True, slots=True)
class ReplayedRun:
    """What a replay did.

    results: the host's. options: what was given. settings: those of the run with the replay's own on top.
    choose: makes of a trace of the run what the replay made of it.
    """

    results: Mapping[str, Any]
    options: ReplayOptions
    settings: dict[str, Any]
    choose: Callable[[Trace], Trace]

    @classmethod
    def of(cls, results: Mapping[str, Any], traces: Path, run: Mapping[str, Any]) -> ReplayedRun:
        """traces: the folder of the run's, where it is now. run: its settings. UserError for what no replay
        could have chosen by."""
        options = _options(results).but(trace=str(traces))
        if options.second is not None and not Path(options.second).is_dir():
            raise UserError(
                f"The replay chose from two runs, and the traces of the second, {options.second}, are not "
                "there: start the command in the folder that the replay was started in."
            )
        how = options.settings(run)
        chosen = how.to_dict()
        names = {*FROM_RUN, _FITTED} & chosen.keys()
        settings = {name: value for name, value in run.items() if name != _FITTED}
        settings |= {name: chosen[name] for name in names}
        if options.second is not None:
            settings = {name: value for name, value in settings.items() if name not in _OF_SECOND_LOOKS}
            settings["second"] = options.second
        return cls(results, options, settings, rechooser(options, how))

    @property
    def folders(self) -> tuple[str, ...]:
        """The traces that it chose from, those of the second run last."""
        return tuple(filter(None, (self.options.trace, self.options.second)))

    def asked(self, traces: Traces) -> Traces:
        """Those of the run's traces that the replay asked for."""
        sizes = self.results.get("n-samples", {})
        first = (self.results.get("config") or {}).get("offset") or 0
        ends = [first + (sizes[task]["effective"] if task in sizes else 0) for task, _ in traces.groups]
        end = np.array(ends, dtype=np.int64)[traces.places["group"]]
        return traces.at((first <= traces.doc_ids) & (traces.doc_ids < end))

    def chosen(self, task: str, traces: Traces, rows: Iterable[Mapping[str, Any]]) -> Traces:
        """A task's traces, each chosen again when it is taken.

        rows: of the host's samples; UserError where one has another choice.
        """
        choose, then = self.choose, dict(_pathways(rows))

        def change(trace: Trace) -> Trace:
            trace = choose(trace)
            before, now = then.get(trace.key["doc_id"]), trace.selection.pathway
            if before not in (None, now):
                raise UserError(
                    f"The replay chose the {before} answer to doc_id {trace.key['doc_id']} of {task}, and "
                    f"now it is {now}: the traces in {' and '.join(self.folders)} or "
                    f"select={self.settings['select']} have changed since. Replay again."
                )
            return trace

        return replace(traces, change=change)


def _options(results: Mapping[str, Any]) -> ReplayOptions:
    given = (results.get("config") or {}).get("model_args") or ""
    if isinstance(given, str):
        from lmms_eval.utils import simple_parse_args_string

        try:
            read = simple_parse_args_string(given)
        except ValueError as error:
            raise UserError(
                f"The replay's results have model_args={given!r:.80}, which is not name=value,name=value: "
                "replay again."
            ) from error
        given = as_written(read, given, ReplayOptions)
    return ReplayOptions.of(given)


def _pathways(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, str]]:
    """(doc_id, pathway of the chosen answer) as the host's samples say it; "micro" for a second run's."""
    for row in rows:
        counts = (row.get("token_counts") or [{}])[0] or {}
        pathway = (counts.get("dualfocus") or {}).get("pathway")
        if isinstance(pathway, str):
            yield row["doc_id"], sys.intern("micro" if pathway == SECOND else pathway)
