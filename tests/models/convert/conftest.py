"""Checkpoints in LLaVA's original format, made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from original_llava import SETTINGS, Original, save_shards, save_words


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model of Llama's kind with a vocabulary of its own."""
    return save_words(tmp_path_factory.mktemp("words") / "tokenizer.model")


@pytest.fixture(scope="session")
def original() -> Original:
    return Original()


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, words: Path, original: Original) -> Make:
    """Write a checkpoint in the original format and return its folder."""

    def make(form: str = "bin", shards: int = 2, tower: bool = True, **changed: Any) -> Path:
        folder = tmp_path / f"original-{form}-{shards}-{tower}"
        folder.mkdir()
        state = changed.pop("state", None) or original.weights(tower)
        llama = original.language.config.to_dict() | {"rope_theta": 10000.0}
        (folder / "config.json").write_text(json.dumps(llama | SETTINGS | changed))
        shutil.copy(words, folder)
        save_shards(folder, form, shards, state)
        return folder

    return make


@pytest.fixture
def own_tower(tmp_path: Path, original: Original) -> str:
    """A folder with nothing but the settings of the tower inside the tiny checkpoints."""
    folder = tmp_path / "tower-settings"
    original.tower.config.save_pretrained(folder)
    return str(folder)
