"""Real paperwork around random weights: each checkpoint is built and loaded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from paperwork.build import GENERIC, Built, build
from PIL import Image

from dualfocus_lmms import Question, StopCriteria
from dualfocus_lmms.models.checkpoint.loading import load_checkpoint


@pytest.fixture(scope="session")
def published(shared_data: Path) -> Path:
    """The folder of the published folders."""
    folder = shared_data / "checkpoints"
    if not folder.is_dir():
        pytest.skip(f"no paperwork of published checkpoints in {folder}")
    return folder


@pytest.fixture(scope="session")
def built(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """A checkpoint by the name of its folder."""

    @cache
    def make(name: str) -> Built:
        folder = build(published, name, tmp_path_factory.mktemp(name))
        family = "generic" if name in GENERIC else None
        return Built(name, folder, load_checkpoint(str(folder), device="cpu", family=family))

    return make


@pytest.fixture(scope="session")
def asked(noise: Callable[[int, int], Image.Image]) -> tuple[list[Question], list[StopCriteria]]:
    """Questions of different lengths about images of different shapes."""
    texts = ["What is it?", "What color is the bus?\nAnswer with one word."]
    sizes = [(300, 200), (64, 90)]
    questions = [
        Question(str(number), noise(*size), text.partition("\n")[0], text)
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True))
    ]
    return questions, [StopCriteria(limit) for limit in (5, 3)]
