"""Small samples for training: coloured blocks, some with a box, some plain."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample, shard_path, write_shard


def sample_image(image: Image.Image) -> SampleImage:
    file = io.BytesIO()
    image.save(file, "PNG")
    return SampleImage(file.getvalue(), "blocks.png")


def make_sample(number: int, rng: random.Random, pixels: np.random.Generator) -> TrainingSample:
    """Every fifth sample is plain; sizes and lengths differ."""
    width, height = rng.choice([40, 64, 90]), rng.choice([30, 64, 90])
    blocks = Image.fromarray(pixels.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    image = blocks.resize((width, height), Image.Resampling.NEAREST)
    question = " ".join("what" for _ in range(rng.randint(1, 6))) + "?"
    answer = rng.choice(["yes", "no"])
    if number % 5 == 4:
        return TrainingSample(f"s{number}", sample_image(image), question, answer)
    x, y = rng.randint(0, 50) / 100, rng.randint(0, 50) / 100
    crop = image.crop((int(x * width), int(y * height), int((x + 0.4) * width), int((y + 0.4) * height)))
    return TrainingSample(
        f"s{number}", sample_image(image), question, answer, Box(x, y, x + 0.4, y + 0.4), sample_image(crop)
    )


@pytest.fixture(scope="session")
def make_samples() -> Callable[[int, int], list[TrainingSample]]:
    """(how many, seed) -> samples."""

    def make(count: int, seed: int = 0) -> list[TrainingSample]:
        rng, pixels = random.Random(seed), np.random.default_rng(seed)
        return [make_sample(number, rng, pixels) for number in range(count)]

    return make


@pytest.fixture(scope="session")
def sample_folders(tmp_path_factory: pytest.TempPathFactory, make_samples) -> tuple[Path, Path]:
    """80 samples to train on, 12 held out."""
    root = tmp_path_factory.mktemp("samples")
    for name, samples in {"train": make_samples(80), "held_out": make_samples(12, 1)}.items():
        (root / name).mkdir()
        write_shard(samples, shard_path(root / name, 0))
    return root / "train", root / "held_out"


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint with random weights."""
    from dualfocus_lmms.models.tiny.llava import save_tiny

    return save_tiny(tmp_path_factory.mktemp("untrained"))
