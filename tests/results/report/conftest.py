"""What the tests of the report share: runs on drawn scenes with known outcomes, made without a model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from report_page import write_page

from dualfocus_lmms import Answer, Selection, Trace
from dualfocus_lmms.boxes import Box
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.integrity import write_data
from dualfocus_lmms.tasks.nano.docs import PAIR_SCENES, TINY_SCENES, image, layout_questions, questions
from dualfocus_lmms.trace import TraceWriter, claim_folder
from dualfocus_lmms.types import Usage
from dualfocus_lmms.zoom import paper_rectangle

SETTINGS = {
    "pretrained": "scripted",
    "protocol": "paper",
    "select": "ppl",
    "box_shift": 0,
    "skip_confidence": 1.0,
}


@dataclass(frozen=True)
class Script:
    """What a sample does. ppl: of macro and micro; micro_right None: no second look, for the reason given.

    shift: of the box from the annotated one, in fractions of the image.
    """

    macro_right: bool
    micro_right: bool | None
    ppl: tuple[float, float] = (1.5, 1.2)
    shift: float = 0.0
    fallback: str = "no_box"


def make_trace(task: str, doc_id: int, doc: dict[str, Any], script: Script, drawn: bool) -> Trace:
    """The trace of a drawn scene's question; its image's hash is right only where it is `drawn`."""
    answer, size = doc["answers"][0], (512, 512)
    first = _answer("macro", answer if script.macro_right else "none", script.ppl[0], 0.02, 190)
    box = crop = second = None
    if script.micro_right is not None:
        box = tuple(round(value + script.shift, 3) for value in doc["box"])
        crop = paper_rectangle(Box(*box), size, 0)
        second = _answer("micro", answer if script.micro_right else "never", script.ppl[1], 0.03, 210)
    chosen = first if second is None or script.ppl[0] < script.ppl[1] else second
    margin = None if second is None else math.log(script.ppl[1] / script.ppl[0])
    return Trace(
        key={"task": task, "split": "test", "doc_id": doc_id},
        question_id=f"{task}/test/{doc_id}",
        prompts={"macro": f"{doc['question']}\nAnswer the question using a single word or phrase."},
        image_size=size,
        image_hash=image_hash(image(doc)[0]) if drawn else "unknown",
        selection=Selection(chosen.pathway, chosen.text, "ppl", margin),
        macro=first,
        locate=None if second is None else _answer("locate", str(box), 1.1, 0.04, 60),
        micro=second,
        box=box,
        crop=crop,
        fallback=script.fallback if second is None else None,
        ppl={"macro": script.ppl[0]} | ({} if second is None else {"micro": script.ppl[1]}),
    )


def _answer(stage: str, text: str, ppl: float, seconds: float, tokens: int) -> Answer:
    usage = Usage(tokens=tokens, encodes=int(stage != "locate"), seconds=seconds)
    return Answer(stage, text, (1,), (-math.log(ppl),), ended=False, usage=usage)  # type: ignore[arg-type]


def random_script(chance: random.Random, kind: str) -> Script:
    """A model that is better at the whole from the whole image and at details from the region."""
    if chance.random() < 0.06:
        return Script(chance.random() < 0.6, None, (1 + chance.expovariate(2), 1.0))
    shift = chance.gauss(0, 0.03)
    good = {"detail": (0.3, 0.9), "exist": (0.8, 0.85), "global": (0.8, 0.5)}[kind]
    macro, micro = chance.random() < good[0], chance.random() < good[1] - 4 * abs(shift)
    ppl = tuple(1 + chance.expovariate(9 if right else 2) for right in (macro, micro))
    return Script(macro, micro, ppl, shift)  # type: ignore[arg-type]


BOTH_RIGHT, BOTH_WRONG = Script(True, True), Script(False, False)
RESCUED, KEPT = Script(False, True), Script(True, False, ppl=(1.1, 1.3))
NO_BOX = Script(True, None)


@pytest.fixture(scope="session")
def nano_scripts() -> dict[str, list[Script]]:
    """Ten details, seven of them rescued, and ten questions for what is there, one of them without a box."""
    return {
        "detail": [RESCUED, KEPT, BOTH_RIGHT, *[RESCUED] * 6, BOTH_WRONG],
        "exist": [RESCUED, NO_BOX, BOTH_WRONG, RESCUED, *[BOTH_RIGHT] * 6],
    }


@pytest.fixture(scope="session")
def random_scripts() -> Callable[[random.Random, str, int], list[Script]]:
    return lambda chance, kind, number: [random_script(chance, kind) for _ in range(number)]


@pytest.fixture(scope="session")
def write_nano() -> Callable[..., Path]:
    return write_nano_run


def write_nano_run(
    folder: Path,
    scripts: dict[str, Sequence[Script]],
    drawn: bool = False,
    settings: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """A run on the first questions of df_nano_detail, of df_nano_tiny and so on, by kind; a script for each.

    A run that is not finished leaves nothing but traces.
    """
    claim_folder(folder / "traces", SETTINGS | (settings or {}), False)
    writer = TraceWriter(folder / "traces")
    documents = {}
    for kind, scripted in scripts.items():
        task, docs = f"df_nano_{kind}", documents_of(kind)
        writer.write(make_trace(task, n, docs[n], script, drawn) for n, script in enumerate(scripted))
        documents[f"{task}/test"] = docs
    writer.close()
    if finished:
        write_data(folder / "traces", documents)
        sizes = {
            f"df_nano_{kind}": {
                "original": len(documents[f"df_nano_{kind}/test"]),
                "effective": len(scripted),
            }
            for kind, scripted in scripts.items()
        }
        results = {"n-samples": sizes, "configs": {}, "config": {}, "date": "20261122_000000"}
        (folder / "20261122_000000_results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def documents_of(kind: str) -> list[dict[str, Any]]:
    layouts: Any = {"pairs_near": ("near", PAIR_SCENES), "tiny": ("tiny", TINY_SCENES)}
    return layout_questions("test", *layouts[kind]) if kind in layouts else questions("test", kind)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs with many samples."""
    return write_page(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
