"""The paper's claims in a small model's own figures, from runs of df_nano with traces.

    python -m dualfocus_lmms.results.report.claims RUN... [--json FILE] [--page docs/nano.md]

The first run is the one that the others are compared with. Counts and relations stand apart here, which the
task has in one. Near misses: questions about existence whose answer is no and whose colour or shape is in
the scene.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.results.outcomes import outcomes
from dualfocus_lmms.results.report import by_question
from dualfocus_lmms.results.report.comparison import against
from dualfocus_lmms.results.report.tables import (
    RIGHT,
    WAYS,
    adaptive_curve,
    auroc,
    micro_scores,
)
from dualfocus_lmms.results.runs import load_run
from dualfocus_lmms.scene_layouts import scene_named
from dualfocus_lmms.tasks.common.scoring import Pair, counts, f1, f1_of
from dualfocus_lmms.tasks.common.uncertainty import paired_bootstrap_error

SKIPPED = 58  # percent of second looks, in the paper's table 9
Row = dict[str, Any]


def answers(folder: Path) -> pd.DataFrame:
    """One row a question of a run: `outcomes.Outcomes.table`, `task`, `kind`, and `near`, whether it names a
    near miss."""
    parts = []
    for name, task in load_run(folder).tasks.items():
        outcome = outcomes(task)
        kind = name.rsplit("_", 1)[-1]
        near = [kind == "exist" and is_near_miss(doc) for doc in outcome.docs]
        parts.append(outcome.table.assign(task=name, kind=kind, near=near))
    samples = pd.concat(parts, ignore_index=True)
    whole, counting = samples["kind"] == "global", samples["question"].str.startswith("How many")
    samples.loc[whole, "kind"] = np.where(counting[whole], "count", "relation")
    return samples.assign(micro=micro_scores(samples))


def is_near_miss(doc: Mapping[str, Any]) -> bool:
    """Whether a document of df_nano_exist names what is not there, in a colour or a shape that is."""
    color, shape = doc["question"].removeprefix("Is there a ").split()[:2]
    things = scene_named(doc["image"]).things
    return doc["answers"] == ["no"] and any(color == one.color or shape == one.shape for one in things)


# --- figures -----------------------------------------------------------------------------------------------


def figures(samples: pd.DataFrame) -> Row:
    """Everything that is shown of one run. samples: see `answers`."""
    return {"kinds": by_kind(samples), "existence": existence(samples), "skipping": skipping(samples)}


def by_kind(samples: pd.DataFrame) -> dict[str, Row]:
    """For each kind of question, for counts and relations together, and for all: every pathway's accuracy
    with Wilson's interval, what the choice gains, and how well the perplexities tell who is correct."""
    parts = {str(kind): some for kind, some in samples.groupby("kind", sort=False)}
    parts["global"] = samples[samples["kind"].isin(("count", "relation"))]
    parts["all"] = samples
    return {kind: _figures_of(some) for kind, some in parts.items() if len(some)}


def _figures_of(samples: pd.DataFrame) -> Row:
    right = {way: samples[way] >= RIGHT for way in WAYS}
    contested = samples[right["macro"] != right["micro"]]
    row: Row = {"n": len(samples)}
    groups = by_question.questions(samples)
    for way in WAYS:
        low, high = by_question.share_interval(right[way], groups)
        row[way] = {"value": 100 * float(right[way].mean()), "low": low, "high": high}
    for way in ("macro", "micro"):
        low, high = by_question.interval(samples["selected"], samples[way], groups)
        row[f"against {way}"] = {
            "value": float((samples["selected"] - samples[way]).mean()),
            "low": low,
            "high": high,
            "gained": int((right["selected"] & ~right[way]).sum()),
            "lost": int((right[way] & ~right["selected"]).sum()),
            "p": by_question.p_value(right["selected"], right[way], groups),
        }
    return row | {
        "contested": len(contested),
        "contested, micro correct": int((contested["micro"] >= RIGHT).sum()),
        "AUROC": auroc(contested["nll_macro"] - contested["nll_micro"], contested["micro"] >= RIGHT),
        "IoU": float(samples["iou"].fillna(0).mean()),
        "IoU above 0.5": 100 * float((samples["iou"] > 0.5).mean()),
    }


def existence(samples: pd.DataFrame) -> dict[str, Row]:
    """F1 of "yes" about existence: of all questions, and of the near misses with all whose answer is yes, as
    in POPE's adversarial split."""
    asked = samples[samples["kind"] == "exist"]
    true = asked["answers"].map(lambda answers: answers[0] if isinstance(answers, list) else answers) == "yes"
    adversarial = true | asked["near"]
    return {"all": _f1_gain(asked, true), "near misses": _f1_gain(asked[adversarial], true[adversarial])}


def _f1_gain(asked: pd.DataFrame, true: pd.Series) -> Row:
    macro, selected = (_yes_and_no(true, asked[way] >= RIGHT) for way in ("macro", "selected"))
    error = paired_bootstrap_error(counts(selected), counts(macro), f1_of)
    before, now = f1(macro), f1(selected)
    return {"n": len(asked), "macro": before, "selected": now, "gain": now - before, "error": error}


def _yes_and_no(true: pd.Series, right: pd.Series) -> list[Pair]:
    return [
        {"label": "yes" if label else "no", "prediction": "yes" if label == correct else "no"}
        for label, correct in zip(true, right, strict=True)
    ]


def skipping(samples: pd.DataFrame) -> Row:
    """What it costs to skip the SKIPPED percent of second looks whose macro answer is the most confident."""
    threshold = float(np.quantile(samples["confidence_macro"], 1 - SKIPPED / 100))
    curve = adaptive_curve(samples.assign(seconds_macro=np.nan), [threshold])
    return {name: float(value) for name, value in curve.iloc[0].items()}


