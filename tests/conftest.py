"""What tests of every room use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models this small, threads only wait for each other

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the files in tests/golden anew instead of comparing",
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: $DUALFOCUS_SHARED/data, or ../shared/data beside the project."""
    shared = Path(os.environ.get("DUALFOCUS_SHARED", HERE.parent.parent / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"no real data in {shared}: set DUALFOCUS_SHARED to the folder that holds data/")
    return shared / "data"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with a file of tests/golden; `pytest --update-golden` writes the file instead."""

    def check(name: str, text: str) -> None:
        path = HERE / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        assert path.read_text(encoding="utf-8") == text

    return check


@pytest.fixture(scope="session")
def noise() -> Callable[[int, int], Image.Image]:
    """Makes a picture (width, height) of random pixels, always the same ones for a size."""

    def make(width: int, height: int) -> Image.Image:
        rng = np.random.default_rng([width, height])
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint with random weights that has learned the form of the replies (12 s, once)."""
    from dualfocus_lmms.models.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"), steps=150)
