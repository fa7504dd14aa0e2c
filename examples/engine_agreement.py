"""Whether every engine replies as the plain one, on this machine and in this precision, on drawn scenes.

    python examples/engine_agreement.py --device cuda --dtype bfloat16 --out agreement.json

In float32 all tokens must be the same and log-probabilities within 1e-4; exit code 1 where they are not. In
half precision sums are rounded differently by batches of different shapes, and a token differs where the two
best were about equally likely: the margin says how close they were.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from tabulate import tabulate

from dualfocus_lmms import Question, Settings, StopCriteria, answer_batch
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint
from dualfocus_lmms.models.engines.registry import ENGINES, make_engine
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.scenes import make_scenes
from dualfocus_lmms.trace import Trace

TOLERANCE = 1e-4  # nats, float32


@dataclass(frozen=True)
class Agreement:
    """One engine against the plain one: how many replies have the same tokens, how many questions the same
    final answer. A micro answer counts where the box is the same: else the crops differ.

    margin: the largest difference, in nats, of the two engines' log-probabilities of their own choice where
    tokens first differ. gap: the largest difference of log-probabilities among replies with the same tokens.
    """

    engine: str
    replies: int
    same_tokens: int
    same_text: int
    questions: int
    margin: float
    gap: float


def scene_questions(count: int) -> list[Question]:
    """Questions of every kind about drawn scenes."""
    found = (
        Question(f"{scene.name}-{number}", image, question.question, f"{question.question}\n{SHORT_ANSWER}")
        for scene in make_scenes("validation", 0, count)
        for image in [scene.image()]
        for number, question in enumerate(scene.questions)
    )
    return list(islice(found, count))


def compare(name: str, own: Sequence[Trace], plain: Sequence[Trace]) -> Agreement:
    """How far the traces of the same questions agree."""
    pairs = [
        (answer, known[answer.pathway])
        for one, other in zip(own, plain, strict=True)
        for known in [{answer.pathway: answer for answer in other.answers}]
        for answer in one.answers
        if answer.pathway in known and (answer.pathway != "micro" or one.box == other.box)
    ]
    same = [(one, other) for one, other in pairs if one.tokens == other.tokens]
    margins = [0.0]
    for one, other in pairs:
        if one.tokens != other.tokens:
            both = zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False)
            margins += [abs(a - b) for left, right, a, b in both if left != right][:1]
    gaps = [abs(a - b) for one, other in same for a, b in zip(one.logprobs, other.logprobs, strict=True)]
    choices = sum(one.selection.text == other.selection.text for one, other in zip(own, plain, strict=True))
    return Agreement(name, len(pairs), len(same), choices, len(own), max(margins), max(gaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pretrained", default="dualfocus-nano")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.pretrained, None, args.dtype, args.device)
    questions = scene_questions(args.questions)

    def traces(name: str, cuda_graphs: bool = False) -> list[Trace]:
        engine, found = make_engine(name, checkpoint, cuda_graphs), []
        for start in range(0, len(questions), args.batch_size):
            batch = questions[start : start + args.batch_size]
            found += answer_batch(engine, batch, [StopCriteria(16)] * len(batch), Settings.of())
        return found

    plain = traces("naive")
    rows = [compare(name, traces(name), plain) for name in ENGINES if name != "naive"]
    if checkpoint.device.type == "cuda":
        rows.append(compare("tree + CUDA graphs", traces("tree", cuda_graphs=True), plain))
    print(f"{args.pretrained}, {args.dtype}, {checkpoint.device}, torch {torch.__version__}")
    print(tabulate([asdict(row) for row in rows], headers="keys", tablefmt="github", floatfmt=".2g"))
    if args.out:
        args.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if checkpoint.model.dtype == torch.float32:
        raise SystemExit(any(row.same_tokens < row.replies or row.gap > TOLERANCE for row in rows))


if __name__ == "__main__":
    main()
