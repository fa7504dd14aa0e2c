"""The figures of the small model's card, from the traces of finished runs on df_nano.

    dualfocus eval --model_args pretrained=CHECKPOINT,trace=TRACES --tasks df_nano --batch_size 32
    python -m dualfocus_lmms.tasks.nano_measure TRACES ... [--json FILE --hardware TEXT] [--partial]

Give several folders, of other training seeds for example, and each has its tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dualfocus_lmms._version import __version__
from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.scenes import Kind
from dualfocus_lmms.tasks.nano_docs import questions
from dualfocus_lmms.tasks.scoring import is_accepted
from dualfocus_lmms.tasks.statistics import mcnemar, wilson_interval
from dualfocus_lmms.trace import Trace, read_traces

KINDS: tuple[Kind, ...] = ("detail", "exist", "global")
WAYS = ("macro", "micro", "selected", "oracle")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question: what was right, and how well the region fits the true one (0 where none was given)."""

    kind: str
    macro: bool
    micro: bool
    selected: bool
    iou: float

    @property
    def oracle(self) -> bool:
        return self.macro or self.micro


def outcomes(folder: str | Path, partial: bool = False) -> list[Outcome]:
    """The outcomes of the questions of df_nano, by the traces in a folder.

    UserError when some are missing, unless `partial`, or all.
    """
    traces, _ = read_traces(folder)
    found = {(trace.key["task"], trace.key["doc_id"]): trace for trace in traces}
    asked = {
        (f"df_nano_{kind}", number): (kind, doc)
        for kind in KINDS
        for number, doc in enumerate(questions("test", kind))
    }
    missing = len(asked) - len(asked.keys() & found.keys())
    if missing == len(asked) or (missing and not partial):
        raise UserError(
            f"{str(folder)!r} lacks {missing} of the {len(asked)} questions of df_nano: finish its run."
        )
    return [_outcome(*asked[key], found[key]) for key in asked if key in found]


def _outcome(kind: str, doc: dict[str, Any], trace: Trace) -> Outcome:
    def right(text: str) -> bool:
        return is_accepted(text, doc["answers"])

    return Outcome(
        kind=kind,
        macro=right(trace.macro.text),
        micro=trace.micro is not None and right(trace.micro.text),
        selected=right(trace.selection.text),
        iou=0.0 if trace.box is None else Box(*trace.box).clip().iou(Box(*doc["box"])),
    )


def accuracy(rows: Sequence[Outcome]) -> dict[str, Any]:
    """Of one set of questions: n, each way's accuracy with its 95% interval (Wilson), all in percent, and the
    boxes' mean IoU and share above 0.5."""
    figures: dict[str, Any] = {"n": len(rows)}
    for way in WAYS:
        hits = sum(getattr(row, way) for row in rows)
        interval = wilson_interval(hits, len(rows))
        figures[way] = [round(value, 2) for value in (100 * hits / len(rows), *interval)]
    figures["iou"] = round(sum(row.iou for row in rows) / len(rows), 4)
    figures["iou_half"] = round(100 * sum(row.iou > 0.5 for row in rows) / len(rows), 2)
    return figures


def against(rows: Sequence[Outcome], way: str) -> dict[str, float]:
    """Selected answers against those of one pathway: how many each alone has right, and McNemar's exact p."""
    chosen, other = [row.selected for row in rows], [getattr(row, way) for row in rows]
    pairs = list(zip(chosen, other, strict=True))
    return {
        "only_selected": pairs.count((True, False)),
        f"only_{way}": pairs.count((False, True)),
        "p": mcnemar(chosen, other),
    }


def measure(folder: str | Path, partial: bool = False) -> dict[str, Any]:
    """All figures of one run."""
    rows = outcomes(folder, partial)
    parts = {kind: [row for row in rows if row.kind == kind] for kind in KINDS} | {"all": rows}
    return {
        "accuracy": {name: accuracy(part) for name, part in parts.items() if part},
        "tests": {way: against(rows, way) for way in ("macro", "micro")},
    }


def tables(figures: dict[str, Any]) -> str:
    """The figures of one run as Markdown."""
    lines = [
        [name, part["n"], *(_interval(part[way]) for way in WAYS), part["iou"], part["iou_half"]]
        for name, part in figures["accuracy"].items()
    ]
    first = tabulate(lines, ["questions", "n", *WAYS, "box IoU", "IoU > 0.5, %"], tablefmt="github")
    tests = [[f"selected against {way}", *values.values()] for way, values in figures["tests"].items()]
    heads = ["", "only selected right", "only the other right", "McNemar's exact p"]
    return f"{first}\n\n{tabulate(tests, heads, tablefmt='github', floatfmt='.2g')}"


def _interval(values: Iterable[float]) -> str:
    share, low, high = values
    return f"{share:.1f} ({low:.1f}-{high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", nargs="+")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    parser.add_argument("--hardware", help="on what it ran, for the file")
    parser.add_argument("--partial", action="store_true", help="also of a run with --limit")
    given = parser.parse_args()
    measured = {folder: measure(folder, given.partial) for folder in given.traces}
    for folder, figures in measured.items():
        print(f"{folder}\n\n{tables(figures)}\n")
    if given.json:
        about = {"date": date.today().isoformat(), "hardware": given.hardware, "version": __version__}
        given.json.write_text(json.dumps(about | {"runs": measured}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
