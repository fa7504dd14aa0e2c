"""The examples in the package's docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import dualfocus_lmms

PACKAGE = Path(dualfocus_lmms.__file__).parent


def with_examples() -> list[str]:
    """The dotted names of the modules that contain ">>>"; links to the top-level folders are followed."""
    names = []
    for folder in (PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_symlink())):
        for file in sorted(folder.rglob("*.py")):
            if ">>>" in file.read_text(encoding="utf-8"):
                parts = file.relative_to(PACKAGE).with_suffix("").parts
                names.append(".".join(("dualfocus_lmms", *parts)).removesuffix(".__init__"))
    return sorted(set(names))


def test_the_engines_have_examples():
    engines = {f"dualfocus_lmms.models.engines.{name}" for name in ("batch_rows", "kv_cache", "drafts")}
    assert engines <= set(with_examples())


@pytest.mark.parametrize("name", with_examples())
def test_examples(name: str):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
