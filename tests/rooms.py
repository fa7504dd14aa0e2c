"""The rooms of the package and what each may import: the rules, and a command that prints what is there.

python tests/rooms.py
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dualfocus_lmms"
LINKS = ("models", "tasks", "train", "results")

# A room is a folder; `method` is dualfocus_lmms/ itself and `top` what a user calls. Each may import itself,
# `method`, and the rooms named here. `top` may import all, but the folders of LINKS only inside functions.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "method": (),
    "models": (),
    "models.families": (),
    "models.qwen_vl": ("models",),
    "models.run": (),
    "models.checkpoint": ("models.qwen_vl",),
    "models.engines": ("models", "models.checkpoint"),
    "models.grounding": ("models", "models.checkpoint", "models.engines"),
    "models.host": ("models.checkpoint", "models.engines", "models.grounding", "models.run"),
    "models.server": ("models.checkpoint", "models.grounding", "models.host", "models.run"),
    "models.convert": ("models.checkpoint", "models.families"),
    "models.tiny": ("models.checkpoint", "models.convert", "models.engines", "models.families"),
    "models.bench": (
        "models.checkpoint",
        "models.engines",
        "models.families",
        "models.run",
        "models.tiny",
    ),
    "tasks": (),
    "tasks.common": (),
    "tasks.gqa": ("tasks.common",),
    "tasks.gqa_star": ("tasks.common", "tasks.gqa"),
    **{f"tasks.{name}": ("tasks.common",) for name in ("hrbench", "local", "mmbench", "nano", "pope")},
    **{f"tasks.{name}": ("tasks.common",) for name in ("seed", "textvqa", "vstar")},
    **{f"tasks.{name}": ("tasks.common",) for name in ("chartqa", "docvqa", "ocrbench")},
    **{f"tasks.{name}": ("tasks.common",) for name in ("mme_realworld", "treebench")},
    "train": (),
    "train.data": ("models.checkpoint",),
    "train.vg": ("train.data",),
    "train.trainer": ("models.checkpoint", "models.engines", "models.families", "train.data"),
    "train.nano": (
        "models.checkpoint",
        "models.families",
        "models.tiny",
        "train.data",
        "train.trainer",
        "train.vg",
    ),
    "results": ("tasks.common",),
    "results.report": ("results", "tasks.common"),
    "results.calibration": ("results", "results.report", "tasks.common"),
    "results.gate": ("results", "tasks.common"),
    "results.leaderboard": ("results",),
}
METHOD_LIBRARIES = {
    "PIL",
    "numpy",
    "pandas",
    "tabulate",
    "matplotlib",
    "jinja2",
    "tqdm",
    "pydantic",
    "openai",
}
TOP = re.compile(rf"{PACKAGE}\.(__main__|api|cli(\..+)?)")
TOP_LIBRARIES = METHOD_LIBRARIES | {"typer"}


@dataclass(frozen=True)
class Import:
    importer: str
    line: int
    target: str
    lazy: bool = False  # inside a function
    typing: bool = False  # under `if TYPE_CHECKING`: never carried out


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name to file, links followed: dualfocus_lmms.train.nano.base to ROOT/dualfocus_lmms/train/..."""
    found = {}
    for folder, _, names in os.walk(root / PACKAGE, followlinks=True):
        package = Path(folder).relative_to(root).parts
        for name in names:
            if name.endswith(".py"):
                parts = package if name == "__init__.py" else (*package, name.removesuffix(".py"))
                found[".".join(parts)] = Path(folder, name)
    return found


def imports(importer: str, source: str, known: Iterable[str]) -> list[Import]:
    """All imports of one file. `known` tells whether b in `from a import b` is a module."""
    names = set(known)

    def targets(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in names else base

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


def project(root: Path = ROOT) -> list[Import]:
    """Every import of the package."""
    files = modules(root)
    return [
        item
        for module, file in sorted(files.items())
        for item in imports(module, file.read_text("utf-8"), files)
    ]


def room(module: str) -> str | None:
    """The room a module lives in, the smallest that has a rule; None for other people's modules."""
    if module != PACKAGE and not module.startswith(f"{PACKAGE}."):
        return None
    if TOP.fullmatch(module):
        return "top"
    first, *rest = module.split(".")[1:] or [""]
    if first not in LINKS:
        return "method"
    inner = f"{first}.{rest[0]}" if rest else first
    return inner if inner in MAY_IMPORT else first


def fault(item: Import) -> str | None:
    """Why an import is not allowed; None where it is."""
    here, there = room(item.importer), room(item.target)
    package = item.target.split(".")[0]
    if item.target.startswith("."):
        return "relative"
    if package in LINKS:
        return "bare"
    if there is None:
        allowed = TOP_LIBRARIES if here == "top" else METHOD_LIBRARIES
        outside = package not in allowed | sys.stdlib_module_names | {"__future__"}
        lazy = here == "top" and item.lazy
        return "library" if here in ("method", "top") and outside and not lazy else None
    if here == "top":
        return None if there in ("top", "method") or item.lazy or item.typing else "room"
    if there == "top":
        return "top layer"
    return None if there in (here, "method", *MAY_IMPORT[str(here)]) else "room"


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """What imports each other, first to first again; empty without a circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def loaded(items: Iterable[Import]) -> dict[str, set[str]]:
    """Module to those that it imports while it is loaded."""
    graph: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if room(item.target) and not item.lazy and not item.typing:
            graph[item.importer].add(item.target)
    return dict(graph)


def arrows(items: Iterable[Import]) -> dict[str, set[str]]:
    """Room to the rooms that it imports, wherever in a file."""
    graph: dict[str, set[str]] = {name: set() for name in ("top", *MAY_IMPORT)}
    for item in items:
        here, there = room(item.importer), room(item.target)
        if here and there and here != there:
            graph[here].add(there)
    return graph


def table(root: Path = ROOT) -> str:
    """Each room with its number of modules and lines, and what it imports, as a Markdown table."""
    from tabulate import tabulate

    graph, sizes = arrows(project(root)), defaultdict(list)
    for module, file in modules(root).items():
        sizes[str(room(module))].append(len(file.read_text("utf-8").splitlines()))
    rows = [
        [name, len(sizes[name]), sum(sizes[name]), ", ".join(sorted(graph[name] - {"method"})) or "-"]
        for name in graph
    ]
    return tabulate(rows, ["room", "modules", "lines", "imports, besides method"], tablefmt="github")


if __name__ == "__main__":
    print(table())
