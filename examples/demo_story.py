"""The last lines of `make demo`: which pathway wins on each kind of question, and one of each as a picture.

    python examples/demo_story.py FOLDER

reads FOLDER/report and FOLDER/traces, which `dualfocus report` and `dualfocus eval` wrote for df_nano, and
draws FOLDER/detail.png, FOLDER/exist.png and FOLDER/global.png. No model is needed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dualfocus_lmms import read_traces
from dualfocus_lmms.results.report.by_question import p_value
from dualfocus_lmms.scenes import Kind
from dualfocus_lmms.tasks.nano.docs import image, questions
from dualfocus_lmms.visualize import draw, save

SURE = 0.05  # p below which one pathway wins


@dataclass(frozen=True)
class Part:
    """One kind of questions. title: what it asks. reasons: why macro, micro or neither of them wins."""

    kind: Kind
    title: str
    reasons: dict[str, str]


PARTS = [
    Part("detail", "a small digit", {"micro": "only the crop shows it large enough to be read"}),
    Part("exist", "is there a ...?", {"neither": "colour and shape are plain in the whole image, too"}),
    Part("global", "counts, relations", {"macro": "the whole image shows all there is to count and compare"}),
]


def line(part: Part, samples: pd.DataFrame) -> str:
    """Accuracies in percent, how often the one pathway that was correct was chosen, and who wins."""
    right = {name: samples[name] > 50 for name in ("macro", "micro", "selected")}
    figures = "  ".join(f"{name} {100 * some.mean():3.0f}" for name, some in right.items())
    one = right["macro"] != right["micro"]
    winner = "neither"
    if p_value(right["macro"], right["micro"], np.arange(len(samples))) < SURE:
        winner = "macro" if right["macro"].sum() > right["micro"].sum() else "micro"
    reason = f": {part.reasons[winner]}" if winner in part.reasons else ""
    chosen = f"({right['selected'][one].sum()} of {one.sum()})"
    return f"{part.title:<17}  {figures} {chosen:<10}  {winner} wins{reason}"


def example(samples: pd.DataFrame) -> int:
    """The doc_id of the question that is shown: the pathway that is more often correct is so alone, and is
    chosen by the widest margin; the first question where there is none."""
    macro, micro = samples["macro"] > 50, samples["micro"] > 50
    better = (micro & ~macro) if micro.sum() > macro.sum() else (macro & ~micro)
    shown = samples[better & (samples["selected"] > 50)]
    margins = (shown["nll_macro"] - shown["nll_micro"]).abs()
    return int(shown.loc[margins.idxmax(), "doc_id"] if len(shown) else samples["doc_id"].iloc[0])


def picture(folder: Path, kind: Kind, doc_id: int) -> Path:
    """Draw a question of the run, and return the file."""
    task = f"df_nano_{kind}"
    traces, _ = read_traces(folder / "traces")
    trace = next(one for one in traces if (one.key["task"], one.key["doc_id"]) == (task, doc_id))
    (scene,) = image(questions("test", kind)[doc_id])
    path = folder / f"{kind}.png"
    save(draw(scene, trace), path)
    return path


def main(folder: Path) -> None:
    table = pd.read_csv(folder / "report" / "samples.csv")
    table["micro"] = table["micro"].fillna(table["macro"])
    paths = []
    for part in PARTS:
        samples = table[table["task"] == f"df_nano_{part.kind}"]
        print(line(part, samples))
        paths.append(picture(folder, part.kind, example(samples)))
    print("One of each as a picture:", ", ".join(map(str, paths)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
