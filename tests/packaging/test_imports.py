"""Who may import whom, read from the files. The rooms and their order are in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

METHOD, MODELS, TASKS, TRAIN, RESULTS = (
    "dualfocus_lmms",
    "dualfocus_lmms.models",
    "dualfocus_lmms.tasks",
    "dualfocus_lmms.train",
    "dualfocus_lmms.results",
)
MAY_IMPORT = {
    METHOD: {METHOD},
    MODELS: {METHOD},
    TASKS: {METHOD},
    TRAIN: {METHOD, MODELS},
    RESULTS: {METHOD, TASKS},
}

METHOD_LIBRARIES = {"PIL", "numpy", "pandas", "tabulate", "matplotlib", "jinja2", "tqdm"}

# The top layer of the method's room: what a user calls. It may reach everything, but the other rooms only
# inside functions, and nothing below imports it.
TOP_LAYER = re.compile(r"dualfocus_lmms\.(__main__|(cli|api)(_\w+|\..+)?)")
TOP_LIBRARIES = METHOD_LIBRARIES | {"typer"}


@dataclass(frozen=True)
class Import:
    importer: str
    line: int
    target: str
    lazy: bool = False  # inside a function
    typing: bool = False  # under `if TYPE_CHECKING`: never carried out


def imports(importer: str, source: str, modules: set[str]) -> list[Import]:
    """All imports of one file. `modules` tells whether b in `from a import b` is a module."""

    def targets(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        for target in dict.fromkeys(targets(node)):
            yield Import(importer, node.lineno, target, lazy, typing)  # type: ignore[attr-defined]
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from walk(child, lazy, True)
            for child in node.orelse:
                yield from walk(child, lazy, typing)
        else:
            for child in ast.iter_child_nodes(node):
                yield from walk(child, lazy, typing)

    return list(walk(ast.parse(source), False, False))


def room(module: str) -> str | None:
    """The room a module lives in; None for other people's modules."""
    for name in (MODELS, TASKS, TRAIN, RESULTS, METHOD):
        if module == name or module.startswith(f"{name}."):
            return name
    return None


def fault(item: Import) -> str | None:
    """Why an import is not allowed."""
    here, there, top = room(item.importer), room(item.target), TOP_LAYER.fullmatch(item.importer)
    package = item.target.split(".")[0]
    if item.target.startswith("."):
        return "relative"
    if package in ("models", "tasks", "train", "results"):
        return "bare"
    if there is None:
        allowed = TOP_LIBRARIES if top else METHOD_LIBRARIES
        outside = package not in allowed | sys.stdlib_module_names | {"__future__"}
        return "library" if here == METHOD and outside and not (top and item.lazy) else None
    if TOP_LAYER.fullmatch(item.target) and not top:
        return "top layer"
    if there != here and there not in MAY_IMPORT[str(here)] and not (top and (item.lazy or item.typing)):
        return "room"
    return None


