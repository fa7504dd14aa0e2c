"""Tiny real models, made once a session, and ragged questions to ask them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms import Limits, Question


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Any:
    """The tiny checkpoint, loaded in float32 on the CPU."""
    from dualfocus_lmms.models.loading import load_checkpoint

    return load_checkpoint(str(tiny_checkpoint), device="cpu")


@pytest.fixture
def engine(checkpoint: Any) -> Callable[[str], Any]:
    """A fresh engine by name, with its counters at zero."""
    from dualfocus_lmms.models.engines import make_engine

    return lambda name: make_engine(name, checkpoint)


def patchwork(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A picture of a few coloured blocks, so that crops of it differ from it and from each other."""
    blocks = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def ragged() -> Callable[[int], tuple[list[Question], list[Limits]]]:
    """n questions of differing lengths about pictures of differing shapes, 1 pixel wide ones among them."""

    def make(count: int, seed: int = 0) -> tuple[list[Question], list[Limits]]:
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
            limits.append(Limits(rng.randint(1, 12), stops))
        return questions, limits

    return make
