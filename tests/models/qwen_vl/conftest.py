"""A tiny Qwen-VL with random weights, in files laid out as the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_qwen_vl


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: config.json, generation_config.json, tokenizer_config.json, qwen.tiktoken, weights."""
    return tiny_qwen_vl.save(tmp_path_factory.mktemp("qwen_vl"))


@pytest.fixture(scope="session")
def qwen(published: Path) -> Any:
    """The folder as a loaded checkpoint, in evaluation mode."""
    return tiny_qwen_vl.load(published)


@pytest.fixture(scope="session")
def load_folder() -> Any:
    """See `tiny_qwen_vl.load`."""
    return tiny_qwen_vl.load