# --- tables ------------------------------------------------------------------------------------------------


def kinds_table(run: Mapping[str, Any]) -> str:
    """One run, kind by kind."""
    rows = [
        [kind, f"{row['n']:,}"]
        + [within(row[way]) for way in WAYS]
        + [
            f"{row['contested']:,}",
            f"{row['AUROC']:.1f}",
            f"{row['IoU']:.2f}",
            f"{row['IoU above 0.5']:.0f}%",
        ]
        for kind, row in run["kinds"].items()
    ]
    names = ["questions", "n", "macro", "micro", "selected", "oracle", "one correct", "AUROC"]
    return markdown(rows, [*names, "box IoU", "above 0.5"])


def claims_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The claims, one row each, and the result of every run."""
    texts = {name: _claims(run) for name, run in runs.items()}
    claims = list(next(iter(texts.values())))
    rows = [[*claim, *(found[claim] for found in texts.values())] for claim in claims]
    return markdown(rows, ["claim", "wanted", *texts])


def _claims(run: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    whole, detail, everything = (run["kinds"][kind] for kind in ("global", "detail", "all"))
    existing, near = (run["existence"][kind] for kind in ("all", "near misses"))
    return {
        ("all: selected - macro", "p < 0.01"): gain_text(everything["against macro"]),
        ("all: selected - micro", "p < 0.01"): gain_text(everything["against micro"]),
        ("counts and relations: macro", "88"): within(whole["macro"]),
        ("counts and relations: selected - macro", "above -1"): gain_text(whole["against macro"]),
        ("digits: micro", "90"): within(detail["micro"]),
        ("digits: macro", "10, chance"): within(detail["macro"]),
        ("AUROC, counts and relations", "70"): _auroc(whole),
        ("AUROC, digits", "85"): _auroc(detail),
        ("existence: F1, selected - macro", "p < 0.05"): _gain_of_f1(existing),
        ("the same, near misses", "p < 0.05"): _gain_of_f1(near),
        (f"{SKIPPED}% of second looks skipped", "-0.5"): f"{run['skipping']['score against never']:+.2f}",
    }


def regions_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Runs with other regions, against the first one on the questions of both."""
    rows = []
    for name, run in runs.items():
        row = run["kinds"]["all"]
        cells = [f"{row[way]['value']:.1f}" for way in ("macro", "micro", "selected")]
        other = run.get("against the first")
        changed = (
            f"{other['difference']:+.2f} ({other['low']:+.2f} to {other['high']:+.2f})" if other else "-"
        )
        rows.append([name, f"{row['n']:,}", *cells, changed])
    return markdown(rows, ["run", "n", "macro", "micro", "selected", "selected, against the first"])


def within(share: Mapping[str, float]) -> str:
    """A share in percent with its interval: "93.1 (91.7-94.2)"."""
    return f"{share['value']:.1f} ({share['low']:.1f}-{share['high']:.1f})"


def gain_text(gain: Mapping[str, Any]) -> str:
    within = f"({gain['low']:+.2f} to {gain['high']:+.2f})"
    p = f"p = {gain['p']:.2g}" if gain["p"] > 0 else "p < 1e-300"
    return f"{gain['value']:+.2f} {within}, {gain['gained']:,} : {gain['lost']:,}, {p}"


def _gain_of_f1(row: Mapping[str, float]) -> str:
    low, high = (row["gain"] + side * 1.96 * row["error"] for side in (-1, 1))
    return f"{row['macro']:.2f} to {row['selected']:.2f}, {row['gain']:+.2f} ({low:+.2f} to {high:+.2f})"


def _auroc(row: Mapping[str, Any]) -> str:
    return f"{row['AUROC']:.1f} (micro correct in {row['contested, micro correct']} of {row['contested']})"


def markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def written(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables of runs with the figures of `figures`, as Markdown."""
    first = next(iter(runs.values()))
    own = {name: run for name, run in runs.items() if run["settings"] == first["settings"]}
    others = {name: run for name, run in runs.items() if name not in own or run is first}
    parts = [kinds_table(first), claims_table(own)]
    if len(others) > 1:
        parts.append(regions_table(others))
    return "\n\n".join(parts) + "\n"


# --- the command -------------------------------------------------------------------------------------------


def found_in(folders: Sequence[Path]) -> dict[str, Row]:
    """The figures of every run, by its folder's name. settings: what decides the region."""
    samples = {folder.name: answers(folder) for folder in folders}
    first = next(iter(samples.values()))
    runs = {}
    for folder, some in zip(folders, samples.values(), strict=True):
        settings = load_run(folder).settings
        regions = {name: settings.get(name) for name in ("grounding", "box_shift", "pathway")}
        other = {} if some is first else {"against the first": against(some, first)}
        runs[folder.name] = {"settings": regions, **figures(some), **other}
    return runs


def publish(found: Mapping[str, Any], text: str, mark: str, to_json: Path | None, page: Path | None) -> None:
    """Print tables, and where these are given write the figures to a file and the tables into a page: between
    `<!-- mark -->` and `<!-- end -->`."""
    print(text)
    if to_json is not None:
        atomic_write(to_json, json.dumps(found, indent=1) + "\n")
    if page is not None:
        old = re.compile(rf"(?<=<!-- {mark} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        atomic_write(page, old.sub(lambda _: text, page.read_text(encoding="utf-8"), count=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="--output_path of dualfocus eval")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--page", type=Path, help="a page whose tables are rewritten")
    arguments = parser.parse_args()
    runs = found_in(arguments.runs)
    publish(runs, written(runs), "claims", arguments.json, arguments.page)


if __name__ == "__main__":
    main()
