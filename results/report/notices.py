"""What a reader of a report must know first, in sentences: what is missing, left out, or chosen anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualfocus_lmms.results.report import gallery
from dualfocus_lmms.results.runs import Run

NAMES_SHOWN = 5


def replayed(run: Run) -> list[str]:
    """Of a replay, what it chose from and how."""
    if not run.replay_of:
        return []
    first = run.replay_of[0]
    notices = [
        f"A replay: select={run.settings['select']} chose again between the answers recorded in {first}. "
        "Seconds and tokens are those of the run."
    ]
    if run.second:
        notices.append(f"What is called micro is the macro answer of a second run, {run.second}.")
    return [" ".join(notices)]


def incomplete(run: Run, questions: Mapping[str, int]) -> list[str]:
    """What a run lacks, in words; nothing for a complete one. questions: how many each task has."""
    notices = []
    for name, task in run.tasks.items():
        asked = task.expected if task.expected is not None else questions.get(name)
        if asked is not None and len(task.traces) < asked:
            share = 100 * len(task.traces) / asked
            notices.append(f"{name}: {len(task.traces):,} of {asked:,} samples are here ({share:.1f}%).")
            lacking = [str(doc_id) for doc_id in np.setdiff1d(np.arange(asked), task.traces.doc_ids)]
            notices.append(f"Missing: doc_id {_first(lacking)}.")
    if run.results is None and notices:
        notices.append("The run wrote no results: it was killed, still works, or was given a --limit.")
    if run.damaged:
        named = _first(run.damaged)
        notices.append(f"Lines of the traces that cannot be read: {len(run.damaged):,}, {named}.")
    return [" ".join(notices)] if notices else []


def _first(names: Sequence[str]) -> str:
    """The first few by name."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def of_samples(total: int, rows: dict[str, Any], kept: gallery.PageImages, wanted: int) -> list[str]:
    """What a reader of the samples must know: which are left out, and why images are."""
    notices = []
    listed, with_image = len(rows["id"]), sum(place >= 0 for place in rows["photo"])
    if listed < total:
        notices.append(f"{listed:,} of {total:,} samples are listed, evenly from every outcome and task.")
    if kept.problems:
        reason, _ = max(kept.problems.items(), key=lambda item: item[1])
        missing = sum(kept.problems.values())
        which = "The images are not available" if with_image == 0 else f"{missing:,} images are not available"
        notices.append(f"{which}: {reason}")
    if 0 < with_image < listed:
        notices.append(
            f"{with_image:,} samples have their image, evenly from every outcome and task; they come first"
            f"{'. More would make the page too large' if kept.full else f' (--pictures {wanted})'}."
        )
    return notices
