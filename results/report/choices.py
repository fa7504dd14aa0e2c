"""What other choices between recorded answers of df_nano give: fitted rules, and two prompts of one model.

    python -m dualfocus_lmms.results.report.choices RUN... [--select NAME]... [--second RUN]...
        [--json FILE] [--page docs/nano.md]

--select: as the model argument, such as calibrated:FILE; it is compared with eq. 8 on the questions of each
run. --second: a run of the first run's questions with another prompt. Of both macro answers the one with the
lower perplexity counts, as in the paper's table 8; it is compared with the first run's macro answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from loguru import logger

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.calibrated import CalibratedRule
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.results.outcomes import outcomes
from dualfocus_lmms.results.report import by_question
from dualfocus_lmms.results.report.claims import Row, answers, gain_text, markdown, publish
from dualfocus_lmms.results.report.tables import RIGHT
from dualfocus_lmms.results.runs import Run, load_run
from dualfocus_lmms.selection import select
from dualfocus_lmms.settings import Settings

GLOBAL = ("count", "relation")


def by_rule(run: Run, samples: pd.DataFrame, name: str) -> pd.Series:
    """The score of each sample where the rule called `name` chooses. samples: see `claims.answers`.

    UserError where the rule compares what only a model can give, or was fitted on these questions.
    """
    settings = Settings.of(select=name, count_eos=bool(run.settings.get("count_eos", False)))
    rule = settings.rule
    if isinstance(rule, JointRule):
        raise UserError(f"select={name} scores both answers again: run it with a model.")
    if isinstance(rule, CalibratedRule):
        asked = {(task.task, task.split): str(task.data.get(FINGERPRINT)) for task in run.tasks.values()}
        rule.check_unseen(name, asked)
    traces = {(task.task, one.doc_id): one.trace for task in run.tasks.values() for one in task.samples}
    chosen = []
    for row in samples.itertuples():
        trace = traces[row.task, row.doc_id]
        box = None if trace.box is None else Box(*trace.box)
        chosen.append(select(name, rule, trace.macro, trace.micro, settings.count_eos, None, box).pathway)
    return samples["macro"].where(np.array(chosen) == "macro", samples["micro"])


def by_second(run: Run, samples: pd.DataFrame, second: Run) -> pd.DataFrame:
    """The samples with the second run's macro answers: `other`, their score, and `lower`, the score of the
    answer with the lower perplexity; the second run's where both are equal, as a replay chooses.

    Its tasks may have other names. UserError where it lacks a question.
    """
    parts = []
    for name, task in run.tasks.items():
        asked = task.data.get(FINGERPRINT)
        same = [one for one in second.tasks.values() if asked and one.data.get(FINGERPRINT) == asked]
        if len(same) != 1:
            raise UserError(
                f"{len(same)} tasks of the run {second.name} have the questions of {name}: give a run that "
                "has ended, of the same questions."
            )
        table = outcomes(same[0]).table[["doc_id", "macro", "nll_macro"]]
        parts.append(table.rename(columns={"macro": "other", "nll_macro": "nll_other"}).assign(task=name))
    both = samples.merge(pd.concat(parts), on=["task", "doc_id"], how="left")
    if both["other"].isna().any():
        missing = int(both["other"].isna().sum())
        raise UserError(f"The run {second.name} lacks {missing} of {len(both)} questions: finish it.")
    return both.assign(lower=both["macro"].where(both["nll_macro"] < both["nll_other"], both["other"]))


def by_kind(samples: pd.DataFrame, now: pd.Series, before: pd.Series) -> dict[str, Row]:
    """For each kind of question and for all: both scores, and the paired difference `now` - `before`."""
    kinds = samples["kind"].where(~samples["kind"].isin(GLOBAL), "global")
    parts = {str(kind): (kinds == kind).to_numpy() for kind in kinds.unique()}
    parts["all"] = np.ones(len(samples), dtype=bool)
    return {kind: _difference(samples[some], now[some], before[some]) for kind, some in parts.items()}


def _difference(samples: pd.DataFrame, now: pd.Series, before: pd.Series) -> Row:
    groups = by_question.questions(samples)
    low, high = by_question.interval(now, before, groups)
    right, was_right = now >= RIGHT, before >= RIGHT
    return {
        "n": len(samples),
        "before": float(before.mean()),
        "now": float(now.mean()),
        "value": float((now - before).mean()),
        "low": low,
        "high": high,
        "gained": int((right & ~was_right).sum()),
        "lost": int((was_right & ~right).sum()),
        "p": by_question.p_value(right, was_right, groups),
    }


def rules_of(folder: Path, rules: Sequence[str]) -> dict[str, dict[str, dict[str, Row]]]:
    """What each rule gives on a run's questions, by its name, of a file the last part: against eq. 8 and
    against macro alone."""
    run, samples = load_run(folder), answers(folder)
    others = {"against eq. 8": by_rule(run, samples, "ppl"), "against macro": samples["macro"]}
    found = {}
    for name in rules:
        scores = by_rule(run, samples, name)
        label = f"{name.partition(':')[0]}:{Path(name).name}" if ":" in name else name
        found[label] = {other: by_kind(samples, scores, before) for other, before in others.items()}
    return found


def prompts_of(folder: Path, second: Path) -> dict[str, dict[str, Row]]:
    """What the second run's macro answers give, those of lower perplexity, and DualFocus (eq. 8), against the
    run's own macro answers."""
    run = load_run(folder)
    both = by_second(run, answers(folder), load_run(second))
    ways = {
        "second": both["other"],
        "lower perplexity": both["lower"],
        "DualFocus": by_rule(run, both, "ppl"),
    }
    return {way: by_kind(both, scores, both["macro"]) for way, scores in ways.items()}


def written(found: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    parts = []
    rows = [
        [
            *(run, name, kind, f"{row['n']:,}", f"{row['before']:.1f}", f"{row['now']:.1f}"),
            *(gain_text(row), gain_text(gains["against macro"][kind])),
        ]
        for run, rules in found["rules"].items()
        for name, gains in rules.items()
        for kind, row in gains["against eq. 8"].items()
    ]
    if rows:
        names = ["run", "select", "questions", "n", "eq. 8", "score", "score - eq. 8", "score - macro"]
        parts.append(markdown(rows, names))
    if found["prompts"]:
        rows = [
            [name, kind, f"{row['n']:,}", f"{row['before']:.1f}"]
            + [f"{kinds[way][kind]['now']:.1f}" for way in ("second", "lower perplexity", "DualFocus")]
            + [gain_text(kinds["lower perplexity"][kind])]
            for name, kinds in found["prompts"].items()
            for kind, row in kinds["second"].items()
        ]
        names = ["second prompt", "questions", "n", "first", "second", "lower perplexity", "DualFocus"]
        parts.append(markdown(rows, [*names, "lower perplexity - first"]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="--output_path of dualfocus eval")
    parser.add_argument("--select", action="append", default=[], help="a rule, such as calibrated:FILE")
    parser.add_argument("--second", type=Path, action="append", default=[], help="a run with another prompt")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--page", type=Path, help="a page whose tables are rewritten")
    arguments = parser.parse_args()
    logger.remove()  # the host's own command line does the same
    logger.add(sys.stderr, level="WARNING")
    found = {
        "rules": {path.name: rules_of(path, arguments.select) for path in arguments.runs},
        "prompts": {path.name: prompts_of(arguments.runs[0], path) for path in arguments.second},
    }
    publish(found, written(found), "choices", arguments.json, arguments.page)


if __name__ == "__main__":
    main()