def circle(items: list[Import]) -> list[str]:
    """Modules that import each other while they are loaded, first to first again; empty without a circle."""
    graph: dict[str, set[str]] = {}
    for item in items:
        if room(item.target) and not item.lazy and not item.typing:
            graph.setdefault(item.importer, set()).add(item.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.fixture(scope="module")
def project(modules: dict[str, Path]) -> list[Import]:
    found = [
        item
        for module, file in sorted(modules.items())
        for item in imports(module, file.read_text("utf-8"), set(modules))
    ]
    assert len(modules) > 20
    assert len(found) > 100
    return found


def test_every_import_goes_down(project: list[Import]):
    assert [(why, item) for item in project if (why := fault(item))] == []


def test_every_library_is_declared(project: list[Import], setup_cfg: ConfigParser):
    """What only comes along with another library today may be gone with its next release."""
    required = setup_cfg["options"]["install_requires"].splitlines()
    declared = {
        normalized(re.split(r"[<>=!~ ;\[]", line)[0]) for line in required if not line.startswith("#")
    }
    makers = packages_distributions()
    imported = {item.target.split(".")[0]: item for item in project if room(item.target) is None}
    foreign = {name: item for name, item in imported.items() if name not in sys.stdlib_module_names}
    assert {"torch", "yaml", "PIL"} <= set(foreign)
    assert [
        item for name, item in foreign.items() if declared.isdisjoint(map(normalized, makers.get(name, [])))
    ] == []


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_no_circle(project: list[Import]):
    assert circle(project) == []


KNOWN = {METHOD, MODELS, TASKS, TRAIN} | {f"{METHOD}.boxes", f"{METHOD}.cli", f"{MODELS}.tiny"}


@pytest.mark.parametrize(
    ("importer", "source", "expected"),
    [
        ("dualfocus_lmms.flow", "import json, PIL\nfrom dualfocus_lmms.boxes import Box", []),
        ("dualfocus_lmms.flow", "import torch", ["library"]),
        ("dualfocus_lmms.flow", "def run():\n    import torch", ["library"]),
        ("dualfocus_lmms.flow", "import typer", ["library"]),
        ("dualfocus_lmms.flow", "from dualfocus_lmms import boxes", []),
        ("dualfocus_lmms.flow", "from dualfocus_lmms import cli", ["top layer"]),
        ("dualfocus_lmms.flow", "from dualfocus_lmms import models", ["room"]),
        ("dualfocus_lmms.flow", "def run():\n    import dualfocus_lmms.models.tiny", ["room"]),
        ("dualfocus_lmms.flow", "if TYPE_CHECKING:\n    import dualfocus_lmms.models", ["room"]),
        ("dualfocus_lmms.flow", "from . import boxes", ["relative"]),
        ("dualfocus_lmms.flow", "from .boxes import Box", ["relative"]),
        ("dualfocus_lmms.cli", "import typer", []),
        ("dualfocus_lmms.cli_bench", "import typer\ndef run():\n    import torch", []),
        ("dualfocus_lmms.cli", "import torch", ["library"]),
        ("dualfocus_lmms.cli", "from dualfocus_lmms.models import tiny", ["room"]),
        ("dualfocus_lmms.cli", "def run():\n    from dualfocus_lmms.models import tiny", []),
        ("dualfocus_lmms.client", "import typer", ["library"]),
        ("dualfocus_lmms.models.tiny", "import torch\nfrom dualfocus_lmms import Box", []),
        ("dualfocus_lmms.models.tiny", "from dualfocus_lmms import train", ["room"]),
        ("dualfocus_lmms.models.tiny", "import models.tiny", ["bare"]),
        ("dualfocus_lmms.models.tiny", "from tokenizers import models", []),
        ("dualfocus_lmms.tasks.pope", "from dualfocus_lmms.boxes import Box", []),
        ("dualfocus_lmms.tasks.pope", "def read():\n    from dualfocus_lmms.models.tiny import x", ["room"]),
        ("dualfocus_lmms.train.data", "import dualfocus_lmms.models.tiny", []),
        ("dualfocus_lmms.train.data", "from dualfocus_lmms import tasks, models", ["room"]),
        ("dualfocus_lmms.train.data", "try:\n    import tasks\nfinally:\n    pass", ["bare"]),
    ],
)
def test_the_rules_themselves(importer: str, source: str, expected: list[str]):
    assert [why for item in imports(importer, source, KNOWN) if (why := fault(item))] == expected


@pytest.mark.parametrize(
    ("third", "circular"),
    [
        ("import dualfocus_lmms.a", True),
        ("from dualfocus_lmms import a", True),
        ("from dualfocus_lmms.a import x", True),
        ("def run():\n    import dualfocus_lmms.a", False),
        ("if TYPE_CHECKING:\n    import dualfocus_lmms.a", False),
        ("import json", False),
    ],
)
def test_a_circle_is_named(third: str, circular: bool):
    a, b, c = known = [f"{METHOD}.{name}" for name in "abc"]
    sources = {a: f"from {b} import x", b: f"import {c}", c: third}
    found = circle([item for name, source in sources.items() for item in imports(name, source, set(known))])
    start = found.index(a) if circular else 0
    assert found[start:-1] + found[:start] == ([a, b, c] if circular else [])


@pytest.mark.parametrize("module", ["dualfocus_lmms", "dualfocus_lmms.models.manifest", "dualfocus_lmms.cli"])
def test_loading_the_plugin_is_light(module: str, tmp_path: Path):
    """lmms-eval and the command line load these before they know what they are asked for."""
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
