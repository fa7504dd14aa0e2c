"""Questions that the tests of families ask."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms import Box, Question, StopCriteria


@pytest.fixture
def asked() -> tuple[list[Question], list[StopCriteria]]:
    """Ragged questions with boxes about images of many shapes."""
    rng, pixels = random.Random(0), np.random.default_rng(0)
    questions, limits = [], []
    for number in range(10):
        size = (rng.choice([30, 64, 90, 200]), rng.choice([30, 64, 100, 150]))
        blocks = Image.fromarray(pixels.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        xs, ys = sorted(rng.uniform(0, 1) for _ in range(2)), sorted(rng.uniform(0, 1) for _ in range(2))
        text = " ".join("what" for _ in range(rng.randint(1, 9))) + "?"
        questions.append(
            Question(
                id=str(number),
                image=blocks.resize(size, Image.Resampling.NEAREST),
                text=text,
                prompt=text + rng.choice(["", "\nAnswer the question using a single word or phrase."]),
                box=Box(xs[0], ys[0], xs[1], ys[1]),
            )
        )
        limits.append(StopCriteria(rng.randint(1, 8)))
    return questions, limits
