"""Questions about two things and about tiny ones, kind by kind, from runs of df_nano_pairs and df_nano_tiny.

python -m dualfocus_lmms.results.report.layouts RUN... [--json FILE] [--page docs/nano.md]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from loguru import logger

from dualfocus_lmms.results.outcomes import outcomes
from dualfocus_lmms.results.report.claims import Row, by_kind, markdown, publish, within
from dualfocus_lmms.results.report.tables import WAYS, micro_scores
from dualfocus_lmms.results.runs import load_run


def kinds_of(folder: Path) -> dict[str, Row]:
    """The figures of `claims.by_kind` for each layout and kind of a run's questions: "near, larger"."""
    parts = []
    for name, task in load_run(folder).tasks.items():
        outcome = outcomes(task)
        layout = name.rsplit("_", 1)[-1]
        kinds = [f"{layout}, {doc['kind']}" for doc in outcome.docs]
        parts.append(outcome.table.assign(task=name, kind=kinds))
    samples = pd.concat(parts, ignore_index=True)
    found = by_kind(samples.assign(micro=micro_scores(samples)))
    del found["all"]  # of layouts that have nothing to do with each other
    return found


def written(runs: Mapping[str, Mapping[str, Row]]) -> str:
    """The table, as Markdown."""
    rows = [
        [
            *(name, kind, f"{row['n']:,}"),
            *(within(row[way]) for way in WAYS),
            *(f"{row['IoU']:.2f}", f"{row['IoU above 0.5']:.0f}%"),
        ]
        for name, kinds in runs.items()
        for kind, row in kinds.items()
    ]
    names = ["run", "questions", "n", "macro", "micro", "selected", "oracle", "box IoU", "above 0.5"]
    return markdown(rows, names) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="--output_path of dualfocus eval")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--page", type=Path, help="a page whose table is written anew")
    arguments = parser.parse_args()
    logger.remove()  # the host's own command line does the same
    logger.add(sys.stderr, level="WARNING")
    runs = {path.name: kinds_of(path) for path in arguments.runs}
    publish(runs, written(runs), "layouts", arguments.json, arguments.page)


if __name__ == "__main__":
    main()
