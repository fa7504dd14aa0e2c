"""Tiny real models, made once a session, ragged questions to ask them, and data for runs of the host."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms import Question, StopCriteria


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Any:
    """The tiny checkpoint, loaded in float32 on the CPU."""
    from dualfocus_lmms.models.checkpoint.loading import load_checkpoint

    return load_checkpoint(str(tiny_checkpoint), device="cpu")


@pytest.fixture
def engine(checkpoint: Any) -> Callable[[str], Any]:
    """A fresh engine by name, with its counters at zero."""
    from dualfocus_lmms.models.engines.registry import make_engine

    return lambda name: make_engine(name, checkpoint)


def patchwork(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An image of a few coloured blocks, so that crops of it differ from it and from each other."""
    blocks = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def ragged() -> Callable[[int], tuple[list[Question], list[StopCriteria]]]:
    """n questions of differing lengths about images of differing shapes, 1 pixel wide ones among them."""

    def make(count: int, seed: int = 0) -> tuple[list[Question], list[StopCriteria]]:
        rng, pixels = random.Random(seed), np.random.default_rng(seed)
        questions, limits = [], []
        for number in range(count):
            width, height = rng.choice([1, 3, 17, 40, 64, 200]), rng.choice([1, 5, 30, 64, 90, 150])
            words = " ".join("what" for _ in range(rng.randint(1, 9)))
            questions.append(
                Question(
                    id=str(number),
                    image=patchwork(pixels, width, height),
                    text=f"{words}?",
                    prompt=f"{words}?"
                    + rng.choice(["", "\nAnswer the question using a single word or phrase."]),
                    key={"task": "ragged", "split": "test", "doc_id": number, "context": ""},
                )
            )
            stops = rng.choice([(), (), ("\n\n",), ("e",), ("o",)])
            limits.append(StopCriteria(rng.randint(1, 12), stops))
        return questions, limits

    return make


# --- runs of the host --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pope_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE's files in miniature: 3 splits, 20 questions each about 4 plain images."""
    folder = tmp_path_factory.mktemp("benchmarks")
    images = folder / "pope" / "images"
    images.mkdir(parents=True)
    colors = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250), "sand": (220, 180, 90)}
    for number, (name, color) in enumerate(colors.items()):
        Image.new("RGB", (60 + 30 * number, 50), color).save(images / f"{name}.png")
    things = {"cat": "yes", "dog": "no", "tv": "yes", "car": "no", "person": "yes"}
    lines = [
        {"image": f"{name}.png", "text": f"Is there a {thing} in the image?", "label": label}
        for name in colors
        for thing, label in things.items()
    ]
    text = "".join(json.dumps({"question_id": number} | line) + "\n" for number, line in enumerate(lines))
    for split in ("random", "popular", "adversarial"):
        (folder / "pope" / f"coco_pope_{split}.json").write_text(text)
    return folder


@pytest.fixture(scope="session")
def environment(pope_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run of the host on those files has in its environment besides all that is there."""
    return {
        "DUALFOCUS_DATA": str(pope_folder),
        "LMMS_EVAL_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache")),
        "ACCELERATE_USE_CPU": "true",
    }


@pytest.fixture
def run(
    run_command: Callable[..., Any], environment: dict[str, str], tiny_checkpoint: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`dualfocus eval ARGUMENT... --model_args pretrained=<tiny checkpoint>,...` in this process."""

    def start(*arguments: str, model_args: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        pretrained = [] if "pretrained=" in model_args else [f"pretrained={tiny_checkpoint}"]
        given = ",".join([*pretrained, *([model_args] if model_args else [])])
        return run_command(
            "dualfocus", "eval", *arguments, "--model_args", given, env=environment | variables
        )

    return start
