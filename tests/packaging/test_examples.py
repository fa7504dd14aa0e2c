"""What examples and docs import is there; most of them are only run by hand."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE_DOCUMENT = re.compile(r"^(?:\S*python\S*) - .*<<'(\w+)'\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def defined(file: Path) -> set[str]:
    """The names that a module defines or imports, and those of its `__all__`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            found |= set(ast.literal_eval(node.value))
    return found


def missing(source: str, root: Path) -> list[str]:
    """What a program imports from the package and the package does not have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dualfocus_lmms":
            place = root / str(node.module).replace(".", "/")
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            for name in [alias.name for alias in node.names]:
                submodule = (place / name).is_dir() or (place / f"{name}.py").exists()
                if not submodule and (not file.exists() or name not in defined(file)):
                    found.append(f"{node.module}.{name}")
    return found


def programs(root: Path) -> dict[str, str]:
    """Every program in Python below examples/ and in the docs, by its file."""
    found = {str(file): file.read_text(encoding="utf-8") for file in (root / "examples").glob("*.py")}
    for pattern, files in (
        (HERE_DOCUMENT, (root / "examples").glob("*.sh")),
        (BLOCK, [*root.glob("*.md"), *(root / "docs").glob("*.md")]),
    ):
        for file in files:
            for match in pattern.finditer(file.read_text(encoding="utf-8")):
                found[f"{file}:{match.start()}"] = match.groups()[-1]
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from dualfocus_lmms import Box, examples_of_nothing", ["dualfocus_lmms.examples_of_nothing"]),
        ("from dualfocus_lmms.models.engines import tree", []),
        ("def later():\n    from dualfocus_lmms.boxes import gone", ["dualfocus_lmms.boxes.gone"]),
        ("from dualfocus_lmms.gone import Box", ["dualfocus_lmms.gone.Box"]),
        ("from torch import gone", []),
    ],
)
def test_the_rule_itself(source: str, expected: list[str], root: Path) -> None:
    assert missing(source, root) == expected


def test_what_examples_and_docs_import_exists(root: Path) -> None:
    found = programs(root)
    assert any(".sh:" in name for name in found)
    assert any(".md:" in name for name in found)
    assert {name: lost for name, source in found.items() if (lost := missing(source, root))} == {}
