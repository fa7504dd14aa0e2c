"""What boosted trees would choose between recorded answers of df_nano: a comparison, no rule of the package.

    python examples/boosted_choice.py VALIDATION RUN... [--json FILE] [--page docs/nano.md]

VALIDATION, RUN: --output_path of `dualfocus eval` with traces. The trees see the log-perplexities of both
answers, the share of the image that the box covers, and the log-perplexity of the box itself. They are fitted
on the questions of VALIDATION where one answer is worth more, and choose on those of each RUN.
Cross-validated: on VALIDATION, each tenth of its questions by trees that were fitted on the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from loguru import logger
from sklearn.ensemble import GradientBoostingClassifier

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.results.calibration.fit import FOLDS, fold_of
from dualfocus_lmms.results.report import by_question
from dualfocus_lmms.results.report.choices import by_kind
from dualfocus_lmms.results.report.claims import answers, gain_text, markdown, publish
from dualfocus_lmms.results.runs import load_run

SEES = ["nll_macro", "nll_micro", "area", "nll_box"]


def samples_of(folder: Path) -> pd.DataFrame:
    """`claims.answers`, with the box's area and log-perplexity; nan without a box."""
    traces = [
        {
            "task": name,
            "doc_id": one.key["doc_id"],
            "area": np.nan if one.box is None else Box(*one.box).clip().area,
            "nll_box": np.nan if one.locate is None else one.locate.nll(False),
        }
        for name, task in load_run(folder).tasks.items()
        for one in task.traces
    ]
    return answers(folder).merge(pd.DataFrame(traces), on=["task", "doc_id"])


def chosen(fitted_on: pd.DataFrame, samples: pd.DataFrame) -> pd.Series:
    """The score of each sample as trees choose that were fitted on others; macro's without a micro answer."""
    matters = fitted_on[(fitted_on["micro"] != fitted_on["macro"]) & fitted_on[SEES].notna().all(axis=1)]
    trees = GradientBoostingClassifier(n_estimators=60, max_depth=3, learning_rate=0.1, random_state=0)
    trees.fit(matters[SEES], matters["micro"] > matters["macro"])
    seen = samples[SEES].notna().all(axis=1)
    micro = pd.Series(False, index=samples.index)
    micro[seen] = trees.predict(samples.loc[seen, SEES])
    return samples["micro"].where(micro, samples["macro"])


def cross_validated(samples: pd.DataFrame) -> pd.Series:
    fold = fold_of(by_question.questions(samples), FOLDS)
    parts = [chosen(samples[fold != number], samples[fold == number]) for number in range(FOLDS)]
    return pd.concat(parts).sort_index()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("validation", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--page", type=Path, help="a page whose table is written anew")
    arguments = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    validation = samples_of(arguments.validation)
    found = {
        "validation, cross-validated": by_kind(
            validation, cross_validated(validation), validation["selected"]
        )
    }
    for folder in arguments.runs:
        samples = samples_of(folder)
        found[folder.name] = by_kind(samples, chosen(validation, samples), samples["selected"])
    rows = [
        [run, kind, f"{row['n']:,}", f"{row['before']:.1f}", f"{row['now']:.1f}", gain_text(row)]
        for run, kinds in found.items()
        for kind, row in kinds.items()
    ]
    names = ["run", "questions", "n", "eq. 8", "boosted trees", "boosted trees - eq. 8"]
    publish(found, markdown(rows, names) + "\n", "trees", arguments.json, arguments.page)


if __name__ == "__main__":
    main()
